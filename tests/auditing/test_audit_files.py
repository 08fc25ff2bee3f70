"""The copy of the data without what is surely wrong."""

import json

import pytest
from made_pairs import made_pairs
from row_files import read

from plaudit.auditing.audit import audit
from plaudit.auditing.audit_files import surely_wrong, write_clean


def test_what_is_left_has_none_of_it_any_more(tmp_path):
    rows, tests = made_pairs(20), made_pairs(3, seed=1)
    rows[4]["prompt"] = tests[0]["prompt"].upper()
    rows += [
        rows[4],
        rows[5],
        rows[5],
        rows[6] | {"rejected": ""},
        rows[7] | {"rejected": rows[7]["chosen"], "label": None},
    ]
    wrong = surely_wrong(audit(rows, tests).findings)
    assert wrong == {"leaked_exact": [4, 20], "identical": [24], "empty": [23], "duplicate_exact": [21, 22]}
    assert write_clean(tmp_path / "clean.jsonl", rows, wrong) == 19
    kept = read(tmp_path / "clean.jsonl")
    assert kept == [row for number, row in enumerate(rows[:20]) if number != 4]
    assert audit(kept, tests).findings == []


def test_an_error_on_the_way_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_clean(tmp_path / "clean.jsonl", [{"prompt": "Q"}, {"prompt": object()}], {})
    assert list(tmp_path.iterdir()) == []


def test_the_first_copy_that_is_not_wrong_already_is_kept(tmp_path):
    row = made_pairs(1)[0]
    wrong = surely_wrong(audit([row | {"rejected": ""}, row | {"rejected": ""}, row, row]).findings)
    assert wrong == {"empty": [0, 1], "duplicate_exact": [3]}
    assert json.dumps(wrong)
