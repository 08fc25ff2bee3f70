import logging

import pytest

from plaudit.data.tokenization_report import TokenizationReport, TokenizationRules
from plaudit.errors import DataError


def report(kept=0, overlong=0, identical=0, tokens=0, *, split="train", streaming=False, policy="drop", **rules):
    """A report that has counted these once."""
    new = TokenizationReport(split, TokenizationRules(overlong=policy, **rules), streaming=streaming)
    new.add(kept=kept, overlong=overlong, identical=identical, tokens=tokens)
    return new


@pytest.fixture
def messages(caplog):
    """The messages that have been logged, as (level, text)."""
    caplog.set_level(logging.INFO, logger="plaudit")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_counts_add_up():
    both = report(kept=2, overlong=2, identical=1, tokens=9)
    both.add(kept=1, overlong=0, identical=1, tokens=3)
    assert (both.pairs, both.kept, both.dropped) == (7, 3, 4)
    assert (both.overlong, both.identical, both.tokens) == (2, 2, 12)


def test_dropped_comparisons_are_one_warning_with_causes_and_advice(messages):
    report(kept=2, overlong=2, identical=1, tokens=9, split="test", max_length=4).log()
    assert messages() == [(
        "WARNING",
        "test: 2 pairs, 9 tokens; dropped 3 of 5 (60.0%): 2 longer than max_length=4, 1 with the same ids in chosen "
        "and rejected. Raise `max_length` (None for no limit), or set `overlong` to 'truncate'."
    )]  # fmt: skip


def test_nothing_dropped_is_logged_without_a_warning(messages):
    report(kept=3, tokens=21).log()
    assert messages() == [("INFO", "train: 3 pairs, 21 tokens")]


@pytest.mark.parametrize(("overlong", "identical", "advises"), [(2, 0, False), (3, 0, True), (0, 3, False)])
def test_a_warning_gives_advice_only_where_length_drops_more_than_a_fifth(messages, overlong, identical, advises):
    report(kept=10 - overlong - identical, overlong=overlong, identical=identical, max_length=1).log()
    ((level, text),) = messages()
    assert level == "WARNING"
    assert f"dropped {overlong + identical} of 10 ({overlong + identical}0.0%)" in text
    assert (f"{overlong} longer than max_length=1" in text) == (overlong > 0)
    assert (f"{identical} with the same ids in chosen and rejected" in text) == (identical > 0)
    assert ("Raise `max_length`" in text) == advises


def test_truncation_is_not_advised_where_it_is_the_policy():
    with pytest.raises(DataError, match=r"no pair is left of 2 .*Raise `max_length`: the shared prompts are shorter"):
        report(overlong=2, policy="truncate").check()


def test_more_overlong_comparisons_than_allowed_are_an_error():
    rules = {"max_length": 4, "overlong_max_fraction": 0.4}
    report(kept=2, overlong=2, identical=1, **rules).check()  # just 40%; the identical pair does not count
    with pytest.raises(DataError) as error:
        report(kept=1, overlong=2, split="test", **rules).check()
    for part in ("test: 2 of 3 pairs (67%)", "max_length=4", "overlong_max_fraction=0.4", "'truncate'"):
        assert part in str(error.value)


def test_a_split_without_a_comparison_left_is_an_error():
    with pytest.raises(DataError, match=r"no pair is left of 2 \(2 longer than max_length=4\)\. Raise `max_length`"):
        report(overlong=2, max_length=4).check()
    with pytest.raises(DataError, match=r"no pair is left of 1 \(1 with the same ids in chosen and rejected\)"):
        report(identical=1).check()
    with pytest.raises(DataError, match="the test split has no rows that make a pair"):
        report(split="test").check()


def test_a_stream_is_checked_once_enough_of_it_is_read():
    rules = {"streaming": True, "max_length": 1, "overlong_max_fraction": 0.5}
    few = report(kept=4, overlong=36, **rules)
    with pytest.raises(DataError, match=r"90%.*overlong_max_fraction=0\.5"):
        few.add(kept=6, overlong=54, identical=0, tokens=0)


def test_a_pass_over_a_stream_counts_from_zero_and_is_logged(messages):
    counts = report(kept=5, tokens=50, streaming=True)
    with counts.one_pass():
        counts.add(kept=2, overlong=0, identical=0, tokens=20)
    assert (counts.kept, counts.tokens) == (2, 20)
    assert messages() == [("INFO", "train: 2 pairs, 20 tokens")]
    with counts.one_pass():
        pass
    assert "loader workers" in messages()[-1][1]


def test_a_pass_over_a_dataset_leaves_its_counts(messages):
    counts = report(kept=5)
    with counts.one_pass():
        pass
    assert (counts.kept, messages()) == (5, [])


def test_a_look_into_a_stream_leaves_its_counts():
    counts = report(kept=5, tokens=50, streaming=True)
    with counts.unchanged():
        counts.add(kept=2, overlong=1, identical=1, tokens=20)
    assert (counts.pairs, counts.overlong, counts.identical, counts.tokens) == (5, 0, 0, 50)
