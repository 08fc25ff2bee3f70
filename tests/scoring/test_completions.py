import pytest

from plaudit.errors import DataError
from plaudit.scoring.completions import align_forms, count_characters, join_completions


def message(role, text):
    return [{"role": role, "content": text}]


ASKED, ANSWERED = message("user", "Is it?"), message("assistant", "Yes.")


def test_without_completions_the_sequences_are_passed_on_one_by_one():
    def sequences():
        yield "Is it? Yes."
        pytest.fail("read before it was asked for")

    assert next(join_completions(sequences(), None)) == "Is it? Yes."


@pytest.mark.parametrize(
    ("prompt", "completion", "joined"),
    [
        ("Is it?", " Yes.", "Is it? Yes."),
        (ASKED, ANSWERED, ASKED + ANSWERED),
        (ASKED, "Yes.", ASKED + ANSWERED),
        ("Is it?", ANSWERED, ASKED + ANSWERED),
    ],
)
def test_a_prompt_and_its_completion_are_one_sequence_in_any_form(prompt, completion, joined):
    assert list(join_completions([prompt], [completion])) == [joined]


def test_one_response_of_messages_makes_all_of_them_messages():
    assert align_forms("Is it?", ["Yes.", ANSWERED]) == (ASKED, [ANSWERED, ANSWERED])
    assert align_forms("Is it?", ["Yes.", "No."]) == ("Is it?", ["Yes.", "No."])
    assert align_forms(None, ["Yes."]) == (None, ["Yes."])


class Table(dict):
    columns = ("text",)


@pytest.mark.parametrize(
    ("sequences", "completions", "reason"),
    [
        ("Is it? Yes.", None, r"got a single one. Wrap it: score\(\[...\]\)"),
        (ASKED + ANSWERED, None, "got a single one"),
        ("Is it?", ["Yes."], r"got a single prompt.*rank\(prompt, completions\)"),
        (["Is it?"], "Yes.", "expected a list of completions, got a single one: 'Yes.'"),
        (5, None, "expected a list of texts or of conversations, got 5"),
        (Table(text=["Yes."]), None, "got a Table. Pass one of its columns"),
        (["Is it?"], {"text": ["Yes."]}, "got a dict. Pass one of its columns"),
    ],
)
def test_an_argument_that_is_no_list_of_sequences_is_refused_at_once(sequences, completions, reason):
    with pytest.raises(DataError, match=reason):
        join_completions(sequences, completions)


@pytest.mark.parametrize(
    ("prompts", "completions", "reason"),
    [
        (["a", "b"], [" c"], "expected a completion for each prompt; one of the two ends after 1"),
        (["a"], [" c", " d"], "ends after 1"),
        (["a", None], [" c", " d"], "row 1: expected the prompt to be a string or a list of messages, got None"),
        (["a", "b"], [" c", 5], "row 1: expected the completion to be"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said_when_it_is_reached(prompts, completions, reason):
    joined = join_completions(prompts, completions)
    assert next(joined) == "a c"
    with pytest.raises(DataError, match=reason):
        next(joined)


def test_lengths_are_characters_of_what_is_said():
    assert count_characters("four") == 4
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    calls = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert count_characters([*message("user", "12345"), *message("assistant", parts), calls]) == 8
