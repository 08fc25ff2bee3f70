import pytest
from chat_rows import battle, reply, user
from datasets import Dataset

from plaudit.data.dataset_conversion import convert
from plaudit.data.published_layouts import CONVERTERS, arena, helpsteer, hh, ranked, ultrafeedback
from plaudit.errors import DataError


def test_registry_names():
    assert sorted(CONVERTERS) == ["arena", "helpsteer", "hh", "ranked", "ultrafeedback"]


# hh


def test_hh_splits_transcripts_into_chats_with_an_implicit_prompt():
    row = {
        "chosen": "\n\nHuman: one\n\nstill one\n\nAssistant: two\n\nHuman: three\n\nAssistant: good",
        "rejected": "\n\nHuman: one\n\nstill one\n\nAssistant: two\n\nHuman: three\n\nAssistant: bad ",
    }
    shared = [user("one\n\nstill one"), reply("two"), user("three")]
    assert hh(row) == {"chosen": [*shared, reply("good")], "rejected": [*shared, reply("bad")]}


@pytest.mark.parametrize(
    ("transcript", "chat"),
    [
        ("Be kind.\n\nHuman: a\n\nAssistant: b", [{"role": "system", "content": "Be kind."}, user("a"), reply("b")]),
        ("Human: a\n\nAssistant: b", [user("a"), reply("b")]),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d", [user("a"), user("b"), reply("c"), reply("d")]),
        ("\n\nHuman: \n\nAssistant: b\n\nHuman:\n\nAssistant:", [user(""), reply("b"), user(""), reply("")]),
        ("\n\nHuman: say \nHuman: x\n\nAssistant: b", [user("say \nHuman: x"), reply("b")]),
    ],
    ids=["preamble", "no-blank-lines-first", "same-speaker", "empty-turns", "speaker-inside-a-turn"],
)
def test_hh_survives_what_real_transcripts_hold(transcript, chat):
    assert hh({"chosen": transcript, "rejected": transcript})["chosen"] == chat


def test_hh_keeps_pairs_which_diverge_early():
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: x",
    }
    assert [len(hh(row)[side]) for side in ("chosen", "rejected")] == [4, 2]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}, ["chosen", "assistant's", "user"]),
        ({"chosen": "no turns", "rejected": "x"}, ["transcript", "chosen", "no turns"]),
        ({"chosen": [user("a")], "rejected": [user("a")]}, ["chosen", "str", "list", "native"]),
        ({"text": "a", "rejected": "x"}, ["'hh'", '"chosen"', "text, rejected", "ultrafeedback"]),
        ({"chosen": None, "rejected": "x"}, ['"chosen"', "null"]),
    ],
)
def test_hh_errors(row, parts):
    with pytest.raises(DataError) as error:
        hh(row)
    assert all(part in str(error.value) for part in parts), error.value


# arena


def test_arena_interleaves_turns_and_chooses_the_winner():
    row = battle("model_b", prompt=("p", "q"), a=("1", "2"), b=("3", None))
    assert arena(row) == {
        "chosen": [user("p"), reply("3"), user("q"), reply("")],
        "rejected": [user("p"), reply("1"), user("q"), reply("2")],
        "tie": False,
    }


def test_arena_tie_has_model_a_as_chosen():
    assert arena(battle("tie")) == {
        "chosen": [user("hi"), reply("A")],
        "rejected": [user("hi"), reply("B")],
        "tie": True,
    }


def test_arena_mends_half_surrogate_pairs_which_arrow_refuses():
    row = battle() | {"response_a": r'["a\ud83d!"]', "response_b": r'["\ud83d\ude00"]'}
    converted = convert(Dataset.from_list([row]), "arena")[0]
    assert converted["chosen"][-1] == reply("a�!")
    assert converted["rejected"][-1] == reply("\N{GRINNING FACE}")


@pytest.mark.parametrize(
    ("winner", "first", "tie"), [("model_a", "A", 0), ("model_b", "B", 0), ("tie (bothbad)", "A", 1)]
)
def test_arena_reads_the_layout_with_whole_conversations(winner, first, tie):
    row = {"conversation_a": [user("x"), reply("A")], "conversation_b": [user("x"), reply("B")], "winner": winner}
    converted = arena(row)
    assert (converted["chosen"][-1]["content"], converted["tie"]) == (first, bool(tie))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"prompt": "['not json']"}, ["JSON", "prompt"]),
        ({"response_b": '["a", "b"]'}, ["response_b", "2 and 1"]),
        ({"winner_tie": 1}, ["winner", "to be 1"]),
        ({"winner_model_a": 0}, ["winner", "to be 1"]),
        ({"conversation_a": [user("x")], "conversation_b": [user("x")], "winner": "me"}, ["model_a", "'me'"]),
    ],
)
def test_arena_errors(change, parts):
    with pytest.raises(DataError) as error:
        arena(battle() | change)
    assert all(part in str(error.value) for part in parts), error.value


# ultrafeedback


def test_ultrafeedback_binarized_drops_the_repeated_prompt_and_marks_equal_scores():
    row = {"prompt": "p", "chosen": [user("p"), reply("a")], "rejected": [user("p"), reply("b")]}
    pair = {"chosen": row["chosen"], "rejected": row["rejected"]}
    assert ultrafeedback(row | {"score_chosen": 8.0, "score_rejected": 5.0}) == pair | {"tie": False}
    assert ultrafeedback(row | {"score_chosen": 8.0, "score_rejected": 8.0}) == pair | {"tie": True}
    assert ultrafeedback(row) == pair | {"tie": False}


