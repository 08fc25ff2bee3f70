"""`plaudit.compare`: two files are matched row by row, compared, and refused where they do not belong together."""

import json
import subprocess
import sys

import numpy as np
import pytest

from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.benchmarks import BENCHMARKS
from plaudit.evaluation.comparison import compare, compare_several
from plaudit.evaluation.evaluate import evaluate, evaluate_scores
from plaudit.evaluation.score_files import write_scores
from plaudit.evaluation.scores import ScoredRow, Scores

HEADER = {"dataset": {"path": "pairs.jsonl", "hash": "1234"}}


def scores(margins, model="one", header=None, **columns):
    """The scores of pairs with these margins; a column has a value for each row."""
    rows = [
        ScoredRow(n, [float(margin), 0.0], **{name: values[n] for name, values in columns.items()})
        for n, margin in enumerate(margins)
    ]
    return Scores(HEADER | {"model": model} | (header or {}), rows)


def right(count, total):
    return [1] * count + [-1] * (total - count)


def test_the_figures_are_those_of_the_pairs_on_which_one_is_right():
    result = compare(scores(right(80, 100), "new"), scores(right(60, 100), "old"))
    assert (result.a, result.b) == ("new", "old")
    assert (result.accuracy_a, result.accuracy_b, result.difference) == (0.8, 0.6, pytest.approx(0.2))
    assert result.p_value == pytest.approx(2 / 2**20)
    assert 0.1 < result.low < 0.2 < result.high < 0.3
    assert result.separable
    assert result.verdict.startswith("new is better than old: by 20.0 points (95% interval ")


def test_the_better_one_is_named_whichever_comes_first():
    result = compare(scores(right(60, 100), "old"), scores(right(80, 100), "new"))
    assert result.difference == pytest.approx(-0.2)
    assert result.verdict.startswith("new is better than old: by 20.0 points (95% interval 1")


def test_a_difference_within_noise_is_not_separable_and_the_smallest_one_is_told():
    result = compare(scores(right(82, 100), "new"), scores(right(80, 100), "old"))
    assert result.verdict == "not separable: the smallest difference that could have been seen is 6.0 points"
    few = compare(scores(right(4, 4), "new"), scores(right(0, 4), "old"))
    assert few.verdict == "not separable: 4 prompts are too few to see any difference"


def test_accuracies_are_those_of_the_evaluation():
    """Soft labels, weights, equal rewards, ties and groups count as `plaudit.metrics.preference_metrics` has them."""
    rows = [
        {"prompt": "a", "chosen": "A1", "rejected": "A2", "label": 0.2, "weight": 3},
        {"prompt": "b", "chosen": "B1", "rejected": "B2", "label": 0.5},
        {"prompt": "c", "completions": ["C1", "C2", "C3"], "ranks": [0, 2, 1]},
        {"prompt": "c", "chosen": "C2", "rejected": "C1", "weight": 0},
        {"prompt": "d", "chosen": "D1", "rejected": "D2", "tie": True},
        {"prompt": "e", "chosen": "E1", "rejected": "E2"},
    ]
    generator = np.random.default_rng(0)
    models = [lambda texts: generator.integers(3, size=len(texts)), lambda texts: [0.0] * len(texts)]
    one, two = (evaluate(model, rows) for model in models)
    result = compare(one, two)
    assert result.accuracy_a == pytest.approx(one.overall["accuracy"])
    assert result.accuracy_b == pytest.approx(two.overall["accuracy"]) == 0.5
    assert (result.comparisons, result.prompts) == (5, 3)
    assert result.test == "sign-flip permutation test by prompt"
    assert (result.a, result.b) == ("model 1", "model 2")


def test_two_models_score_the_data():
    rows = [{"prompt": f"{n}", "chosen": "x" * n, "rejected": "y"} for n in range(2, 20)]
    result = compare(lambda texts: [len(each) for each in texts], lambda texts: [-len(each) for each in texts], rows)
    assert result.difference == 1


def test_subsets_are_adjusted_for_their_number():
    subset = ["easy"] * 50 + ["hard"] * 50
    a, b = right(50, 50) + right(30, 50), right(42, 50) + right(28, 50)
    result = compare(scores(a, "new", subset=subset), scores(b, "old", subset=subset))
    easy, hard = result.subsets["easy"], result.subsets["hard"]
    assert easy["p_unadjusted"] == pytest.approx(2 / 2**8)
    assert easy["p_value"] == pytest.approx(2 * easy["p_unadjusted"])
    assert easy["separable"] is True
    assert hard["separable"] is False
    assert (easy["tried"], easy["comparisons"], easy["accuracy_a"], easy["difference"]) == (
        2,
        50,
        1,
        pytest.approx(0.16),
    )


