"""The estimate of label noise on margins whose wrong labels are known."""

import numpy as np
import pytest

from plaudit.auditing.audit import audit
from plaudit.auditing.label_noise import estimate_noise
from plaudit.errors import DataError
from plaudit.evaluation.evaluate import evaluate
from plaudit.evaluation.score_files import write_scores
from plaudit.evaluation.scores import ScoredRow, Scores


def margins_with(flips, count=4000, seed=0):
    """Margins of a model that is nearly always right, of which a share is turned round."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(2, 1, count)
    wrong = generator.random(count) < flips
    return np.where(wrong, -margins, margins), wrong


@pytest.mark.parametrize("flips", [0, 0.05, 0.1, 0.2])
def test_the_estimate_is_a_little_less_than_the_truth(flips):
    margins, wrong = margins_with(flips)
    found = estimate_noise(margins, np.arange(4000), np.arange(4000))
    assert 0.25 * wrong.mean() <= found["estimate"] <= wrong.mean() + 0.01
    suspects = found["suspects"][: max(wrong.sum(), 1)]
    assert not flips or wrong[suspects].mean() > 0.75


def test_a_model_that_guesses_cannot_tell():
    margins = np.random.default_rng(0).normal(0, 1, 2000)
    found = estimate_noise(margins, np.arange(2000), np.arange(2000))
    assert found["estimate"] is None
    assert found["verdict"].startswith("cannot tell")


def test_few_rows_cannot_tell():
    found = estimate_noise(np.ones(100), np.arange(100), np.arange(100))
    assert "cannot tell: 100 rows" in found["verdict"]
    assert "cannot tell" in estimate_noise(np.empty(0), np.empty(0), np.empty(0, int))["verdict"]


def words_rows(flipped=(), count=400):
    """Pairs that a bag of words tells apart; some labels are wrong."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        good, bad = (
            " ".join(generator.choice(words, 6)) for words in (["fine", "true", "yes"], ["bad", "false", "no"])
        )
        sides = (bad, good) if number in flipped else (good, bad)
        rows.append({"prompt": f"question {number}", "chosen": sides[0], "rejected": sides[1]})
    return rows


def test_wrong_labels_of_rows_are_found_by_their_words():
    flipped = set(range(0, 1500, 10))
    result = audit(words_rows(flipped, count=1500))
    assert set(result.label_noise["suspects"]) == flipped
    (finding,) = (each for each in result.findings if each.kind == "label_noise")
    assert 0.03 <= finding.figures["estimate"] <= 0.11
    assert finding.count == round(finding.figures["estimate"] * 1500)
    assert [row for (row,) in finding.rows] == result.label_noise["suspects"]
    assert not [each for each in audit(words_rows()).findings if each.kind == "label_noise"]


def score_file(path, numbers, wrong):
    rows = [ScoredRow(number, [0.0, 2.0] if number in wrong else [2.0 + number / 1000, 0.0]) for number in numbers]
    write_scores(path, Scores({"model": path.stem}, rows))
    return path


def test_score_files_of_folds_take_the_place_of_the_probe(tmp_path):
    rows, wrong = words_rows(count=400), set(range(0, 400, 20))
    folds = [score_file(tmp_path / f"{fold}.jsonl", range(fold, 400, 2), wrong) for fold in (0, 1)]
    result = audit(rows, scores=folds)
    assert set(result.label_noise["suspects"]) == wrong
    assert result.label_noise["probe_accuracy"] == pytest.approx(0.95)
    assert "the reward model" in result.label_noise["verdict"]


def test_a_row_that_two_files_score_or_that_is_not_there_is_named(tmp_path):
    rows = words_rows(count=20)
    fold = score_file(tmp_path / "a.jsonl", range(20), ())
    with pytest.raises(DataError, match="row 0 is scored twice"):
        audit(rows, scores=[fold, score_file(tmp_path / "b.jsonl", range(3), ())])
    with pytest.raises(DataError, match="row 20 is not in the dataset"):
        audit(rows, scores=[score_file(tmp_path / "c.jsonl", range(21), ())])


def test_files_of_folds_that_number_their_own_rows_are_joined_by_the_texts(tmp_path):
    rows, wrong = words_rows(count=400), set(range(0, 400, 20))
    places = {row["prompt"] + row["chosen"]: number for number, row in enumerate(rows)}
    bad = {rows[number]["prompt"] + rows[number]["chosen"] for number in wrong}
    paths = []
    for fold, half in enumerate((rows[:200], rows[200:])):
        scores = evaluate(lambda texts: [(-2.0 if text in bad else 2.0) * (text in places) for text in texts], half)
        write_scores(tmp_path / f"{fold}.jsonl", scores.scores)
        paths.append(tmp_path / f"{fold}.jsonl")
    result = audit(rows, scores=paths)
    assert set(result.label_noise["suspects"]) == wrong
    assert "on 400 of 400 rows" in result.label_noise["verdict"]
    with pytest.raises(DataError, match="row 0 is scored twice"):
        audit(rows, scores=[paths[0], paths[0]])
    with pytest.raises(DataError, match="row 0 is not in the dataset"):
        audit(rows[200:], scores=paths[:1])
