"""Score files: written, read, joined to a dataset, and refused where a line is wrong."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ensemble_data import ensemble_scores

import plaudit
from plaudit import RewardModel
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.evaluate import evaluate_scores, join_dataset
from plaudit.evaluation.laplace import fit_laplace
from plaudit.evaluation.score_files import read_scores, write_scores
from plaudit.evaluation.scores import ScoredRow, Scores
from plaudit.models.member_heads import add_member_heads
from plaudit.models.reward_head import bind_reward_forward
from plaudit.uncertainty import MemberUncertainty, PosteriorUncertainty


def number_in(text):
    """The reward of a response, which is written in it."""
    return float(text.split("=")[1])


def rewards_of(sequences):
    return [number_in(each) for each in sequences]


def same(figures):
    return pytest.approx(figures, rel=0, abs=0, nan_ok=True)


def pair(prompt, chosen, rejected, **columns):
    return {"prompt": prompt, "chosen": f" ={chosen}", "rejected": f" ={rejected}"} | columns


ROWS = [
    pair("a", 2.0, 1.0, subset="x", id="first"),
    pair("b", 0.1, 0.3, label=0.2, weight=2.0, id="second"),
    {"prompt": "c", "completions": [" =1", " =0.5", " =0.5", " =3"], "ranks": [1, 2, 2, 0], "id": "third"},
    pair("c", 1, 1, tie=True, id="fourth"),
]


@pytest.fixture
def evaluation():
    return plaudit.evaluate(rewards_of, ROWS)


def test_a_file_gives_the_figures_of_the_evaluation_it_came_from(evaluation, tmp_path):
    for name in ("scores.jsonl", "scores.jsonl.gz"):
        write_scores(tmp_path / name, evaluation.scores)
        again = evaluate_scores(read_scores(tmp_path / name))
        assert again.overall == same(evaluation.overall)
        assert again.subsets["x"] == same(evaluation.subsets["x"])
        assert again.calibration == evaluation.calibration


def test_a_line_holds_what_the_documentation_lists(evaluation, tmp_path):
    write_scores(tmp_path / "scores.jsonl", evaluation.scores)
    header, first, second, third, fourth = map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    assert (header["format"], header["version"], header["model"]) == ("plaudit-scores", 1, "rewards_of")
    assert header["dataset"]["rows"] == 4
    assert first.keys() == {
        "row",
        "id",
        "rewards",
        "prompt_key",
        "row_key",
        "subset",
        "characters",
    }  # the rest is as by default
    assert (first["id"], first["rewards"], first["characters"]) == ("first", [2.0, 1.0], [6, 6])
    assert (second["comparisons"], second["label"], second["weight"]) == ([[1, 0]], 0.8, 2.0)
    assert (third["comparisons"], third["identical"]) == ([[3, 0], [3, 1], [3, 2], [0, 1], [0, 2]], 1)
    assert (fourth["comparisons"], fourth["identical"]) == ([], 1)
    assert third["prompt_key"] == fourth["prompt_key"] != first["prompt_key"]


def test_the_header_and_the_lines_of_a_real_model_hold_what_decides_its_rewards(make_model, tokenizer, text_rows):
    model = RewardModel(make_model(), tokenizer, max_length=6)
    scores = plaudit.evaluate(model, text_rows).scores
    assert scores.header["dtype"] == "float32"
    assert scores.header["max_length"] == 6
    assert scores.header["eos"] == tokenizer.eos_token
    assert scores.header["versions"]["torch"]
    assert {"attention", "layout", "quantization", "chat_template", "bos", "fingerprint"} <= scores.header.keys()
    assert all(max(row.tokens) <= 6 for row in scores.rows)
    whole = plaudit.evaluate(RewardModel(make_model(), tokenizer), text_rows).scores
    for cut, row in zip(scores.rows, whole.rows, strict=True):
        assert cut.truncated == [tokens > 6 for tokens in row.tokens]
    assert any(any(row.truncated) for row in scores.rows)


@pytest.fixture
def ensemble(make_model, tokenizer):
    model = make_model()
    bind_reward_forward(model)
    add_member_heads(model, 3, seed=0, around_head=False)
    return RewardModel(model, tokenizer, uncertainty=MemberUncertainty((0.1, 0.2, 0.3), (0.1, 0.2, 0.1), 0.2))


def test_the_members_of_an_ensemble_are_in_its_rows_and_give_the_same_figures_again(ensemble, text_rows, tmp_path):
    rows = [row | {"prompt": f"{row['prompt']} {n}"} for n, row in enumerate(text_rows * 5)]
    evaluation = plaudit.evaluate(ensemble, rows)
    scores = evaluation.scores
    assert scores.header["uncertainty"] == ensemble.uncertainty.to_dict()
    assert scores.members.shape == (len(scores.rewards), 3)
    assert scores.members.mean(1) == pytest.approx(scores.rewards, rel=1e-4, abs=1e-6)
    chosen = ensemble.score([rows[0]["prompt"] + rows[0]["chosen"]], return_members=True)
    assert scores.rows[0].members[0] == pytest.approx(chosen[0].tolist(), rel=1e-5)
    assert evaluation.uncertainty.members == 3
    write_scores(tmp_path / "scores.jsonl.gz", scores)
    again = evaluate_scores(read_scores(tmp_path / "scores.jsonl.gz")).to_dict()
    assert again["uncertainty"] == evaluation.to_dict()["uncertainty"]


def test_a_single_model_has_no_members(evaluation):
    assert evaluation.scores.members is None
    assert evaluation.uncertainty is None
    assert evaluation.to_dict()["uncertainty"] is None


def test_a_conservative_reward_is_that_of_the_model_row_by_row(ensemble, text_rows):
    scores = plaudit.evaluate(ensemble, text_rows).scores
    texts = [row["prompt"] + row[side] for row in text_rows for side in ("chosen", "rejected")]
    for how in ("mean", "min", "mean-std", "mean-var"):
        k = 2.0 if how.startswith("mean-") else 1.0
        expected = ensemble.score(texts, aggregate=how, k=k).reshape(-1, 2)
        assert np.array(scores.aggregate(how, k)) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_sampled_heads_of_a_posterior_stand_for_members_in_the_unit_of_the_reward(tmp_path):
    rows = [
        replace(row, rewards=[np.mean(row.members[0]), 0.0], stds=[0.5 + row.row % 2, 0.0])
        for row in ensemble_scores("told", 300, members=8).rows
    ]
    posterior = PosteriorUncertainty(reward_mean=1.0, reward_std=2.0, num_samples=8)
    write_scores(tmp_path / "scores.jsonl", Scores({"model": "laplace", "uncertainty": posterior.to_dict()}, rows))
    scores = read_scores(tmp_path / "scores.jsonl")
    spread = [np.std(row.members[0], ddof=1) for row in rows]
    assert scores.member_differences.std(1, ddof=1) == pytest.approx(spread)
    assert evaluate_scores(scores).uncertainty.kind == "posterior"
    lowered = [(row.rewards[0] - 1) / 2 - row.stds[0] / 2 for row in rows]  # by the exact one, not that of the samples
    assert [each[0] for each in scores.aggregate("mean-std")] == pytest.approx(lowered, rel=1e-5)
    with pytest.raises(ConfigError, match="a posterior has no least member"):
        scores.aggregate("min")
    for stds in (None, [0.5, -1.0], [0.5, None]):
        wrong = Scores(scores.header, [replace(rows[0], stds=stds), *rows[1:]])
        write_scores(tmp_path / "wrong.jsonl", wrong)
        with pytest.raises(DataError, match="expected a number of 0 or more for each response in `stds` of row 0"):
            read_scores(tmp_path / "wrong.jsonl")


def test_a_conservative_reward_by_a_posterior_is_that_of_the_model(model_folder, text_rows):
    model = RewardModel.from_pretrained(model_folder)
    fit_laplace(model, text_rows)
    scores = plaudit.evaluate(model, text_rows).scores
    texts = [row["prompt"] + row[side] for row in text_rows for side in ("chosen", "rejected")]
    for how in ("mean", "mean-std", "mean-var"):
        expected = model.score(texts, aggregate=how).reshape(-1, 2)
        assert np.array(scores.aggregate(how)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_conservative_reward_of_a_single_model_says_how_to_get_one():
    single = Scores({"model": "single"}, [ScoredRow(0, [1.0, 0.0])])
    assert [each.tolist() for each in single.aggregate("mean")] == [[1.0, 0.0]]
    with pytest.raises(ConfigError, match=r"aggregate='min': single is a single model.*num_heads=5"):
        single.aggregate("min")
    with pytest.raises(ConfigError, match="expected one of mean, min, mean-std, mean-var"):
        single.aggregate("max")


@pytest.mark.parametrize(
    ("members", "header", "message"),
    [
        ([[1.0, 2.0], [1.0]], None, "expected 2 finite numbers for each response in `members` of row 0.*got \\[1.0\\]"),
        ([[1.0, 2.0], [1.0, None]], None, "expected 2 finite numbers"),
        ([1.0, 2.0], None, "expected 2 finite numbers"),
        ([[1.0, 2.0]], None, "expected 2 values in `members`"),
        ([[1.0, 2.0], [1.0, 3.0]], {"uncertainty": None}, "expected the constants of the `members` in the header"),
    ],
)
def test_members_that_do_not_fit_are_named(members, header, message, tmp_path):
    scores = ensemble_scores("told", 1, members=2)
    write_scores(
        tmp_path / "scores.jsonl", Scores(scores.header | (header or {}), [replace(scores.rows[0], members=members)])
    )
    with pytest.raises(DataError, match=message):
        read_scores(tmp_path / "scores.jsonl")


@pytest.mark.parametrize("batch_layout", ["forest", "padded"])
def test_rows_scored_in_batches_of_any_size_have_the_same_verdicts(make_model, tokenizer, text_rows, batch_layout):
    rows = [row | {"prompt": f"{row['prompt']} {n}" * (n % 4 + 1)} for n, row in enumerate(text_rows * 4)]
    verdicts = []
    for sequences in (1, 8, 64):
        model = RewardModel(make_model(), tokenizer, max_tokens_per_batch=16 * sequences)
        model.engine.layout = batch_layout
        scores = plaudit.evaluate(model, rows).scores
        verdicts.append([np.sign(row.rewards[0] - row.rewards[1]) for row in scores.rows])
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_rewards_from_elsewhere_join_their_dataset_by_number_or_by_id(evaluation, tmp_path):
    lines = [{"row": row.row, "rewards": row.rewards} for row in evaluation.scores.rows]
    by_id = [{"id": row.id, "rewards": row.rewards} for row in evaluation.scores.rows]
    for number, content in enumerate((lines, lines[::-1], by_id[::-1])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
        assert evaluate_scores(join_dataset(path, ROWS)).overall == same(evaluation.overall)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"row": 0, "rewards": [1, 0]}], "row 1 is missing; expected 2 rewards for each of 4 rows"),
        ([{"row": 0, "rewards": [1, 0]}] * 2, "line 2: row 0 occurs twice"),
        ([{"row": 0, "rewards": [1, 0, 2]}], "row 0 has 3 rewards; expected 2"),
        ([{"row": 4, "rewards": [1, 0]}], "line 1: expected the `row` or the `id` of a row of the dataset"),
        ([{"id": "none", "rewards": [1, 0]}], "line 1: expected the `row` or the `id` of a row of the dataset"),
        ([{"row": 0, "rewards": [1, float("nan")]}], "line 1: expected a list of finite numbers in `rewards`"),
    ],
)
def test_rewards_that_do_not_fit_the_dataset_are_named(lines, message, tmp_path):
    path = tmp_path / "foreign.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        join_dataset(path, ROWS)


def test_a_file_of_pairs_without_a_header_has_the_chosen_reward_first(tmp_path):
    (tmp_path / "plain.jsonl").write_text('{"row": 0, "rewards": [2, 1]}\n{"row": 1, "rewards": [0, 1]}\n')
    figures = evaluate_scores(read_scores(tmp_path / "plain.jsonl")).overall
    assert (figures["accuracy"], figures["prompts"]) == (0.5, 2)
    assert np.isnan(figures["longer_wins"])


HEADER = '{"format": "plaudit-scores", "version": 1}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected scored rows, got none"),
        ("not JSON\n", "line 1: expected a JSON object"),
        (HEADER + "[1]\n", "line 2: expected a JSON object such as"),
        ('{"format": "plaudit-scores", "version": 9}\n', "expected the format 'plaudit-scores' of version 1"),
        (HEADER + '{"row": 0, "rewards": [1, null]}\n', "line 2: expected a list of finite numbers in `rewards`"),
        (HEADER + '{"row": 0, "rewards": [1, Infinity]}\n', "line 2: expected a list of finite numbers"),
        (HEADER + '{"row": 0}\n', "line 2: expected a list of finite numbers in `rewards`"),
        (HEADER + '{"rewards": [1, 2]}\n', "line 2: expected the number of the row in `row`"),
        (HEADER + '{"row": 0, "rewards": [1, 2], "reward": 3}\n', "expected the keys of a scored row, got reward"),
        (HEADER + '{"row": 0, "rewards": [1, 2, 3]}\n', "line 2: expected two rewards, or `comparisons`, got 3"),
        (HEADER + '{"row": 0, "rewards": [1, 2], "comparisons": [[0, 2]]}\n', "different indices from 0 to 1"),
        (HEADER + '{"row": 0, "rewards": [1, 2], "label": 2}\n', "line 2: expected a number from 0 to 1 in `label`"),
        (HEADER + '{"row": 0, "rewards": [1, 2], "tokens": [5]}\n', "line 2: expected 2 values in `tokens`"),
        (HEADER + '{"row": 0, "rewards": [1, 2]}\n' * 2, "row 0 occurs twice"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_and_its_line_named(content, message, tmp_path):
    (tmp_path / "scores.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_scores(tmp_path / "scores.jsonl")


def test_a_file_that_was_cut_is_refused_and_its_first_missing_row_named(evaluation, tmp_path):
    write_scores(tmp_path / "scores.jsonl", evaluation.scores)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines(keepends=True)
    for kept, missing in ((lines[:-1], 3), (lines[:2] + lines[3:], 1)):
        (tmp_path / "cut.jsonl").write_text("".join(kept))
        with pytest.raises(DataError, match=f"the header declares 4 rows, but row {missing} is missing"):
            read_scores(tmp_path / "cut.jsonl")


def test_rewards_of_other_data_are_not_joined(evaluation, tmp_path):
    write_scores(tmp_path / "scores.jsonl", evaluation.scores)
    assert evaluate_scores(join_dataset(tmp_path / "scores.jsonl", ROWS)).overall == same(evaluation.overall)
    with pytest.raises(DataError, match="holds the rewards of other data"):
        join_dataset(tmp_path / "scores.jsonl", [ROWS[1], ROWS[0], *ROWS[2:]])


def test_a_label_below_one_half_turns_the_pair_round(tmp_path):
    lines = [{"row": n, "rewards": [2, 1], "label": 0.2} for n in range(20)]
    (tmp_path / "scores.jsonl").write_text(HEADER + "".join(json.dumps(line) + "\n" for line in lines))
    scores = read_scores(tmp_path / "scores.jsonl")
    assert (scores.rows[0].comparisons, scores.rows[0].label) == ([(1, 0)], 0.8)
    assert evaluate_scores(scores).overall["accuracy"] == 0
    assert plaudit.compare(scores, scores).accuracy_a == 0


def test_rewards_are_not_joined_by_an_id_that_two_rows_have(tmp_path):
    (tmp_path / "foreign.jsonl").write_text('{"id": "first", "rewards": [1, 0]}\n')
    with pytest.raises(DataError, match="two rows of the dataset have one `id`"):
        join_dataset(tmp_path / "foreign.jsonl", [ROWS[0], ROWS[0]])


def test_a_row_is_found_again_by_its_texts(evaluation):
    turned = plaudit.evaluate(rewards_of, ROWS[::-1]).scores
    keys = [row.row_key for row in evaluation.scores.rows]
    assert [row.row_key for row in turned.rows] == keys[::-1]
    assert len(set(keys)) == len(ROWS)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b"\xff\xfe{}"), ("a.jsonl.gz", b"no gzip")])
def test_a_file_that_is_no_text_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        read_scores(tmp_path / name)


def test_a_missing_file_is_named_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(DataError, match="expected a score file at .*none.jsonl.*`plaudit eval --scores` writes one"):
        read_scores(tmp_path / "none.jsonl")


def test_a_reward_that_is_not_finite_is_not_written_and_the_file_before_stays(evaluation, tmp_path):
    write_scores(tmp_path / "scores.jsonl", evaluation.scores)
    before = (tmp_path / "scores.jsonl").read_bytes()
    broken = Scores(evaluation.scores.header, [replace(evaluation.scores.rows[0], rewards=[float("nan"), 0.0])])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_scores(tmp_path / "scores.jsonl", broken)
    assert (tmp_path / "scores.jsonl").read_bytes() == before


def test_the_same_scores_have_the_same_bytes(evaluation, tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_scores(tmp_path / name, evaluation.scores)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_figures_of_a_score_file_need_neither_torch_nor_datasets(evaluation, tmp_path):
    write_scores(tmp_path / "scores.jsonl", evaluation.scores)
    code = (
        "import sys; from plaudit.evaluation.evaluate import evaluate_scores;"
        "from plaudit.evaluation.score_files import read_scores;"
        f"evaluate_scores(read_scores({str(tmp_path / 'scores.jsonl')!r}));"
        "print(sys.modules.keys() & {'torch', 'datasets', 'transformers'})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
