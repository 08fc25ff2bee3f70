"""Limits on figures, as `plaudit eval --fail_under` and `--fail_over` take them."""

import math

import pytest

from plaudit.errors import ConfigError
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.limits import Limit, failures, parse_limit


def evaluation(**figures):
    return Evaluation("pairs.jsonl", None, figures, {}, [])


def test_a_limit_is_read_from_its_text():
    assert parse_limit("accuracy=0.7", upper=False) == Limit("accuracy", 0.7)
    assert parse_limit("temperature=inf", upper=True) == Limit("temperature", math.inf, upper=True)


def test_the_value_itself_is_allowed():
    limits = [Limit("accuracy", 0.7), Limit("accuracy", 0.7, upper=True)]
    assert [limit.holds({"accuracy": 0.7}) for limit in limits] == [True, True]
    assert [limit.holds({"accuracy": 0.6}) for limit in limits] == [False, True]
    assert [limit.holds({"accuracy": 0.8}) for limit in limits] == [True, False]


def test_a_figure_that_is_not_defined_keeps_no_limit():
    for upper in (False, True):
        assert not Limit("length_correlation", 0.0, upper).holds({"length_correlation": math.nan})


def test_each_limit_that_is_not_kept_has_a_line():
    limits = [Limit("accuracy", 0.8), Limit("margin", 0.1), Limit("log_loss", 0.5, upper=True)]
    assert failures(evaluation(accuracy=0.69995, margin=0.2, log_loss=0.613262), limits) == [
        "pairs.jsonl: accuracy is 0.69995, under 0.8",
        "pairs.jsonl: log_loss is 0.613262, over 0.5",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy=0.7", "there is no figure 'acuracy'. Did you mean accuracy\\? There are: rows, prompts,"),
        ("x=1", "there is no figure 'x'. There are: rows"),
        ("accuracy", "expected METRIC=VALUE with a number, such as accuracy=0.7"),
        ("accuracy=high", "expected METRIC=VALUE with a number"),
        ("accuracy=nan", "expected METRIC=VALUE with a number"),
        ("accuracy=70", "expected a share from 0 to 1, such as accuracy=0.7 for 70%"),
    ],
)
def test_a_limit_that_no_evaluation_could_keep_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_limit(text, upper=False)
