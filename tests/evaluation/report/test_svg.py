"""Pictures as SVG elements of a page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from plaudit.evaluation import plots
from plaudit.evaluation.report.svg import draw_svg

NAME = "<script>alert(1)</script> & $x_$ \u05e9\u05dc\u05d5\u05dd"
FIGURES = {name: {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8} for name in (NAME, "b", "\u65e5\u672c")}


def draw(ax):
    return plots.dots(FIGURES, ax=ax)


@pytest.fixture
def svg():
    return draw_svg(draw, "picture-1", f"Title {NAME}", f"Text {NAME}")


def test_the_same_picture_has_the_same_bytes_whatever_the_style_is(svg):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        again = draw_svg(draw, "picture-1", f"Title {NAME}", f"Text {NAME}")
    assert again == svg


def test_readers_who_cannot_see_it_get_a_name_and_a_text(svg):
    root = ElementTree.fromstring(svg)  # well formed: names are escaped
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "picture-1-title picture-1-desc"
    title, description = root[0], root[1]
    assert (title.get("id"), description.get("id")) == ("picture-1-title", "picture-1-desc")
    assert (title.text, description.text) == (f"Title {NAME}", f"Text {NAME}")
    assert any(each.text == "b" for each in root.iter("text"))


def test_colours_are_those_of_the_page(svg):
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "var(--first)" in svg
    assert "var(--ink)" in svg


def test_nothing_is_left_of_the_file_around_the_picture(svg):
    for word in ("<?xml", "<!DOCTYPE", "<metadata", "<style", "xlink", "http", "font-family", "matplotlib"):
        assert word not in svg


def test_two_pictures_on_a_page_share_no_identifier(svg):
    other = draw_svg(draw, "picture-2", "Title", "Text")
    one, two = (set(re.findall(r'id="([^"]+)"', each)) for each in (svg, other))
    assert one
    assert not one & two


def test_a_picture_of_many_responses_is_small():
    draws = np.random.default_rng(0)
    rewards, lengths = draws.normal(size=20_000), draws.integers(1, 5000, 20_000)
    svg = draw_svg(lambda ax: plots.reward_against_length(rewards, lengths, ax=ax), "picture", "Title", "Text")
    assert len(svg) < 30_000