@pytest.mark.parametrize(
    ("scores", "chosen", "rejected", "tie"),
    [([6.5, 9, 2, 7], "1", "2", False), ([5, 5], "0", "1", True), ([None, 3, 8], "2", "1", False)],
)
def test_ultrafeedback_raw_takes_the_best_against_the_worst(scores, chosen, rejected, tie):
    completions = [{"response": str(i), "overall_score": score} for i, score in enumerate(scores)]
    converted = ultrafeedback({"instruction": "p", "completions": completions})
    expected = {"chosen": [user("p"), reply(chosen)], "rejected": [user("p"), reply(rejected)], "tie": tie}
    assert converted == expected
    as_columns = {"response": [c["response"] for c in completions], "overall_score": scores}
    assert ultrafeedback({"instruction": "p", "completions": as_columns}) == expected


def test_ultrafeedback_errors():
    with pytest.raises(DataError, match=r"two completions.*overall_score.*got 1"):
        ultrafeedback({"instruction": "p", "completions": [{"response": "a", "overall_score": 1}]})
    with pytest.raises(DataError, match=r"list of messages.*chosen.*'text'"):
        ultrafeedback({"prompt": "p", "chosen": "text", "rejected": "text"})


# helpsteer


@pytest.mark.parametrize(
    ("row", "chosen", "margin"),
    [
        ({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": -2}, "a", 2.0),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 3}, "b", 3.0),
        ({"context": [user("p")], "response1": "a", "response2": "b", "overall_preference": 0}, "a", 0.0),
        ({"prompt": [user("p")], "response_a": "a", "response_b": "b", "score_a": 1, "score_b": 2.5}, "b", 1.5),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "helpfulness_1": 4, "helpfulness_2": 1}, "a", 3.0),
    ],
)
def test_helpsteer_reads_signed_preferences_and_scores(row, chosen, margin):
    rejected = {"a": "b", "b": "a"}[chosen]
    assert helpsteer(row) == {
        "chosen": [user("p"), reply(chosen)],
        "rejected": [user("p"), reply(rejected)],
        "tie": margin == 0,
        "margin": margin,
    }


def test_helpsteer_turns_its_marks_into_turns():
    prompt = "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree\nfour"
    row = {"prompt": prompt, "response_1": "a", "response_2": "b", "preference_strength": -1}
    assert helpsteer(row)["chosen"] == [user("one"), reply("two"), user("three\nfour"), reply("a")]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"response_1": "a", "response_2": "b"}, ["prompt", "context", "response_1, response_2"]),
        ({"prompt": "p", "response_1": "a"}, ["response_2"]),
        ({"prompt": "p", "response_1": "a", "response_2": "b"}, ["preference_strength", "score_1"]),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "score_1": "x", "score_2": 1}, ["score_1", "'x'"]),
    ],
)
def test_helpsteer_errors(row, parts):
    with pytest.raises(DataError) as error:
        helpsteer(row)
    assert all(part in str(error.value) for part in parts), error.value


# ranked


def test_ranked_leaves_native_groups_as_they_are():
    text = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 0, 1]}
    chat = {"prompt": [user("p")], "completions": [[reply("a")], [reply("b")]], "ranks": [0, 1]}
    assert ranked(text) == text | {"tie": False}
    assert ranked(chat) == chat | {"tie": False}


def test_ranked_reads_nectar():
    answers = [{"answer": "b", "rank": 2.0, "model": "m"}, {"answer": "a", "rank": 1.0, "model": "n"}]
    row = {"prompt": "\n\nHuman: x\n\nAssistant: y\n\nHuman: z\n\nAssistant: ", "answers": answers}
    assert ranked(row) == {
        "prompt": [user("x"), reply("y"), user("z")],
        "completions": [[reply("b")], [reply("a")]],
        "ranks": [1, 0],
        "tie": False,
    }


@pytest.mark.parametrize(
    ("order", "ranks", "tie"),
    [
        ({"ranks": [3, 1, 1]}, [1, 0, 0], False),
        ({"rank": [1, 2, 5]}, [0, 1, 2], False),
        ({"scores": [0.5, 9, -1]}, [1, 0, 2], False),
        ({"scores": [1, 1, 1]}, [0, 0, 0], True),
    ],
)
def test_ranked_reads_responses_with_ranks_or_scores(order, ranks, tie):
    converted = ranked({"prompt": "p", "responses": ["a", "b", "c"]} | order)
    assert converted["prompt"] == [user("p")]
    assert converted["completions"] == [[reply("a")], [reply("b")], [reply("c")]]
    assert (converted["ranks"], converted["tie"]) == (ranks, tie)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"completions": ["a", "b"], "ranks": [0, 1]}, ['"prompt"', "completions, ranks"]),
        ({"prompt": "p", "responses": ["a"], "ranks": [0]}, ["at least two"]),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0]}, ["2 responses, 1 ranks"]),
        ({"prompt": "p", "responses": ["a", "b"]}, ['"ranks"', "scores"]),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0, None]}, ["finite number", "None"]),
        ({"prompt": "p"}, ['"responses"']),
    ],
)
def test_ranked_errors(row, parts):
    with pytest.raises(DataError) as error:
        ranked(row)
    assert all(part in str(error.value) for part in parts), error.value
