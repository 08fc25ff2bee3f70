"""The report: one file, with everything that it was given, and nothing that runs or loads."""

import json
import re
from html.parser import HTMLParser

import pytest
from ensemble_data import ensemble_scores
from report_data import (
    AUDIT,
    BEST_OF_N,
    COMPARISON,
    LEARNING_CURVE,
    LOG,
    PROBES,
    hostile_rows,
    plain_rows,
    scores_of,
)

from plaudit import evaluate
from plaudit.errors import DataError
from plaudit.evaluation.evaluate import evaluate_scores
from plaudit.evaluation.report import report_on_training, write_report
from plaudit.evaluation.scores import ScoredRow, Scores


class Page(HTMLParser):
    """The tags, the identifiers, the text and the tables of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.words, self.open = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def scores():
    return scores_of(plain_rows())


@pytest.fixture
def make(tmp_path):
    def make(**inputs):
        report = write_report(tmp_path / "report.html", **inputs)
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        return report, html, Page(html)

    return make


EVERYTHING = {
    "audit": AUDIT, "probes": PROBES, "comparisons": [COMPARISON], "learning_curve": LEARNING_CURVE,
    "best_of_n": BEST_OF_N,
    "run": {"name": "my-model", "metadata": {"versions": {"torch": "2.9"}}, "log_history": LOG},
}  # fmt: skip


def test_everything_that_is_given_is_shown(make, scores):
    report, html, page = make(scores=[scores], rows=plain_rows(), reference=scores_of(plain_rows(), 1), **EVERYTHING)
    assert report.size == len(html.encode())
    for text in (
        "Reward model: my-model", "The model fails probes.", "In the data: pairs of equal prompts: 2.",
        "The saved model is not verified", "Accuracy by subset", "Reliability",
        "Margins", "Accuracy by length", "Reward and length", "Rewards", "Training: loss", "Training: accuracy",
        "Against theirs", "Would more data help?", "Best of n", "Most confidently wrong", "People prefer",
        '"torch": "2.9"', "style (training data)", "Who goes <b>there</b>?", "Label noise: cannot tell.",
    ):  # fmt: skip
        assert text in page.text, text
    assert "Not in this report" not in page.text
    assert len(page.named("svg")) == html.count("<summary>Numbers") == 13


def test_the_uncertainty_of_an_ensemble_has_its_pictures(make):
    report, _, page = make(scores=[ensemble_scores("follows", 1500)])
    for text in ("Accuracy by spread", "Accuracy by coverage", "Reliability with spread", "Correlation of errors"):
        assert f"Numbers of: {text}" in page.text
    assert "The uncertainty does not earn its place." in [alert.verdict for alert in report.alerts]
    assert len(page.ids) == len(set(page.ids))
    assert "mean correlation of" in page.text
    two = make(scores=[ensemble_scores("told", 200, members=2)])[2].text
    assert "Correlation of errors" not in two
    assert "The errors of the 2 members have a mean correlation of" in two
    few = make(scores=[ensemble_scores("told", 12)])[2].text
    assert "Cannot tell: fewer than 10 prompts" in few
    assert "Reliability with spread" not in few


def test_the_page_is_well_formed_and_its_identifiers_occur_once(make, scores):
    _, _, page = make(scores=[scores], rows=plain_rows(), **EVERYTHING)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for attributes in (attributes for _, attributes in page.tags):
        for name in attributes.get("aria-labelledby", "").split():
            assert name in page.ids
    links = [each["href"].removeprefix("#") for each in page.named("a")]
    assert links
    assert set(links) <= set(page.ids)


def test_the_figures_are_those_of_the_evaluation(make, scores):
    figures = evaluate_scores(scores).overall
    _, _, page = make(scores=[scores])
    for name in ("accuracy", "accuracy_low", "accuracy_high", "longer_wins", "calibration_error"):
        assert f"{figures[name]:.1%}" in page.text


def test_every_picture_has_a_name_a_text_and_its_numbers(make, scores):
    _, html, page = make(scores=[scores], **EVERYTHING)
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    assert len(figures) == len(page.named("svg"))
    for figure in figures:
        assert re.search(r'<svg [^>]*role="img" aria-labelledby="[\w-]+ [\w-]+"><title [^>]*>.+</title><desc', figure)
        assert len(re.findall("<tr>", figure)) > 1


def test_the_same_inputs_give_the_same_bytes(tmp_path, scores):
    for name in ("one", "two"):
        write_report(tmp_path / name, scores=[scores], rows=plain_rows(), **EVERYTHING)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_nothing_runs_and_nothing_loads_whatever_the_data_hold(make):
    rows = hostile_rows()
    _, html, page = make(scores=[scores_of(rows)], rows=rows, title=rows[0]["prompt"], **EVERYTHING)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert all(attributes.get(name, "#").startswith("#") for name in ("href", "src", "xlink:href"))
    (policy,) = [each["content"] for each in page.named("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "url(http" not in html
    assert "@import" not in html


def test_a_text_of_a_response_takes_its_own_direction(make):
    rows = hostile_rows()
    _, html, _ = make(scores=[scores_of(rows)], rows=rows)
    texts = re.findall(r'<div class="text[^>]*>', html)
    assert texts
    assert all('dir="auto"' in each for each in texts)


def test_half_of_a_surrogate_pair_does_not_stop_the_report(make):
    rows = plain_rows(40)
    for row in rows:
        row["chosen"] += " \ud83d"
    make(scores=[scores_of(rows)], rows=rows)


@pytest.mark.parametrize("letter", ["word ", "\u65e5\u672c"])
def test_two_hundred_long_examples_are_at_most_a_megabyte(make, letter):
    rows = plain_rows(1400)
    for row in rows:
        row["chosen"] += letter * 700
        row["rejected"] += letter * 900
    report, html, _ = make(scores=[scores_of(rows)], rows=rows, examples=200, **EVERYTHING)
    assert html.count('class="pair"') == 200
    assert 400_000 < report.size <= 1_000_000
    assert "characters left out" in html


def test_several_files_are_beside_each_other_and_one_alert(make):
    rows = plain_rows()
    report, html, page = make(scores=[scores_of(rows, seed, scale=9) for seed in range(3)], rows=rows)
    assert html.count("models-title") == html.count("reliability-title") == 2  # an identifier and the reference to it
    assert "Of model-0: the comparisons with the greatest reward" in page.text
    (alert,) = [each for each in report.alerts if each.verdict == "The model is overconfident."]
    assert [line.split(":")[0] for line in alert.advice.splitlines()] == ["model-0", "model-1", "model-2"]


def test_models_of_one_name_are_told_apart(make, scores):
    _, _, page = make(scores=[scores, scores])
    assert "evaluated rows (2)" in page.text


def test_without_the_texts_the_rows_are_named_and_the_reason(make, scores):
    _, _, page = make(scores=[scores])
    assert "Texts are not shown: the score file does not name a dataset that can be loaded again." in page.text
    assert "Row " in page.text
    assert "row-1" in page.text


def test_what_was_not_looked_at_is_named_with_the_command(make, scores):
    report, _, page = make(audit=AUDIT | {"findings": []})
    assert report.alerts == []
    assert "Nothing was found in what this report was given." in page.text
    assert "what plaudit eval --scores , plaudit eval --probes , plaudit train --learning_curve would" in page.text


def test_a_benchmark_has_its_official_figures_beside(make):
    rows = [
        ScoredRow(row=n, rewards=[n % 4, 1.5], comparisons=[(0, 1)], subset=subset, fields={"subset": subset})
        for n, subset in enumerate(["alpacaeval-easy", "hep-rust"] * 20)
    ]
    _, _, page = make(scores=[Scores({"model": "m", "benchmark": "rewardbench", "dataset": {"path": "nowhere"}}, rows)])
    assert "rewardbench by its own rule: " in page.text
    assert "alpacaeval-easy 50.0% hep-rust 50.0%" in page.text
    assert "Missing, and in no figure: alpacaeval-length, " in page.text


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("audit", {"findings": []}),
        ("audit", {"findings": 3, "baselines": {}}),
        ("learning_curve", {"losses": [1, 2]}),
        ("comparisons", {"separable": True}),
        ("probes", {"datasets": [{"probes": [{"name": "swap"}]}]}),
    ],
)
def test_a_file_with_another_content_is_named(make, tmp_path, kind, content):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"result.json: expected the JSON of"):
        make(**{kind: [path] if kind == "comparisons" else path})


def test_endless_words_and_invisible_characters_have_a_report(make):
    rows = plain_rows(30)
    for row in rows:
        row["chosen"], row["rejected"] = "]]>\u200b\u202e" + "a" * 100_000, "]]>" + "b" * 100_000
    report, _, page = make(scores=[evaluate(lambda each: [-len(text) for text in each], rows).scores], rows=rows)
    assert page.open == []
    assert report.size < 300_000


def test_results_may_be_files(make, tmp_path, scores):
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    report, _, _ = make(audit=tmp_path / "audit.json")
    assert [alert.verdict for alert in report.alerts] == ["In the data: pairs of equal prompts: 2."]


def test_a_run_that_has_just_ended_has_its_report_in_its_folder(tmp_path, scores):
    (tmp_path / "reward.json").write_text(json.dumps({"verification": {"status": "verified"}}))
    report = report_on_training(tmp_path, LOG, scores=[scores], rows=plain_rows())
    assert report.path == tmp_path / "report.html"
    page = Page(report.path.read_text(encoding="utf-8"))
    assert "Training: loss" in page.text
    assert f"Reward model: {tmp_path.name}" in page.text


@pytest.mark.parametrize("model", [lambda each: [0.0] * len(each), lambda each: [len(text) for text in each]])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_few_rows_and_equal_rewards_have_a_report(make, model, rows):
    pairs = plain_rows(rows)
    _, _, page = make(scores=[evaluate(model, pairs).scores], rows=pairs)
    assert "Reliability" in page.text
    assert "nan" not in page.text


def test_rows_without_a_clear_preference_have_a_report(make):
    pairs = [row | {"label": 0.5} for row in plain_rows(4)]
    _, _, page = make(scores=[scores_of(pairs)], rows=pairs)
    assert "Reliability" in page.text
    assert "nan" not in page.text
