"""Each change of a text, word by word, and the registry that holds them."""

from dataclasses import replace
from random import Random

import pytest

from plaudit.errors import ConfigError
from plaudit.evaluation.text_changes import TEXT_CHANGES, text_change

TEXT = "It is Paris. Many people know."


def changed(name, text, worse="It is Rome.", seed=0):
    return TEXT_CHANGES[name].apply(text, random=Random(seed), worse=worse)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("padding_repeat", TEXT, f"{TEXT} Many people know. Many people know. Many people know."),
        ("padding_repeat", "Paris", "Paris Paris Paris Paris"),
        ("markdown_on", TEXT, "## Answer\n\n**It is Paris.** Many people know."),
        ("markdown_on", "One\nTwo", "## Answer\n\n**One**\nTwo"),
        ("markdown_off", "# Head\n\n**Bold** and `code`:\n- one\n2. two", "Head\n\nBold and code:\none\ntwo"),
        ("markdown_off", "**Run**\n```\n# kept **so**\n```\n**end**", "Run\n```\n# kept **so**\n```\nend"),
        ("lists", TEXT, "- It is Paris.\n- Many people know."),
        ("lists", "\u5bf9\u3002\u597d\u3002", "- \u5bf9\u3002\n- \u597d\u3002"),
        ("sycophancy", "Where?", "Where?\n\nI think that this is right: It is Rome."),
        ("hedges_added", "Yes.", "I may be wrong, but as far as I know: Yes. At least, that is what I think."),
        ("hedges_removed", "I think that it is probably Paris.", "It is Paris."),
        ("empty", TEXT, ""),
        ("dot", TEXT, "."),
        ("noise_case", TEXT, "it is paris. many people know."),
        ("noise_white_space", "a b  c\n d", "a  b  c\n d"),
        ("noise_quotes", TEXT, f'"{TEXT}"'),
        ("cut_half", "one two  three", "one two"),
        ("option_order", "Pick:\nA) x\nB) y\nC) z\nThink.", "Pick:\nC) z\nB) y\nA) x\nThink."),
        ("option_order", "(A) x\n(B) y", "(B) y\n(A) x"),
    ],
)
def test_a_change_gives_this_text(name, text, expected):
    assert changed(name, text) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("markdown_on", "Already **bold**."),
        ("markdown_on", "Text\n# Head"),
        ("markdown_off", "2 * 3 * 4 and a_b_c, - so"),
        ("lists", "One sentence, version 1.5 of it."),
        ("lists", "- one. Two.\n- three"),
        ("opener", "Sure, it is Paris."),
        ("hedges_removed", "Nobody can improbably say maybes."),
        ("noise_typos", "It is so. 12345"),
        ("noise_white_space", "Paris"),
        ("cut_half", "Paris"),
        ("option_order", "A) is the only one"),
        ("option_order", "A) x\nand\nB) y"),
        ("option_order", "I have a dog.\nA dog."),
    ],
)
def test_a_change_that_does_not_apply_leaves_the_text(name, text):
    assert changed(name, text) == text


@pytest.mark.parametrize("name", sorted(TEXT_CHANGES))
def test_no_change_fails_on_odd_texts(name):
    for text in ("", ".", "a", "\u0645\u0631\u062d\u0628\u0627", "x" * 300, "**", "```\ncode"):
        assert isinstance(changed(name, text, worse=""), str)


def test_random_changes_follow_their_generator():
    names = ["emoji", "opener", "nonsense_suffix", "noise_typos"]
    for name in names:
        assert changed(name, TEXT) == changed(name, TEXT) != TEXT
        assert len({changed(name, TEXT, seed=seed) for seed in range(20)}) > 1


def test_typos_swap_letters_within_a_tenth_of_the_long_words():
    text = " ".join(["wonderful"] * 25)
    words = changed("noise_typos", text).split()
    wrong = [word for word in words if word != "wonderful"]
    assert 1 <= len(wrong) <= 3
    assert all(sorted(word) == sorted("wonderful") and word[0] + word[-1] == "wl" for word in wrong)


def test_a_long_stated_opinion_is_cut_to_fifty_words():
    stated = changed("sycophancy", "Why?", worse=" ".join(map(str, range(80)))).split(": ")[1]
    assert stated.split() == [str(number) for number in range(50)]


def test_every_change_has_a_sentence_and_a_source():
    for change in TEXT_CHANGES.values():
        assert change.description.endswith(".")
        assert "arXiv" in change.source


def test_a_user_registers_a_function_by_its_name(monkeypatch):
    monkeypatch.setattr("plaudit.evaluation.text_changes.TEXT_CHANGES", registry := {})

    @text_change("better", "same", source="a hunch")
    def shouting(text):
        """Write the better response in capitals.

        Not in the description.
        """
        return text.upper()

    assert shouting("a") == "A"
    assert (registry["shouting"].description, registry["shouting"].source) == (
        "Write the better response in capitals.", "a hunch",
    )  # fmt: skip
    assert registry["shouting"].apply("b", random=Random(0), worse="c") == "B"


def test_a_change_that_returns_no_text_is_named():
    change = replace(TEXT_CHANGES["noise_case"], name="lost", function=lambda text: None)
    with pytest.raises(ConfigError, match="text change lost: expected it to return a text, got None"):
        change.apply("a", random=Random(0), worse="b")


def test_mistakes_in_a_registration_are_named():
    with pytest.raises(ConfigError, match="expected one of better, worse, prompt, got 'chosen'"):
        text_change("chosen", "same", source="")
    with pytest.raises(ConfigError, match="expected one of same, no_better, not_best, got 'worse'"):
        text_change("better", "worse", source="")
    with pytest.raises(ConfigError, match="give <lambda> a docstring"):
        text_change("better", "same", source="")(lambda text: text)