def test_several_models_are_compared_with_the_first_one():
    sources = [scores(right(60, 100), "base"), scores(right(68, 100), "x"), scores(right(61, 100), "y")]
    first, second = compare_several(sources)
    assert [first.a, first.b, second.b] == ["base", "x", "y"]
    assert first.p_unadjusted == pytest.approx(2 / 2**8)
    assert (first.p_value, first.tried) == (pytest.approx(4 / 2**8), 2)


def test_rows_apart_are_those_where_one_is_right_the_furthest_apart_first():
    """Margins are scaled, since the rewards of two models have units of their own."""
    a = scores([1, 2, -1, 1, -1, 0], "a", id=list("uvwxyz"))
    b = scores([100, -100, 300, -200, -100, 100], "b", id=list("uvwxyz"))
    result = compare(a, b)
    assert [(each["row"], each["id"], each["right"]) for each in result.rows_apart] == [
        (2, "w", "b"), (1, "v", "a"), (3, "x", "a"), (5, "z", "b"),
    ]  # fmt: skip
    first = result.rows_apart[0]
    assert (first["rewards_a"], first["rewards_b"], first["better"], first["worse"]) == ([-1, 0], [300, 0], 0, 1)


def test_a_group_is_listed_once_by_the_comparison_on_which_the_models_differ_most():
    compared = [(0, 1), (0, 2), (1, 2)]
    one, two = (
        Scores(HEADER | {"model": model}, [ScoredRow(0, rewards, comparisons=compared)])
        for model, rewards in (("a", [3.0, 2.0, 0.0]), ("b", [1.0, 2.0, 3.0]))
    )
    (row,) = compare(one, two).rows_apart
    assert (row["better"], row["worse"], row["right"]) == (0, 2, "a")


def test_files_are_matched_by_id_or_by_row_in_any_order(tmp_path):
    a = scores(right(8, 12), "a", id=[f"id{n}" for n in range(12)])
    b = scores(right(5, 12), "b", id=[f"id{n}" for n in range(12)])
    write_scores(tmp_path / "a.jsonl", a)
    write_scores(tmp_path / "b.jsonl", Scores(b.header, b.rows[::-1]))
    assert compare(tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")) == compare(a, b)
    foreign = [{"id": row.id, "rewards": row.rewards} for row in b.rows[::-1]]
    (tmp_path / "foreign.jsonl").write_text("\n".join(map(json.dumps, foreign)))
    result = compare(a, tmp_path / "foreign.jsonl")
    assert (result.difference, result.b) == (compare(a, b).difference, str(tmp_path / "foreign.jsonl"))


def test_a_foreign_file_takes_prompts_and_weights_from_the_other_one(tmp_path):
    a = scores(right(8, 12), "a", weight=[3.0] * 6 + [1.0] * 6, prompt_key=[7] * 12, subset=["s"] * 12)
    (tmp_path / "b.jsonl").write_text("".join(f'{{"row": {n}, "rewards": [0, 1]}}\n' for n in range(12)))
    for result in (compare(a, tmp_path / "b.jsonl"), compare(tmp_path / "b.jsonl", a)):
        assert (result.prompts, result.subsets["s"]["comparisons"]) == (1, 12)
        assert abs(result.difference) == pytest.approx(20 / 24)


def test_a_foreign_file_of_groups_is_joined_to_its_dataset(tmp_path):
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1, 2]},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
    ]
    for name, rewards in (("good", [3, 2, 1]), ("bad", [1, 2, 3])):
        (tmp_path / name).write_text(f'{{"row": 0, "rewards": {rewards}}}\n{{"row": 1, "rewards": [1, 0]}}\n')
    assert compare(tmp_path / "good", tmp_path / "bad", rows).difference == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_key": [5, 6, 7]}, "row 1 differs between one and two: `prompt_key` is 1 and 6"),
        ({"comparisons": [[(0, 1)], [(0, 1)], [(1, 0)]]}, r"row 2 .*`comparisons` is \[\(0, 1\)\] and \[\(1, 0\)\]"),
        ({"label": [1.0, 1.0, 0.7]}, "row 2 .*`label` is 1.0 and 0.7. Score both models on one dataset"),
        (
            {"header": {"dataset": {"hash": "5678"}}},
            r"different data \(hashes 1234 and 5678\). Score both on",
        ),
    ],
)
def test_files_of_different_data_are_refused(change, message):
    keys = {"prompt_key": [5, 1, 7]}
    with pytest.raises(DataError, match=message):
        compare(scores([1, 2, 3], **keys), scores([1, 2, 3], "two", **(keys | change)))


