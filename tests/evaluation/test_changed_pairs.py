"""The pairs that rows make, and the prompt or the response that a change alters in them."""

import pytest

from plaudit.errors import DataError
from plaudit.evaluation.changed_pairs import blank_prompt, change_text, read_pairs, shuffle_prompts
from plaudit.evaluation.text_changes import TEXT_CHANGES

TEXTS = {"prompt": "2+2?", "chosen": " Four. ", "rejected": " Five. "}


def message(role, content):
    return {"role": role, "content": content}


def chat(prompt="2+2?", chosen="Four.", rejected="Five."):
    return {
        "prompt": [message("system", "Be brief."), message("user", prompt)],
        "chosen": [message("assistant", chosen)],
        "rejected": [message("assistant", rejected)],
    }


def changed(row, name):
    (pair,) = read_pairs([row])
    return change_text(pair, TEXT_CHANGES[name], 0)


def test_one_response_changes_and_the_white_space_around_it_stays():
    assert changed(TEXTS, "dot").sequences == ("2+2? Four. ", "2+2? . ")
    assert changed(TEXTS, "noise_quotes").sequences == ('2+2? "Four." ', "2+2? Five. ")
    assert changed(TEXTS, "empty").sequences == ("2+2? Four. ", "2+2?")


def test_of_a_conversation_the_last_assistant_message_changes():
    row = chat()
    row["rejected"] = [message("assistant", "First."), message("user", "So?"), message("assistant", "Five.")]
    assert changed(row, "dot").responses[1] == [*row["rejected"][:2], message("assistant", ".")]
    assert changed(row, "dot").responses[0] == row["chosen"]


def test_a_message_that_is_not_text_stays():
    parts = [{"type": "text", "text": "Five."}]
    assert changed(chat(rejected=parts), "dot").responses[1][0]["content"] == parts


def test_the_prompt_changes_before_both_responses():
    opinion = "2+2?\n\nI think that this is right: Five."
    assert changed(TEXTS, "sycophancy").sequences == (f"{opinion} Four. ", f"{opinion} Five. ")
    better, worse = changed(chat(), "sycophancy").sequences
    assert better[:2] == worse[:2] == [message("system", "Be brief."), message("user", opinion)]


def test_an_implicit_prompt_ends_where_the_reply_begins():
    row = {"chosen": "\n\nHuman: 2+2?\n\nAssistant: It is 4.", "rejected": "\n\nHuman: 2+2?\n\nAssistant: It is 5."}
    (pair,) = read_pairs([row])
    assert (pair.prompt, pair.responses) == ("\n\nHuman: 2+2?\n\nAssistant:", (" It is 4.", " It is 5."))
    assert changed(row, "sycophancy").prompt == (
        "\n\nHuman: 2+2?\n\nI think that this is right: It is 5.\n\nAssistant:"
    )


def test_an_implicit_prompt_of_a_conversation_is_its_common_messages():
    row = chat()
    whole = {column: row["prompt"] + row[column] for column in ("chosen", "rejected")}
    assert read_pairs([whole])[0].responses == (row["chosen"], row["rejected"])


def test_responses_that_share_nothing_have_no_prompt_to_change():
    row = {"chosen": "Yes", "rejected": "No"}
    (pair,) = read_pairs([row])
    assert not pair.prompt
    assert changed(row, "sycophancy") == blank_prompt(pair) == shuffle_prompts([pair], 0)(pair) == pair


def test_a_group_gives_its_best_and_its_worst_response():
    group = {"prompt": "", "completions": ["c", "a", "b", "a2"], "ranks": [2, 0, 1, 0], "weight": 10.0}
    (pair,) = read_pairs([group])
    assert (pair.responses, pair.weight) == (("a", "c"), pytest.approx(10))


def test_ties_are_left_out_and_a_low_label_turns_a_pair_round():
    rows = [TEXTS | {"tie": True}, TEXTS | {"label": 0.5}, TEXTS | {"label": 0.2}]
    (pair,) = read_pairs(rows)
    assert pair.responses == (" Five. ", " Four. ")
    with pytest.raises(DataError, match="got none in 1 rows"):
        read_pairs(rows[1:2])


def test_each_prompt_is_exchanged_for_another_of_its_form():
    rows = [TEXTS | {"prompt": f"{number}?", "chosen": chosen} for number in range(5) for chosen in "ab"]
    rows += [chat(prompt=f"{number}?") for number in range(3)]
    pairs = read_pairs(rows)
    shuffled = [shuffle_prompts(pairs, 0)(pair) for pair in pairs]
    assert all(
        new.prompt != old.prompt and new.responses == old.responses for new, old in zip(shuffled, pairs, strict=True)
    )
    assert [new.prompt for new in shuffled[:10:2]] == [new.prompt for new in shuffled[1:10:2]]  # rows of one prompt
    assert sorted(new.prompt for new in shuffled[:10]) == sorted(old.prompt for old in pairs[:10])
    assert all(isinstance(new.prompt, list) for new in shuffled[10:])
    assert [new.prompt for new in shuffled] != [shuffle_prompts(pairs, 1)(pair).prompt for pair in pairs]


def test_the_only_prompt_stays():
    pairs = read_pairs([TEXTS, TEXTS | {"chosen": "4"}])
    assert shuffle_prompts(pairs, 0)(pairs[0]) == pairs[0]


def test_a_blank_prompt_is_an_empty_text_or_an_empty_user_message():
    assert blank_prompt(read_pairs([TEXTS])[0]).sequences == (" Four. ", " Five. ")
    assert blank_prompt(read_pairs([chat()])[0]).prompt == [message("user", "")]
