"""The pictures: each draws the numbers that it is given on the axes that it is given."""

import subprocess
import sys

import numpy as np
import pytest
from ensemble_data import ensemble_scores
from matplotlib import colors
from matplotlib.figure import Figure
from report_data import BEST_OF_N, COMPARISON, LEARNING_CURVE, LOG, PROBES

from plaudit.evaluation import plots
from plaudit.evaluation.evaluate import evaluate_scores


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def draws():
    return np.random.default_rng(0)


FIGURES = {
    "easy": {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "longer_wins": 0.6},
    "hard $x$": {"accuracy": 0.4, "accuracy_low": 0.3, "accuracy_high": 0.5, "longer_wins": 0.5},
}
MARGINS = np.linspace(-2, 3, 200)
UNCERTAINTY = evaluate_scores(ensemble_scores("told", 300)).uncertainty
PICTURES = {
    "reliability_diagram": (MARGINS,),
    "margin_histogram": (MARGINS,),
    "accuracy_by_length_difference": (MARGINS, np.arange(-100, 100)),
    "reward_against_length": (MARGINS, np.arange(1, 201)),
    "reward_distribution": ({"now": MARGINS, "before": 2 * MARGINS},),
    "dots": (FIGURES,),
    "probe_forest": (PROBES,),
    "comparison_forest": (COMPARISON,),
    "learning_curve": (LEARNING_CURVE,),
    "best_of_n": (BEST_OF_N,),
    "training_log": (LOG,),
    "accuracy_by_spread": (UNCERTAINTY,),
    "accuracy_by_coverage": (UNCERTAINTY,),
    "error_correlations": (UNCERTAINTY.to_dict(),),
    "reliability_with_spread": (UNCERTAINTY.to_dict(),),
}


def test_every_picture_is_tested_here():
    assert PICTURES.keys() == set(plots.__all__)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_on_the_axes_with_a_title_and_names_of_both_quantities(name, ax):
    assert getattr(plots, name)(*PICTURES[name], ax=ax) is ax
    assert ax.get_title(loc="left")
    assert ax.get_xlabel()
    assert ax.get_ylabel() or ax.get_yticklabels()
    ax.figure.draw_without_rendering()


def test_without_axes_there_is_a_new_figure():
    code = (
        "import matplotlib; matplotlib.use('agg'); from plaudit.evaluation.plots import margin_histogram\n"
        "print(margin_histogram([1.0, -1.0]).get_title(loc='left'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "Margins\n"


def test_without_matplotlib_the_error_names_the_extra():
    code = "import sys; sys.modules['matplotlib'] = None; import plaudit.evaluation.plots"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError" in run.stderr
    assert "pip install 'plaudit[report]'" in run.stderr


def labels(ax):
    return ax.get_legend_handles_labels()[1]


def test_a_calibrated_model_lies_on_the_diagonal_after_its_temperature(ax, draws):
    logits = draws.normal(0, 1.5, 4000)
    right = draws.uniform(size=4000) < 1 / (1 + np.exp(-logits))
    plots.reliability_diagram(3 * logits, right.astype(float), ax=ax)
    assert "perfect" in labels(ax)
    raw, calibrated = (line.get_xydata() for line in ax.lines[1:])
    assert np.abs(calibrated[:, 0] - calibrated[:, 1]).mean() < 0.03 < np.abs(raw[:, 0] - raw[:, 1]).mean()


def test_without_a_temperature_that_helps_there_is_one_line(ax):
    plots.reliability_diagram([-1.0] * 30 + [1.0] * 10, ax=ax)
    assert labels(ax) == ["perfect", "rewards as they are"]


def test_the_shares_of_right_and_wrong_margins_are_in_the_legend(ax):
    plots.margin_histogram([1.0, 2.0, 3.0, -1.0], ax=ax)
    assert labels(ax) == ["wrong (25.0%)", "right (75.0%)"]


def test_names_of_subsets_are_text_and_no_mathematics(ax):
    plots.dots(FIGURES, ax=ax)
    names = ax.get_yticklabels()
    assert [each.get_text() for each in names] == ["easy", "hard $x$"]
    assert not any(each.get_parse_math() for each in names)
    assert set(labels(ax)) == {"chance", "longer wins"}


def test_a_prediction_and_a_ceiling_are_drawn_where_they_are_known(ax):
    plots.learning_curve(LEARNING_CURVE, ceiling=0.45, ax=ax)
    assert {"twice the data", "least possible"} <= set(labels(ax))
    other = Figure().subplots()
    plots.learning_curve(LEARNING_CURVE | {"predicted": None}, ax=other)
    assert "twice the data" not in labels(other)


def test_probes_are_told_apart_by_their_verdict(ax):
    plots.probe_forest(PROBES, ax=ax)
    assert set(labels(ax)) == {"passed", "cannot tell", "failed"}
    assert len(ax.get_yticklabels()) == 3  # a swap shifts nothing


def test_a_comparison_of_a_benchmark_has_a_row_for_each_figure_of_its_rule(ax):
    rule = {"a": 0.7, "b": 0.6, "difference": 0.1, "low": 0.0, "high": 0.2}
    plots.comparison_forest(COMPARISON | {"composites": {"Chat": rule, "odd": rule}}, ax=ax)
    assert [each.get_text() for each in ax.get_yticklabels()] == ["overall", "Chat, own rule", "even", "odd"]


def test_best_of_n_is_drawn_as_shares_of_what_was_possible(ax):
    plots.best_of_n(BEST_OF_N, ax=ax)
    reward, gold = (line.get_ydata() for line in ax.lines)
    assert reward[-1] == 1
    assert gold[-1] == pytest.approx(0.7)


def test_many_responses_make_few_marks(ax, draws):
    plots.reward_against_length(draws.normal(size=20_000), draws.integers(1, 5000, 20_000), ax=ax)
    assert len(ax.patches) <= 5
    assert not ax.collections


def test_marks_and_lines_differ_from_the_page_for_every_reader():
    for name in ("FIRST", "SECOND", "BASELINE", "INK", "MUTED"):
        red, green, blue = (
            x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colors.to_rgb(getattr(plots, name))
        )
        contrast = 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
        assert contrast > 3, name  # WCAG 2.2, 1.4.11


def test_rankings_by_spread_and_by_difference_meet_where_all_comparisons_are_answered(ax):
    plots.accuracy_by_coverage(UNCERTAINTY, ax=ax)
    ends = [line.get_ydata()[-1] for line in ax.lines]
    assert ends == pytest.approx([ends[0]] * 2)
    assert labels(ax) == ["by spread", "by difference"]


def test_the_matrix_of_correlations_holds_a_number_for_each_two_members(ax):
    plots.error_correlations(UNCERTAINTY, ax=ax)
    assert len(ax.texts) == len(ax.patches) == 25
    assert ax.texts[0].get_text() == "1.00"
    assert ax.patches[0].get_alpha() > ax.patches[1].get_alpha()
