import pytest
from chat_rows import reply, user

from plaudit.data.prompts import common_prefix, prompt_key, prompt_of


@pytest.mark.parametrize(
    ("sequences", "shared"),
    [
        (["abc", "abd"], 2),
        ([[1, 2], [1, 2, 3]], 2),
        ([[1, 2, 3], [1, 5], [1, 2]], 1),
        ([[{"role": "user"}, {"role": "tool"}], [{"role": "user"}]], 1),
        ([[], [1]], 0),
        ([[1, 2]], 2),
    ],
)
def test_the_common_prefix_of_texts_messages_and_token_ids(sequences, shared):
    assert common_prefix(sequences) == shared


def test_a_key_is_the_same_on_any_day_and_fits_63_bits():
    assert prompt_key("2+2?") == 4124776273588921228
    assert all(0 <= prompt_key(str(n)) < 2**63 for n in range(200))
    assert len({prompt_key(str(n)) for n in range(200)}) == 200


def test_a_key_does_not_see_what_arrow_filled_in():
    assert prompt_key([user("a", name=None)]) == prompt_key([user("a")]) != prompt_key([user("a", name="x")])


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2+2? ", "chosen": "4", "rejected": "5"}, "2+2? "),
        ({"chosen": "What is 2+2? It is 4.", "rejected": "What is 2+2? It was 5."}, "What is 2+2?"),
        (
            {"chosen": "Human: hi\n\nAssistant: a b", "rejected": "Human: hi\n\nAssistant: a c"},
            "Human: hi\n\nAssistant:",
        ),
        ({"chosen": [user("p"), reply("a")], "rejected": [user("p"), reply("b")]}, [user("p")]),
        ({"chosen": [user("p"), reply("a")], "rejected": [user("p"), reply("a")]}, [user("p")]),
        ({"prompt": "", "completions": ["Two? a", "Two? b", "Two? c"]}, "Two?"),
        ({"prompt": None, "completions": [[user("p"), reply(r)] for r in "abb"]}, [user("p")]),
        ({"chosen": "a", "rejected": "b"}, ["a", "b"]),
    ],
)
def test_a_prompt_is_said_or_what_all_responses_begin_with(row, prompt):
    assert prompt_of(row) == prompt
