"""The report in Chromium: light and dark, narrow, by keyboard, without script, with hostile data, without network."""

import pytest
from chromium import colour, contrast, luminance, needs_chromium, started_chromium
from report_data import AUDIT, BEST_OF_N, COMPARISON, LEARNING_CURVE, LOG, PROBES, hostile_rows, scores_of

from plaudit.evaluation.report import write_report

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    rows = hostile_rows()
    path = tmp_path_factory.mktemp("report") / "report.html"
    run = {"name": "run", "metadata": {"versions": {"torch": "2.9"}}, "log_history": LOG}
    write_report(
        path, run=run, scores=[scores_of(rows), scores_of(rows, 1)], rows=rows, audit=AUDIT, probes=PROBES,
        comparisons=[COMPARISON], learning_curve=LEARNING_CURVE, best_of_n=BEST_OF_N,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def browser():
    with started_chromium() as browser:
        yield browser


@pytest.fixture
def show(browser, report):
    """Open the report in a new window; at the end, nothing has been requested and nothing has been reported."""
    contexts, problems = [], []

    def show(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: problems.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(report.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert problems == [report.as_uri()] * len(contexts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_pictures_can_be_read_in_both_modes(show, scheme):
    page = show(color_scheme=scheme)
    paper = colour(page, "body", "backgroundColor")
    assert (luminance(paper) < 0.5) == (scheme == "dark")
    for selector, name, least in (
        ("h1", "color", 7), (".quiet", "color", 4.5), ("svg text", "fill", 7), ("nav a", "color", 4.5),
        (".grave .level", "color", 4.5), ("figcaption", "color", 4.5), ("summary", "color", 4.5),
        ("svg path[style*='--first']", "stroke", 3), ("svg path[style*='--second']", "stroke", 3),
    ):  # fmt: skip
        assert contrast(colour(page, selector, name), paper) >= least, selector
    assert contrast(colour(page, "mark"), colour(page, "mark", "backgroundColor")) >= 4.5


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_does_not_scroll_sideways(show, width):
    page = show(viewport={"width": width, "height": 800})
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.eval_on_selector_all(".scroll", "all => all.filter(each => each.scrollWidth > each.clientWidth).length")
    assert (wide > 0) or width > 400  # tables scroll in a box of their own


def test_everything_is_reached_by_keyboard(show):
    page = show()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # it is visible with the focus
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    page.keyboard.press("Tab")
    assert "scroll" in page.evaluate("document.activeElement.className")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_pictures_have_their_names_and_texts_for_a_screen_reader(show):
    page = show()
    pictures = page.get_by_role("img")
    assert pictures.count() == page.locator("svg").count() > 10
    assert page.get_by_role("img", name="Reliability").count() == 1
    assert page.get_by_role("heading", name="What is wrong").is_visible()


def test_it_is_whole_without_javascript(show):
    page = show(java_script_enabled=False)
    page.locator("summary").first.click()
    assert page.locator("details").first.locator("table").is_visible()


def test_markup_in_the_data_is_text_and_right_to_left_text_runs_so(show):
    page = show()
    assert page.title() == "Reward model: run"
    assert page.locator("script, main img").count() == 0
    assert page.locator(".text", has_text="<script>").count() > 2
    hebrew = page.locator(".sides .text", has_text="\u05e9\u05dc\u05d5\u05dd")
    assert hebrew.first.evaluate("each => getComputedStyle(each).direction") == "rtl"
    english = page.locator(".sides > :first-child .text")
    assert english.first.evaluate("each => getComputedStyle(each).direction") == "ltr"


def test_the_policy_forbids_scripts_and_requests(browser, report):
    """What would be forbidden is tried on a page of its own, since it leaves messages."""
    page = browser.new_page()
    blocked, loaded = [], []
    page.on("requestfailed", lambda request: blocked.append((request.url, request.failure)))
    page.on("requestfinished", lambda request: loaded.append(request.url))
    html = report.read_text(encoding="utf-8")
    attack = '<script>document.title = "broken in"</script><img src="https://example.org/x" onerror="document.title=1">'
    broken = report.with_name("broken.html")
    broken.write_text(html.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    page.goto(broken.as_uri())
    assert page.title() == "Reward model: run"
    assert loaded == [broken.as_uri()]
    assert blocked == [("https://example.org/x", "csp")]
    page.close()


def test_print_shows_the_page_in_light_colours(show):
    page = show(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(colour(page, "body", "backgroundColor")) == 1
    assert not page.locator("nav").is_visible()
