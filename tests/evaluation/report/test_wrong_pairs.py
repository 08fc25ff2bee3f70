"""The most confidently wrong comparisons: which, with which texts, and which words are marked."""

import json

import pytest
from report_data import plain_rows, scores_of
from row_files import write

from plaudit import evaluate
from plaudit.errors import DataError
from plaudit.evaluation.report.wrong_pairs import load_texts, most_confidently_wrong, set_side_by_side
from plaudit.evaluation.scores import Scores


def reward_in(sequences):
    return [float(each.split("=")[1]) for each in sequences]


def group(prompt, *rewards, ranks):
    return {"prompt": prompt, "completions": [f" ={reward}" for reward in rewards], "ranks": list(ranks)}


ROWS = [
    {"prompt": "a", "chosen": " =1", "rejected": " =3"},
    {"prompt": "b", "chosen": " =1", "rejected": " =0"},
    group("c", 0, 9, 5, ranks=(0, 1, 2)),
    {"prompt": "d", "chosen": " =1", "rejected": " =2", "label": 0.1},
    {"prompt": "e", "chosen": " =2", "rejected": " =2"},
    {"prompt": "f", "chosen": " =1", "rejected": " =3", "id": "last", "subset": "s"},
]


def test_the_greatest_differences_come_first_one_for_each_row_and_equal_ones_by_row():
    pairs = most_confidently_wrong(evaluate(reward_in, ROWS).scores)
    assert [(each.row, each.rewards) for each in pairs] == [(2, (0, 9)), (0, (1, 3)), (5, (1, 3))]
    assert pairs[0].places == (0, 1)
    assert pairs[1].confidence == pytest.approx(0.8808, abs=1e-4)
    assert (pairs[2].id, pairs[2].subset) == ("last", "s")


def test_no_more_pairs_than_asked_for_and_none_where_all_are_right():
    assert len(most_confidently_wrong(evaluate(reward_in, ROWS).scores, 2)) == 2
    assert most_confidently_wrong(evaluate(reward_in, ROWS[1:2]).scores) == []


def test_texts_are_those_of_the_dataset_that_was_scored(tmp_path):
    rows = plain_rows(30)
    path = write(tmp_path / "rows.jsonl", rows)
    scores = evaluate(lambda each: [0.0] * len(each), str(path)).scores
    texts = load_texts(scores, [3, 7])
    assert texts[7] == (rows[7]["prompt"], [rows[7]["chosen"].strip(), rows[7]["rejected"].strip()])
    assert load_texts(scores, [3, 7], rows) == texts


def test_conversations_are_written_with_their_roles():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    row = {
        "prompt": [*messages, {"role": "user", "content": "Bye"}],
        "chosen": [{"role": "assistant", "content": "Bye."}],
        "rejected": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
    }
    prompt, responses = load_texts(scores_of([row]), [0], [row])[0]
    assert prompt == "user: Hi\nassistant: Yes?\nuser: Bye"
    assert responses == ["Bye.", '{"tool_calls": [{"name": "f"}]}']


def test_a_dataset_that_has_changed_or_is_not_named_is_refused(tmp_path):
    rows = plain_rows(30)
    path = write(tmp_path / "rows.jsonl", rows)
    scores = evaluate(lambda each: [0.0] * len(each), str(path)).scores
    write(path, rows[::-1])
    with pytest.raises(DataError, match="has other texts, or another order, than was scored"):
        load_texts(scores, [0])
    path.unlink()
    with pytest.raises(DataError, match="expected a file or folder"):
        load_texts(scores, [0])
    with pytest.raises(DataError, match="does not name a dataset"):
        load_texts(scores_of(rows), [0])


def test_texts_of_a_benchmark_come_from_its_copy(tmp_path):
    row = {"id": 1, "prompt": "Q", "chosen": "right", "rejected": "wrong", "subset": "xstest-should-respond"}
    path = tmp_path / "filtered.jsonl"
    path.write_text(json.dumps(row) + "\n")
    scored = scores_of(plain_rows(1)).rows
    header = {"benchmark": "rewardbench", "dataset": {"path": str(path), "rows": 1}}
    assert load_texts(Scores(header, scored), [0])[0] == ("user: Q", ["right", "wrong"])
    with pytest.raises(DataError, match="now has 1 rows; 2 were scored"):
        load_texts(Scores(header, scored * 2), [0])


def marked(passage):
    return [text.strip() for text, changed in passage if changed]


def whole(passage):
    return "".join(text for text, _ in passage)


def test_words_that_the_other_response_lacks_are_marked():
    one, other = "  The capital of Japan is Tokyo, surely.\n", "The capital of Japan is Lima."
    better, worse = set_side_by_side(one, other, 100)
    assert (marked(better), marked(worse)) == (["Tokyo, surely"], ["Lima"])
    assert (whole(better), whole(worse)) == (one, other)


def test_characters_of_scripts_without_spaces_are_words():
    better, worse = set_side_by_side("日本の首都は東京です", "日本の首都は京都です", 100)
    assert (marked(better), marked(worse)) == (["東"], ["都"])


def test_nothing_is_marked_where_all_would_be():
    better, worse = set_side_by_side("Yes.", "I would rather speak about the weather", 100)
    assert marked(better) == marked(worse) == []


def test_a_long_response_is_cut_around_the_first_difference():
    start, end = "same words " * 300, " other words" * 300
    better, worse = set_side_by_side(start + "good" + end, start + "bad" + end, 500)
    for passage, text in ((better, start + "good" + end), (worse, start + "bad" + end)):
        (before, _), *pieces, (after, _) = passage
        left = [int(each.split()[0].strip("[").replace(",", "")) for each in (before, after)]
        assert len(whole(pieces)) == 500
        assert sum(left) + 500 == len(text)
    assert "good" in whole(better)
    assert "bad" in whole(worse)
