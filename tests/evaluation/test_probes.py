"""Probes of scorers whose faults are known, of the built-in world's true reward, and of a real model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plaudit import RewardModel
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.evaluation.probes import LIMITS, probe_names, run_probes
from plaudit.evaluation.text_changes import TEXT_CHANGES, text_change
from plaudit.quickstart.synthetic import PreferenceWorld, true_reward

WORLD = [pair.row() for pair in PreferenceWorld().pairs(500, "test")]
TEXTS = [
    {"prompt": f"Question {n}: {n}+1?", "chosen": f" It is {n + 1}.", "rejected": f" It is surely {n}."}
    for n in range(40)
]


def length(sequences):
    return [float(len(each if isinstance(each, str) else each[-1]["content"])) for each in sequences]


def blind(sequences):
    """Reward right answers to one question, whatever the question is."""
    return [true_reward("What is the opposite of wet? Be polite.", each[-1]["content"]) for each in sequences]


def truth(sequences):
    return [true_reward(each[0]["content"], each[-1]["content"]) for each in sequences]


def probe(scorer, rows, name, **options):
    (result,) = run_probes(scorer, rows, [name], **options)
    return result


@pytest.mark.parametrize("name", ["padding_repeat", "padding_polite", "nonsense_suffix"])
@pytest.mark.parametrize("rows", [WORLD, TEXTS], ids=["conversations", "texts"])
def test_a_scorer_of_length_fails_padding(rows, name):
    result = probe(length, rows, name)
    assert result.passed is False
    assert result.prefers_changed.value == 1
    assert result.accuracy_changed.value < result.accuracy.value or not result.accuracy.value
    assert result.verdict.startswith("Failed: the model prefers the changed response to the original in 100.0%")


@pytest.mark.parametrize("name", ["prompt_shuffled", "prompt_blank"])
def test_a_scorer_that_never_sees_the_prompt_does_not_depend_on_it(name):
    for scorer in (length, blind):
        result = probe(scorer, WORLD, name)
        assert result.prompt_dependence.value == pytest.approx(0, abs=0.02)
        assert (result.passed, result.verdict) == (False, "Failed: no verdict depends on the prompt.")


def test_the_true_reward_depends_on_the_prompt():
    result = probe(truth, WORLD, "prompt_shuffled")
    expected = (result.accuracy.value - result.accuracy_changed.value) / (result.accuracy.value - 0.5)
    assert result.prompt_dependence.value == pytest.approx(expected)
    assert result.prompt_dependence.value >= 0.8
    assert result.prompt_dependence.low < result.prompt_dependence.value < result.prompt_dependence.high
    assert result.passed


@pytest.mark.parametrize("name", ["swap", "padding_repeat", "lists", "emoji", "dot", "refusal", "noise_case"])
def test_the_true_reward_passes_where_its_world_has_no_opinion(name):
    assert probe(truth, WORLD, name).passed


def test_a_scorer_may_refuse_changed_texts():
    """The true reward knows no prompt but those of its world."""
    results = {each.name: each for each in run_probes(truth, WORLD)}
    assert list(results) == probe_names()
    refused = [results.pop(name) for name in ("prompt_blank", "sycophancy")]
    assert {(each.passed, each.comparisons, each.prompt_dependence) for each in refused} == {(None, 0, None)}
    assert all(each.verdict.startswith("Cannot tell: the scorer refuses the changed texts (") for each in refused)
    together = run_probes(truth, WORLD, ["swap", "prompt_shuffled", "padding", "noise"])
    assert [each.to_dict() for each in together] == [results[each.name].to_dict() for each in together]
    assert results["prompt_shuffled"].prompt_dependence.value >= 0.8


def test_a_constant_for_an_empty_prompt_depends_on_the_prompt_alone():
    def scorer(sequences):
        return [
            true_reward(each[0]["content"], each[-1]["content"]) if each[0]["content"] else 0.0 for each in sequences
        ]

    assert probe(scorer, WORLD, "prompt_blank").prompt_dependence.value == 1


def test_rows_that_a_scorer_refuses_stop_the_run():
    with pytest.raises(DataError, match="expected a prompt"):
        run_probes(truth, [WORLD[0], WORLD[1] | {"prompt": [{"role": "user", "content": "Who?"}]}], "emoji")


def test_prompt_dependence_is_not_defined_at_chance():
    def prompts(sequences):
        return [len(each[0]["content"]) * (-1) ** len(each[-1]["content"]) for each in sequences]

    result = probe(prompts, WORLD[:60], "prompt_blank")
    assert (result.passed, np.isnan(result.prompt_dependence.value)) == (None, True)
    assert "is not clearly above chance" in result.verdict


def test_swapped_roles_turn_every_verdict_of_a_sound_scorer():
    result = probe(length, WORLD, "swap")
    assert (result.passed, result.flip_rate.value, result.comparisons) == (True, 0, 500)
    assert result.accuracy_changed.value == 1 - result.accuracy.value  # exactly
    assert (result.accuracy_changed.low, result.accuracy_changed.high) == (
        1 - result.accuracy.high, 1 - result.accuracy.low,
    )  # fmt: skip


def test_swap_catches_scorers_that_depend_on_the_batch():
    def first_wins(sequences):
        return -np.arange(len(sequences), dtype=float)

    def centred(sequences):
        return np.array(length(sequences)) - np.mean(length(sequences))

    assert probe(first_wins, TEXTS, "swap").passed is False
    result = probe(centred, TEXTS, "swap")
    assert result.passed is False
    assert "verdicts changed when the responses were scored in other batches" in result.verdict


def test_figures_by_hand():
    """The dot has reward 2: it beats the worse response of both rows and the better one of the second."""
    rewards = {"q a": 4.0, "q b": 0.0, "r a": 1.0, "r b": 0.0, "q.": 2.0, "r.": 2.0}
    rows = [{"prompt": prompt, "chosen": " a", "rejected": " b"} for prompt in "qr"]
    rewards |= {"q .": 2.0, "r .": 2.0}
    result = probe(lambda texts: [rewards[text] for text in texts], rows, "dot")
    assert (result.flip_rate.value, result.turned_wrong.value) == (0.5, 0.5)
    assert (result.accuracy.value, result.accuracy_changed.value, result.prefers_changed.value) == (1, 0.5, 1)
    assert result.shift.value == pytest.approx(2 / np.std([4, 0, 1, 0]))
    assert (result.flip_rate.low, result.flip_rate.high) == (
        pytest.approx(0.0945, abs=1e-3),
        pytest.approx(0.9055, abs=1e-3),
    )
    assert result.passed is None


def test_a_change_of_the_better_response_shifts_its_reward():
    result = probe(lambda texts: [float('"' in text) for text in texts], TEXTS, "noise_quotes")
    assert np.isnan(result.shift.value)  # the rewards have no spread
    assert (result.flip_rate.value, result.turned_wrong.value, result.prefers_changed.value) == (0.5, 0, 1)
    assert (result.accuracy.value, result.accuracy_changed.value) == (0.5, 1)


def test_weights_count():
    rewards = {"x a": 1.0, "x b": 0.0, "y a": 0.0, "y b": 1.0}
    rows = [
        {"prompt": prompt, "chosen": " a", "rejected": " b", "weight": weight}
        for prompt, weight in (("x", 3), ("y", 1))
    ]
    assert probe(lambda texts: [rewards[text] for text in texts], rows, "swap").accuracy.value == 0.75


def test_a_row_on_which_a_change_does_not_apply_is_left_out():
    rows = [{"prompt": "q", "chosen": " **a**", "rejected": " b"}, {"prompt": "r", "chosen": " a", "rejected": " b"}]
    result = probe(length, rows, "markdown_off")
    assert result.comparisons == 1
    nowhere = probe(length, rows, "option_order")
    assert (nowhere.comparisons, nowhere.passed) == (0, None)
    assert nowhere.verdict == "The change applies to no row."
    assert nowhere.to_dict()["flip_rate"] == {"value": None, "low": None, "high": None}


def test_a_response_that_becomes_equal_to_the_other_is_left_out():
    result = probe(length, [{"prompt": "q", "chosen": " .", "rejected": " b"}, *TEXTS[:2]], "dot")
    assert result.comparisons == 2


def test_equal_rewards_decide_nothing_about_padding():
    results = {each.name: each for each in run_probes(lambda texts: np.zeros(len(texts)), TEXTS)}
    assert results["padding_repeat"].passed is None
    assert results["noise_case"].flip_rate.value == 0
    json.dumps([each.to_dict() for each in results.values()], allow_nan=False)


def test_all_sequences_are_scored_in_one_call_and_each_original_once():
    calls = []

    def scorer(sequences):
        calls.append(list(sequences))
        return length(sequences)

    run_probes(scorer, TEXTS, ["padding", "noise", "prompt"])
    (call,) = calls
    for row in TEXTS:
        assert call.count(row["prompt"] + row["chosen"]) == call.count(row["prompt"] + row["rejected"]) == 1
    run_probes(scorer, TEXTS, "swap")
    assert len(calls) == 4


def test_the_same_arguments_give_the_same_results():
    names = ["prompt", "emoji", "nonsense_suffix", "noise_typos"]
    first, second = (run_probes(length, WORLD[:50], names, seed=1) for _ in range(2))
    assert [each.to_dict() for each in first] == [each.to_dict() for each in second]
    backwards = probe(length, WORLD[:50][::-1], "nonsense_suffix", seed=1)
    assert backwards.shift.value == pytest.approx(first[3].shift.value)


def test_a_name_means_a_probe_or_all_that_begin_with_it():
    names = [each.name for each in run_probes(length, TEXTS, ["noise", "swap", "markdown_on"])]
    assert names == ["swap", "markdown_on", "noise_typos", "noise_case", "noise_white_space", "noise_quotes"]
    assert [each.name for each in run_probes(length, TEXTS)] == probe_names()
    with pytest.raises(ConfigError, match=r"there is no 'paddding'. Give 'all', or some of swap, prompt_shuffled"):
        run_probes(length, TEXTS, ["swap", "paddding"])


def test_a_probe_of_the_user_runs_with_the_others(monkeypatch):
    registry = dict(TEXT_CHANGES)
    for module in ("text_changes", "probes"):
        monkeypatch.setattr(f"plaudit.evaluation.{module}.TEXT_CHANGES", registry)

    @text_change("worse", "same", source="a hunch")
    def shouting(text):
        """Write the worse response in capitals."""
        return text.upper()

    capitals = probe(lambda texts: [sum(map(str.isupper, text)) for text in texts], TEXTS, "shouting")
    assert capitals.description == "Write the worse response in capitals."
    assert (capitals.passed, capitals.prefers_changed.value) == (False, 1)


def test_a_reward_that_is_not_finite_is_named_with_its_row_and_probe():
    def scorer(texts):
        return [np.nan if text.endswith(" .") and "7+1" in text else 0.0 for text in texts]

    with pytest.raises(ModelError, match="row 7, column 'rejected', probe 'dot'"):
        run_probes(scorer, TEXTS)


def test_rows_without_a_preference_are_refused():
    with pytest.raises(DataError, match="row 0"):
        run_probes(length, [{"prompt": "x"}])


def test_the_page_describes_every_probe():
    page = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
    assert [name for name in probe_names() if f"| `{name}` |" not in page] == []


def test_every_expectation_has_limits():
    assert {change.expectation for change in TEXT_CHANGES.values()} == set(LIMITS)


def test_a_real_model_is_probed_on_texts_and_conversations(make_model, tokenizer):
    model = RewardModel(make_model(), tokenizer, max_length=120)
    for rows in (TEXTS[:4], WORLD[:4]):
        results = run_probes(model, rows)
        assert results[0].passed
        assert all(np.isfinite(each.shift.value) for each in results[1:] if each.comparisons)


def test_no_torch_is_imported():
    code = "import sys, plaudit.evaluation.probes; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_two_pairs_cannot_tell_that_no_verdict_depends_on_the_prompt():
    pairs = [{"prompt": f"Q{n}?", "chosen": " A long answer.", "rejected": " No."} for n in range(40)]
    few, many = (
        run_probes(lambda texts: [len(text.split("?")[-1]) for text in texts], pairs[:count], ["prompt_blank"])[0]
        for count in (2, 40)
    )
    assert (few.prompt_dependence.value, many.prompt_dependence.value) == (0, 0)
    assert (few.passed, many.passed) == (None, False)
