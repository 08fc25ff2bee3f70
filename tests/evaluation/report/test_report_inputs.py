"""The inputs of a report: told apart by their content, and refused by name where they are nothing of the kind."""

import json

import pytest
from report_data import AUDIT, BEST_OF_N, COMPARISON, LEARNING_CURVE, LOG, PROBES, plain_rows, scores_of

from plaudit.errors import DataError
from plaudit.evaluation.report.report_inputs import (
    name_scores,
    read_report_inputs,
    read_results,
    read_run,
)
from plaudit.evaluation.score_files import write_scores


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        return path

    return write


@pytest.fixture
def score_file(tmp_path):
    def write(name="a.jsonl", seed=0):
        write_scores(tmp_path / name, scores_of(plain_rows(), seed))
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (AUDIT, "audit", [AUDIT]),
        (LEARNING_CURVE, "learning_curve", [LEARNING_CURVE]),
        (COMPARISON, "comparisons", [COMPARISON]),
        ({"comparisons": [COMPARISON, COMPARISON]}, "comparisons", [COMPARISON, COMPARISON]),
        ({"datasets": [{}, {"probes": PROBES}]}, "probes", [PROBES]),
        ({"datasets": [{"best_of_n": BEST_OF_N}]}, "best_of_n", [BEST_OF_N]),
    ],
)
def test_a_file_is_told_by_its_content_whatever_its_name(write, content, kind, expected):
    path = write("some.txt", content)
    found = read_report_inputs([path])
    assert found[kind] == ([path] if kind == "comparisons" else path)
    assert read_results(path, kind) == expected


@pytest.mark.parametrize("name", ["scores.jsonl", "anything.gz"])
def test_score_files_are_told_by_their_header(score_file, name):
    path = score_file(name)
    assert read_report_inputs([path])["scores"] == [path]


def test_a_score_file_without_a_header_is_one_too(write):
    path = write("foreign.jsonl", '{"row": 0, "rewards": [1, 2]}\n{"row": 1, "rewards": [3, 2]}\n')
    assert len(name_scores(read_report_inputs([path])["scores"])["evaluated rows"].rows) == 2


def test_a_folder_brings_the_results_that_lie_in_it(write, score_file, tmp_path):
    write("reward.json", {"versions": {}})
    write("config.json", {"model_type": "qwen3"})
    write("tokenizer.json", "not JSON")
    write("audit.json", AUDIT)
    write("learning_curve.json", LEARNING_CURVE)
    score_file("scores.jsonl")
    score_file("scores-2.jsonl.gz", 1)
    found = read_report_inputs([tmp_path])
    assert found["run"] == tmp_path
    assert [each.name for each in found["scores"]] == ["scores-2.jsonl.gz", "scores.jsonl"]
    assert (found["audit"].name, found["learning_curve"].name) == ("audit.json", "learning_curve.json")


def test_a_file_in_the_folder_may_be_named_as_well(write, score_file, tmp_path):
    write("reward.json", {})
    audit = write("audit.json", AUDIT)
    scores = score_file("scores.jsonl")
    found = read_report_inputs([tmp_path, scores, audit])
    assert len(found["scores"]) == 1


def test_a_run_has_its_metadata_and_its_log(write, tmp_path):
    write("reward.json", {"versions": {"torch": "2"}})
    write("trainer_state.json", {"log_history": LOG})
    run = read_run(tmp_path)
    assert run == {"name": tmp_path.name, "metadata": {"versions": {"torch": "2"}}, "log_history": LOG}
    assert read_run(None) == {"name": None, "metadata": {}, "log_history": []}


def test_other_files_are_refused_by_name(write, tmp_path):
    for path, message in (
        (write("other.json", {"a": 1}), "other.json: expected a score file"),
        (write("list.json", [1, 2]), "list.json: expected a score file"),
        (tmp_path / "missing.json", "missing.json, but there is none"),
    ):
        with pytest.raises(DataError, match=message):
            read_report_inputs([path])


@pytest.mark.parametrize(("name", "content"), [("a.dat", b"\xff\xfe\x00"), ("a.jsonl.gz", b"not compressed")])
def test_a_file_of_other_bytes_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        name_scores(read_report_inputs([tmp_path / name])["scores"])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected reward.json, score files or results"):
        read_report_inputs([tmp_path])


def test_two_audits_are_one_too_many(write):
    with pytest.raises(DataError, match="b.json: a report has one audit, and this is the second"):
        read_report_inputs([write("a.json", AUDIT), write("b.json", AUDIT)])


def test_other_models_are_compared_with_the_first_and_the_first_other_is_the_reference(score_file):
    pytest.importorskip("plaudit.evaluation.comparison")
    found = read_report_inputs([score_file()], [score_file("b.jsonl", 1), score_file("c.jsonl", 2)])
    assert [(each.a, each.b) for each in found["comparisons"]] == [("model-0", "model-1"), ("model-0", "model-2")]
    assert found["reference"].name == "b.jsonl"
    assert len(found["scores"]) == 1


def test_a_comparison_may_be_given_as_such(write, score_file):
    path = write("c.json", COMPARISON)
    assert read_report_inputs([score_file()], [path])["comparisons"] == [path]
    with pytest.raises(DataError, match="--compare: expected score files, or what"):
        read_report_inputs([score_file()], [write("a.json", AUDIT)])
    with pytest.raises(DataError, match="expected a score file of this model too"):
        read_report_inputs([write("a.json", AUDIT)], [score_file()])


def test_files_are_named_by_what_tells_them_apart():
    rows = plain_rows()
    one, other = scores_of(rows, 0), scores_of(rows, 1)
    assert list(name_scores([one])) == ["evaluated rows"]
    assert list(name_scores([one, other])) == ["model-0", "model-1"]
    assert list(name_scores([one, one])) == ["evaluated rows (1)", "evaluated rows (2)"]