def test_rows_that_only_one_file_has_are_counted_and_never_left_out():
    message = "2 of 5 rows are only in one and 0 of 3 only in two; the first is row 3. Score both models on the whole"
    with pytest.raises(DataError, match=message):
        compare(scores([1] * 5), scores([1] * 3, "two"))


def test_rows_with_another_number_of_rewards_are_named():
    group = Scores(HEADER | {"model": "two"}, [ScoredRow(0, [1.0, 2.0, 3.0])])
    with pytest.raises(DataError, match="row 0 differs between one and two: 2 and 3 rewards"):
        compare(scores([1]), group)


def test_settings_that_differ_are_noted():
    a = scores([1, 1], header={"dtype": "float32", "max_length": 512, "bos": None}, truncated=[[True, False]] * 2)
    b = scores([1, 1], header={"dtype": "bfloat16", "max_length": 512, "bos": 1, "chat_template": "abc"})
    notes = ["dtype differs: float32 and bfloat16.", "Sequences that were cut: 2 and 0."]
    assert compare(a, b).notes == notes
    a.header["chat_template"] = "xyz"
    assert "chat_template differs: xyz and abc." in compare(a, b).notes
    b.header["model"] = "another"  # which has a template of its own
    assert compare(a, b).notes == notes


def test_models_need_data_and_options_need_models(tmp_path):
    with pytest.raises(ConfigError, match="expected a score file .* To compare models, name the data"):
        compare(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="To compare models, name the data"):
        compare(len, len)
    with pytest.raises(ConfigError, match="dtype: these are options of the data that models score; name the data too"):
        compare(scores([1]), scores([1]), dtype="float32")
    with pytest.raises(
        ConfigError, match="expected a score file .*, and there is none at 'someone/model'. To compare models, name"
    ):
        compare("someone/model", "missing.jsonl")


def test_only_ties_cannot_be_compared():
    with pytest.raises(DataError, match="expected a row with a preference to compare on"):
        compare(scores([1], label=[0.5]), scores([1], "two", label=[0.5]))


def test_the_dictionary_is_json():
    result = compare(scores(right(3, 4)), scores(right(2, 4)))
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    fixed = {"difference", "low", "high", "p_value", "separable", "smallest_detectable", "subsets"}
    assert fixed | {"rows_apart", "notes", "composites"} <= set(written)
    assert written["verdict"] == result.verdict


def test_an_evaluation_of_scores_is_taken_too():
    a, b = scores(right(8, 10), "a"), scores(right(5, 10), "b")
    assert compare(evaluate_scores(a), evaluate_scores(b)) == compare(a, b)


def test_no_torch_is_imported():
    code = "import sys, plaudit.evaluation.comparison; print(sys.modules.keys() & {'torch', 'datasets', 'scipy'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def ties_of_rewardbench_2(seed, skill):
    """Scores of RewardBench 2: twenty rows of each subset, and twenty pairs of rows of Ties."""
    generator, rows = np.random.default_rng(seed), []
    names = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
    kinds = [(name, f"{name}-{n}", 1) for name in names for n in range(20)]
    kinds += [("Ties", f"{kind}:{n}", correct) for n in range(20) for kind, correct in (("ref", 1), ("tied", 2))]
    for subset, row_id, correct in kinds:
        rewards = generator.normal(size=4)
        rewards[:correct] += skill
        fields = {"id": row_id, "subset": subset, "num_correct": correct, "total_completions": 4}
        compared = [(better, worse) for better in range(correct) for worse in range(correct, 4)]
        row = ScoredRow(len(rows), rewards.tolist(), id=row_id, subset=subset, comparisons=compared, fields=fields)
        rows.append(row)
    return Scores(HEADER | {"model": f"skill {skill}", "benchmark": "rewardbench-2"}, rows)


def test_a_benchmark_is_compared_by_its_own_rule():
    a, b = ties_of_rewardbench_2(0, 3.0), ties_of_rewardbench_2(1, 1.0)
    result = compare(a, b)
    columns = [row.fields for row in a.rows]
    whole = [BENCHMARKS["rewardbench-2"].figures(columns, [row.rewards for row in each.rows]) for each in (a, b)]
    assert list(result.composites) == ["overall", *whole[0]["parts"]]
    overall, ties = result.composites["overall"], result.composites["Ties"]
    assert (overall["a"], overall["b"]) == (whole[0]["overall"], whole[1]["overall"])
    assert ties["difference"] == whole[0]["parts"]["Ties"] - whole[1]["parts"]["Ties"]
    assert 0 < overall["low"] < overall["difference"] < overall["high"]
    assert ties["high"] - ties["low"] > overall["high"] - overall["low"]  # the mean of six subsets varies less
    other = Scores(b.header | {"benchmark": None}, b.rows)
    assert compare(a, other).composites == {}
