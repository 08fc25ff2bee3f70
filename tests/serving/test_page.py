"""The page of a server in Chromium: comparisons, curves, files, history; hostile texts, keyboard, narrow and dark."""

import gzip
import hashlib
import io
import json
import random
import re
import zipfile

import pytest
import requests
from chromium import colour, contrast, luminance, needs_chromium, started_chromium
from page_stub import MAX_LENGTH, PageStub, pieces_of, reward_of, softmax, std_of
from running_server import running

from plaudit.serving.application import create_application
from plaudit.serving.authentication import ApiKeys

pytestmark = [pytest.mark.slow, needs_chromium]

VIEWS = ["compare", "curve", "file", "history"]
ATTACK = "<img/src=x/onerror=alert(document.domain)>"  # without spaces, it is one token of the stub
REVERSED = "abc\u202edcba"
PROMPT = "How do I get wine out of cotton? "
GOOD, POOR = "Blot it, rinse it with cold water and wash it.", "Great question! Wine is a beloved drink."
TOO_LONG = " ".join(["word"] * (MAX_LENGTH + 1))
ON_VIOLATION = "document.addEventListener('securitypolicyviolation', each => console.error(each.violatedDirective))"


@pytest.fixture(scope="module")
def browser():
    with started_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def started_stub():
    stub = PageStub()
    with stub.serve() as stub.url:
        yield stub


@pytest.fixture
def stub(started_stub):
    started_stub.reset()
    return started_stub


@pytest.fixture
def show(browser, stub):
    """Open the page in a window of its own; nothing but its server was asked, and nothing was reported, at the end."""
    contexts, problems = [], []

    def show(url=stub.url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.add_init_script(ON_VIOLATION)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith(url) or problems.append(request.url))
        page.on("console", lambda said: said.text.startswith("Failed to load resource") or problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(url)
        page.wait_for_selector("#facts strong")
        return page

    yield show
    for context in contexts:
        context.close()
    assert problems == []


def compare(page, prompt, *responses):
    """Compare in the form, as a person does."""
    page.click("#tab-compare")
    page.fill("#compare textarea >> nth=0", prompt)
    while page.locator("#responses > li").count() < len(responses):
        page.click("#add-response")
    for number, response in enumerate(responses):
        page.fill(f"#response-{number}", response)
    page.click("#compare-form .primary")
    page.wait_for_selector("#compare-form:not([aria-busy])")


def ranked_numbers(page):
    """Reward and win probability of each response, in the order of the page."""
    return [float(each) for each in page.locator("#ranking data").evaluate_all("all => all.map(each => each.value)")]


def draw_curve(page, prompt, response):
    page.click("#tab-curve")
    page.fill("#curve textarea >> nth=0", prompt)
    page.fill("#curve-response", response)
    page.click("#curve-form .primary")
    page.wait_for_selector("#chart svg")


def score_file(page, path, done="#file-download:not([hidden])"):
    page.click("#tab-file")
    page.set_input_files("#file-input", path)
    page.wait_for_selector(done)


def results(page):
    """The rows of the file that is offered for download."""
    with page.expect_download() as download:
        page.click("#file-download")
    return [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]


def as_lines(path, rows):
    """Write rows, dicts or raw bytes, to a JSONL file."""
    raw = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(raw))
    return path


# Compare


def test_responses_stand_best_first_with_the_numbers_of_the_server(show):
    page = show()
    responses = [POOR, GOOD, "It depends on the wine TRUNCATED."]
    compare(page, PROMPT, *responses)
    rewards = [reward_of(PROMPT + response) for response in responses]
    order = sorted(range(3), key=lambda n: -rewards[n])
    shown = ranked_numbers(page)
    assert shown[::2] == pytest.approx([rewards[n] for n in order])
    assert shown[1::2] == pytest.approx([softmax(rewards)[n] for n in order])
    cards = page.locator("#ranking > li").all_inner_texts()
    for place, n in enumerate(order):
        assert f"{rewards[n]:.3f}".replace("-", "\u2212") in cards[place]
        assert f"Response {n + 1}" in cards[place]
        assert f"{len(pieces_of(PROMPT + responses[n]))} tokens" in cards[place]
        assert ("truncated" in cards[place]) == (n == 2)
    gap = f"{rewards[order[0]] - rewards[order[1]]:.3f}"
    assert f"+{gap} to the next" in cards[0]
    assert f"\u2212{gap} to the best" in cards[1]
    assert page.inner_text("#compare-summary").startswith(f"Response {order[0] + 1} is the best of 3")
    assert "Model reward-0, weights 3f9c1a" in page.inner_text("#compare-source")


def test_rewards_are_drawn_on_a_line_from_the_lowest_to_the_highest(show):
    page = show()
    responses = [POOR, GOOD, "It depends on the wine."]
    compare(page, PROMPT, *responses)
    rewards = sorted((reward_of(PROMPT + response) for response in responses), reverse=True)
    low, high = (f"{end:.3f}".replace("-", "\u2212") for end in (rewards[-1], rewards[0]))
    assert f"range from {low} to {high};" in page.inner_text("#compare-summary")
    ranges = page.get_by_role("img", name=f"from the lowest reward, {low}, to the highest, {high}")
    boxes = page.locator(".range circle").evaluate_all("all => all.map(each => each.getBoundingClientRect().x)")
    assert ranges.count() == len(boxes) == 3
    middle = (rewards[1] - rewards[2]) / (rewards[0] - rewards[2])
    assert boxes[1] == pytest.approx(boxes[2] + middle * (boxes[0] - boxes[2]), abs=1)
    assert boxes[0] > boxes[2] + 50
    assert ranges.nth(1).get_attribute("aria-label").startswith(f"{100 * middle:.1f}% of the way")


def test_equal_rewards_stand_at_the_same_place(show):
    page = show()
    compare(page, PROMPT, GOOD, GOOD)
    assert page.inner_text("#compare-summary").startswith("All 2 responses have the same reward, ")
    boxes = page.locator(".range circle").evaluate_all("all => all.map(each => each.getBoundingClientRect().x)")
    assert boxes[0] == boxes[1]
    assert page.get_by_role("img", name="All rewards are equal").count() == 2


def test_identical_responses_are_noted(show):
    page = show()
    compare(page, PROMPT, GOOD, POOR, GOOD)
    assert page.locator("#ranking > li", has_text="same text as response 3").count() == 1
    assert page.locator("#ranking > li", has_text="same text as response 1").count() == 1


def test_between_2_and_16_responses_are_compared(show):
    page = show()
    assert page.locator("#responses .remove:visible").count() == 0
    for _ in range(14):
        page.click("#add-response")
    assert page.is_disabled("#add-response")
    page.click("#responses .remove >> nth=3")
    assert page.locator("#responses label").all_inner_texts() == [f"Response {n}" for n in range(1, 16)]


def test_a_model_of_conversations_gets_messages(show, stub):
    stub.trained_on = "conversations"
    page = show()
    page.select_option("#compare .message select", "system")
    page.fill("#compare .message textarea", "Be brief.")
    page.click("#compare .add-message")
    page.select_option("#compare .message:last-child select", "user")
    page.fill("#compare .message:last-child textarea", "2+2?")
    page.fill("#response-0", "4")
    page.fill("#response-1", "5")
    page.click("#compare-form .primary")
    page.wait_for_selector("#ranking > li")
    ((_, body),) = stub.bodies
    assert body["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert body["responses"] == [[{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "5"}]]


def test_a_model_of_texts_gets_texts_and_the_options_are_sent(show, stub):
    stub.models = 2
    page = show()
    page.select_option("#model", label="reward-1")
    page.check("#truncate")
    page.check("#calibrated")
    compare(page, PROMPT, GOOD, POOR)
    expected = {"model": "reward-1", "truncation": "left", "calibrated": True, "prompt": PROMPT}
    assert stub.bodies == [("/v1/rank", {**expected, "responses": [GOOD, POOR]})]


@pytest.mark.parametrize("truncates", [False, True])
def test_texts_are_truncated_from_the_start_where_the_server_does_so(show, stub, truncates):
    stub.truncates = truncates
    page = show()
    assert page.is_checked("#truncate") == truncates
    compare(page, PROMPT, GOOD, POOR)
    ((_, body),) = stub.bodies
    assert body["truncation"] == ("left" if truncates else "error")


def test_a_form_that_the_model_was_not_trained_on_is_noted(show, stub, tmp_path):
    stub.trained_on = "conversations"
    page = show()
    note = page.locator("#compare .form-note")
    assert note.inner_text() == ""
    page.check("#compare input[value=text]")
    assert note.inner_text().startswith("reward-0 was trained on conversations: the rewards of texts mean little")
    page.check("#compare input[value=messages]")
    assert note.inner_text() == ""
    rows = [{"text": "a"}, {"prompt": "a", "response": "b"}]
    score_file(page, as_lines(tmp_path / "rows.jsonl", rows))
    assert "the rewards of 1 row of texts mean little" in page.inner_text("#file-form-note")
    stub.trained_on = "texts"
    page.reload()
    page.wait_for_selector("#facts strong")
    page.click("#tab-compare")
    page.check("#compare input[value=messages]")
    assert note.inner_text() == "reward-0 was trained on texts: the rewards of conversations mean little."


def test_a_model_whose_training_is_not_known_has_no_note(show, stub):
    stub.trained_on = None
    page = show()
    page.check("#compare input[value=messages]")
    assert page.inner_text("#compare .form-note") == ""


def test_one_model_needs_no_choice_and_an_example_needs_no_words(show):
    page = show()
    assert not page.is_visible("#model")
    page.click("#compare-example")
    page.wait_for_selector("#ranking > li")
    assert page.locator("#ranking > li").count() == 2


def test_an_error_stands_beside_the_field_that_caused_it(show):
    page = show()
    compare(page, PROMPT, GOOD, TOO_LONG)
    error = page.locator("#response-1 ~ .error")
    tokens = len(pieces_of(PROMPT + TOO_LONG))
    assert error.inner_text() == f"this response has {tokens} tokens, and the model takes {MAX_LENGTH}."
    assert page.get_attribute("#response-1", "aria-invalid") == "true"
    page.fill("#response-1", "")
    page.click("#compare-form .primary")
    assert "empty" in error.inner_text()
    compare(page, PROMPT, GOOD, POOR + " FAULT")
    assert error.inner_text() == ""
    assert page.inner_text("#compare-form .general") == "The model failed on this request."
    assert not page.is_visible("#ranking")


def test_a_key_that_is_refused_is_told(show, stub):
    page = show()
    stub.key_refused = True
    compare(page, PROMPT, GOOD, POOR)
    assert page.inner_text("#compare-form .general") == "The key was refused. Reload the page to sign in again."


# Uncertainty


def interval(text):
    """The reward of a text and its standard deviation, as the page writes them."""
    return f"{reward_of(text):.3f}\u00a0±\u00a0{std_of(text):.3f}".replace("-", "\u2212")


def test_the_rewards_of_an_ensemble_have_intervals_in_every_view(show, stub, tmp_path):
    stub.is_ensemble = True
    page = show()
    assert "rewards with standard deviations" in page.inner_text("#facts")
    page.click("#tab-history")
    page.check("#keep")
    compare(page, PROMPT, GOOD, POOR)
    best, worst = sorted((PROMPT + GOOD, PROMPT + POOR), key=reward_of, reverse=True)
    assert page.locator("#ranking data").all_inner_texts()[::2] == [interval(best), interval(worst)]
    assert interval(best) in page.inner_text("#compare-summary")
    assert "one standard deviation" in page.inner_text("#compare-source")
    page.click("#tab-history")
    assert interval(best) in page.inner_text("#entries")
    draw_curve(page, PROMPT, GOOD)
    assert interval(PROMPT + GOOD) in page.inner_text("#curve-summary")
    assert interval(PROMPT + GOOD) in page.inner_text("#readout")
    assert interval(PROMPT + GOOD) in page.get_by_role("slider").get_attribute("aria-valuetext")
    assert page.locator("#chart .band").count() == 1
    page.click("#curve-table summary")
    assert page.locator("#curve-table tbody td:nth-child(3)").last.inner_text() == interval(PROMPT + GOOD)
    score_file(page, as_lines(tmp_path / "rows.jsonl", [{"text": GOOD}, {"chosen": GOOD, "rejected": POOR}]))
    single, pair = results(page)
    assert single["reward_std"] == pair["chosen_reward_std"] == std_of(GOOD)
    assert pair["rejected_reward_std"] == std_of(POOR)
    assert f"{(2 * std_of(GOOD) + std_of(POOR)) / 3:.3f}" in page.inner_text("#file-figures")


@pytest.mark.parametrize("width", [400, 1280])
def test_an_interval_is_drawn_as_a_whisker_on_a_line_that_holds_them_all(show, stub, width):
    stub.is_ensemble = True
    page = show(viewport={"width": width, "height": 800})
    responses = [GOOD, POOR, "It depends on the wine."]
    compare(page, PROMPT, *responses)
    texts = sorted((PROMPT + response for response in responses), key=reward_of, reverse=True)
    ends = [(reward_of(text) - std_of(text), reward_of(text) + std_of(text)) for text in texts]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    boxes = "all => all.map(each => each.getBoundingClientRect())"
    axes, drawn = (page.locator(f".range line:nth-child({n})").evaluate_all(boxes) for n in (1, 2))
    for axis, whisker, (left, right) in zip(axes, drawn, ends, strict=True):
        assert whisker["left"] - axis["left"] == pytest.approx(axis["width"] * (left - low) / (high - low), abs=1)
        assert whisker["width"] == pytest.approx(axis["width"] * (right - left) / (high - low), abs=1)
    words = [f"{end:.3f}".replace("-", "\u2212") for end in (*ends[0], low, high)]
    label = "The interval from {} to {}, on a line from {} to {}".format(*words)
    assert page.get_by_role("img", name=label).count() == 1
    assert axes[0]["width"] > 150
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_a_single_model_has_no_interval(show, tmp_path):
    page = show()
    compare(page, PROMPT, GOOD, POOR)
    draw_curve(page, PROMPT, GOOD)
    score_file(page, as_lines(tmp_path / "rows.jsonl", [{"text": GOOD}]))
    assert "±" not in page.inner_text("body")
    assert page.locator(".whisker, .band").count() == 0
    assert "reward_std" not in results(page)[0]


# The server itself


def test_the_page_works_on_the_server_itself_with_a_key(show, server, tmp_path):
    key = "a-key-that-is-long-enough"
    keys = ApiKeys([hashlib.sha256(key.encode()).digest()])
    with running(create_application(server.service, keys=keys, allowed_hosts=["127.0.0.1"])) as url:
        assert requests.get(url, timeout=10).status_code == 401
        page = show(f"{url}/", http_credentials={"username": "anyone", "password": key})
        compare(page, PROMPT, POOR, GOOD)
        ranked = server.reward_model.rank(PROMPT, [POOR, GOOD])
        expected = [number for each in ranked for number in (each.reward, each.win_probability)]
        assert ranked_numbers(page) == pytest.approx(expected, abs=1e-5)
        draw_curve(page, PROMPT, GOOD)
        whole = server.reward_model.score([PROMPT + GOOD], return_details=True)
        tokens = page.get_by_role("slider").get_attribute("aria-valuemax")
        assert page.inner_text("#tokens").replace("\u2205", "").startswith(GOOD[:3])
        assert tokens == str(whole.tokens[0])
        assert f"{whole.rewards[0]:.3f}".replace("-", "\u2212") in page.inner_text("#readout")
        rows = [{"prompt": PROMPT, "chosen": GOOD, "rejected": POOR}, {"text": "long " * 200}, {"text": GOOD}]
        score_file(page, as_lines(tmp_path / "rows.jsonl", rows))
        pair, too_long, text = results(page)
    assert pair["margin"] == pytest.approx(server.reward_model.score([PROMPT] * 2, [GOOD, POOR]) @ [1, -1], abs=1e-5)
    assert too_long["error"].startswith("this row")
    assert text["reward"] == pytest.approx(server.reward_model.score([GOOD])[0], abs=1e-5)


# Prefix curve


def test_a_curve_shows_the_reward_of_each_prefix_by_keyboard(show):
    page = show()
    draw_curve(page, PROMPT, GOOD)
    pieces, before = pieces_of(PROMPT + GOOD), len(pieces_of(PROMPT.rstrip()))
    chart = page.get_by_role("slider")

    def words(end):
        reward, earlier = (reward_of("".join(pieces[:n])) for n in (end, end - 1))
        piece = pieces[end - 1].replace(" ", "\u2423")
        text = f"token {end} of {len(pieces)}, “{piece}”: reward {reward:.3f}, {reward - earlier:+.3f}"
        return text.replace("-", "\u2212")

    assert chart.get_attribute("aria-valuetext") == words(len(pieces))
    for key, end in [
        ("ArrowLeft", len(pieces) - 1), ("Home", before + 1), ("ArrowLeft", before + 1), ("ArrowRight", before + 2),
        ("End", len(pieces)), ("PageDown", before + 1), ("PageUp", len(pieces)),
    ]:  # fmt: skip
        chart.press(key)
        assert chart.get_attribute("aria-valuetext") == words(end)
        assert page.inner_text("#readout") == words(end).capitalize().replace("blot", "Blot")
        assert page.inner_text("#tokens .current") == pieces[end - 1]
    assert chart.get_attribute("aria-valuemin") == str(before + 1)
    page.hover("#tokens .token >> nth=2")
    assert chart.get_attribute("aria-valuenow") == str(before + 3)


def test_a_curve_has_a_table_and_tokens_marked_by_the_change_of_the_reward(show):
    page = show()
    draw_curve(page, PROMPT, GOOD)
    page.click("#curve-table summary")
    page.wait_for_selector("#curve-table td")
    rows = page.locator("#curve-table tbody tr")
    pieces, before = pieces_of(PROMPT + GOOD), len(pieces_of(PROMPT.rstrip()))
    assert rows.count() == len(pieces) - before
    changes = [float(text.replace("\u2212", "-")) for text in rows.locator("td:last-child").all_inner_texts()]
    marks = page.locator("#tokens .token").evaluate_all("all => all.map(each => each.className)")
    rise, fall = changes.index(max(changes)), changes.index(min(changes))
    assert "up" in marks[rise]
    assert "down" in marks[fall]
    assert f"{max(changes):.3f}" in page.inner_text("#legend")
    assert page.locator("#legend .up3, #legend .down3").count() == 2


def test_the_curve_of_a_compared_response_opens_from_its_card(show):
    page = show()
    compare(page, PROMPT, GOOD, POOR)
    page.get_by_role("button", name="Curve of response 2").click()
    page.wait_for_selector("#chart svg")
    assert page.input_value("#curve-response") == POOR
    assert page.evaluate("document.activeElement.id") == "tab-curve"


# File


def test_a_file_of_pairs_is_scored_with_errors_by_row_and_results_to_download(show, stub, tmp_path):
    words = random.Random(0)
    rows = [
        {"prompt": PROMPT, "chosen": GOOD[: words.randint(9, 40)], "rejected": POOR[: words.randint(9, 40)]}
        for _ in range(500)
    ]
    broken = {17: b'{"prompt": "a', 201: {"promt": 1}, 334: {"prompt": "x", "chosen": "a FAULT", "rejected": "b"}}
    raw = [broken.get(number, row) for number, row in enumerate(rows, start=1)]
    page = show()
    score_file(page, as_lines(tmp_path / "pairs.jsonl", raw))
    assert page.inner_text("#file-summary") == "Scored pairs.jsonl: 500 rows, 3 without a reward."
    problems = page.locator("#file-errors li").all_inner_texts()
    assert sorted(problem.split(":")[0] for problem in problems) == ["Row 17", "Row 201", "Row 334"]
    written = results(page)
    assert [row["row"] for row in written] == list(range(1, 501))
    assert {row["row"] for row in written if "error" in row} == set(broken)
    right = 0
    for row, source in zip(written, rows, strict=True):
        if "error" not in row:
            chosen, rejected = (reward_of(PROMPT + source[name]) for name in ("chosen", "rejected"))
            assert (row["chosen_reward"], row["rejected_reward"]) == pytest.approx((chosen, rejected))
            assert (row["truncated"], row["weight_version"]) == ([False, False], "3f9c1a")
            right += 1 if chosen > rejected else 0.5 if chosen == rejected else 0
    assert f"{100 * right / 497:.1f}%\n{right:g} of 497 pairs" in page.inner_text("#file-figures")


@pytest.mark.parametrize(
    ("better", "equal", "worse", "words"),
    [
        (8, 0, 2, "80.0%\n8 of 10 pairs; 95% interval 49.0% to 94.3%"),
        (8, 1, 1, "85.0%\n8.5 of 10 pairs, a tie counts half; 95% interval 54.1% to 96.5%"),
        (0, 0, 4, "0.0%\n0 of 4 pairs; 95% interval 0.0% to 49.0%"),
        (1, 0, 0, "100.0%\n1 of 1 pair; 95% interval 20.7% to 100.0%"),
    ],
)
def test_an_accuracy_has_its_pairs_and_its_interval(show, tmp_path, better, equal, worse, words):
    best, least = sorted([GOOD, POOR], key=reward_of, reverse=True)
    pairs = [(best, least)] * better + [(best, best)] * equal + [(least, best)] * worse
    rows = [{"prompt": PROMPT, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]
    page = show()
    score_file(page, as_lines(tmp_path / "pairs.jsonl", rows))
    assert words in page.inner_text("#file-figures")


def test_a_compressed_file_is_told_once(show, stub, tmp_path):
    raw = json.dumps({"text": "a"}).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("rows.jsonl", raw)
    page = show()
    for name, packed in (("rows.jsonl.gz", gzip.compress(raw)), ("rows.zip", archive.getvalue())):
        path = tmp_path / name
        path.write_bytes(packed)
        score_file(page, path, done="#file .general:not(:empty)")
        assert page.inner_text("#file .general") == "Scoring stopped. The file is compressed: unpack it first."
        assert not page.is_visible("#file-run")
    assert stub.bodies == []


def test_a_row_has_any_of_the_shapes_and_any_length(show, stub, tmp_path):
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    long = "\u00e9" * 200_000  # longer than a piece of the stream, whose borders part characters
    rows = [
        {"prompt": "a ", "response": "b"}, {"prompt": "a ", "completion": long}, {"messages": messages}, b"",
        {"text": "a whole text"}, {"chosen": messages, "rejected": messages, "tools": [{"type": "function"}]},
        b"[1]", b'{"text": "\xff"}', {"prompt": "a", "response": messages}, {"text": TOO_LONG},
    ]  # fmt: skip
    page = show()
    score_file(page, as_lines(tmp_path / "rows.jsonl", rows))
    errors = {row["row"]: row["error"] for row in results(page) if "error" in row}
    assert errors == {
        7: "This row is no JSON object.",
        8: "This row is not UTF-8.",
        9: "Expected texts alone or messages alone, not both.",
        10: f"this row has {MAX_LENGTH + 1} tokens, and the model takes {MAX_LENGTH}.",
    }
    bodies = [body["items"] for _, body in stub.bodies if not body["template_kwargs"]]
    items = [item for body in sorted(bodies, key=len, reverse=True) for item in body]  # two come at once, in any order
    assert items == [
        {"prompt": "a ", "response": "b"}, {"prompt": "a ", "response": long}, {"messages": messages},
        {"text": "a whole text"}, {"text": TOO_LONG},
    ]  # fmt: skip
    (with_tools,) = [body for _, body in stub.bodies if body["template_kwargs"]]
    assert with_tools["template_kwargs"] == {"tools": [{"type": "function"}]}
    assert with_tools["items"] == [{"messages": messages}] * 2


def test_a_file_waits_while_the_server_is_full(show, stub, tmp_path):
    page = show()
    stub.refusals = 3
    score_file(page, as_lines(tmp_path / "rows.jsonl", [{"text": f"text {n}"} for n in range(200)]))
    assert page.inner_text("#file-summary") == "Scored rows.jsonl: 200 rows, 0 without a reward."
    assert [row["reward"] for row in results(page)] == pytest.approx([reward_of(f"text {n}") for n in range(200)])


def test_a_file_can_be_cancelled_and_stops_where_the_key_is_refused(show, stub, tmp_path):
    path = as_lines(tmp_path / "rows.jsonl", [{"text": f"text {n}"} for n in range(1000)])
    page = show()
    stub.gate.clear()
    score_file(page, path, done="#file-cancel")
    for _ in range(2):
        assert stub.arrived.acquire(timeout=10)
    page.click("#file-cancel")
    page.wait_for_selector("#file-cancel", state="hidden")
    stub.gate.set()
    assert stub.most_at_once == len(stub.bodies) == 2
    assert page.inner_text("#file-summary").startswith("Cancelled in rows.jsonl: 0 rows")
    stub.key_refused = True
    score_file(page, path, done="#file .general:not(:empty)")
    assert page.inner_text("#file .general").startswith("Scoring stopped. The key was refused.")


def test_a_file_can_be_dropped_on_the_page(show, stub):
    page = show()
    page.evaluate(
        """() => {
            const carried = new DataTransfer();
            carried.items.add(new File(['{"text": "dropped"}'], "dropped.jsonl"));
            const drop = {dataTransfer: carried, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent("drop", drop));
        }"""
    )
    page.wait_for_selector("#file-download:not([hidden])")
    assert stub.bodies[0][1]["items"] == [{"text": "dropped"}]


# History


def test_nothing_is_kept_unless_the_history_is_switched_on(show):
    page = show()
    compare(page, PROMPT, GOOD, POOR)
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.click("#tab-history")
    page.check("#keep")
    compare(page, PROMPT, GOOD, POOR)
    page.reload()
    page.click("#tab-history")
    page.click("#entries button")
    assert page.input_value("#response-1") == POOR
    assert page.locator("#ranking > li").count() == 2
    page.click("#tab-history")
    page.click("#forget")
    assert page.locator("#entries > li").count() == 0
    page.uncheck("#keep")
    assert page.evaluate("localStorage.length") == 0


# Safety


def test_markup_in_texts_is_text_everywhere(show, stub, tmp_path):
    page = show()
    page.click("#tab-history")
    page.check("#keep")
    compare(page, ATTACK, ATTACK, f"{ATTACK} again")
    assert page.locator("#ranking .text").first.inner_text().startswith(ATTACK)
    page.click("#tab-history")
    assert page.inner_text("#entries .text") == ATTACK
    draw_curve(page, ATTACK, f" {ATTACK} {ATTACK}")
    assert page.inner_text("#tokens .current") == f" {ATTACK}"
    page.click("#curve-table summary")
    page.wait_for_selector("#curve-table td")
    assert ATTACK in page.inner_text("#curve-table")
    name = "<img src=x onerror=alert(1)>.jsonl"
    score_file(page, as_lines(tmp_path / name, [{"text": ATTACK}, {ATTACK: 1}, ATTACK.encode(), {"prompt": ATTACK}]))
    assert name in page.inner_text("#file-summary")
    assert page.locator("img, script:not([src])").count() == 0


def test_characters_that_hide_or_turn_text_are_made_visible(show):
    page = show()
    ordinary = "\U0001f469\U0001f3fd\u200d\U0001f4bb \u0645\u06cc\u200c\u062e\u0648"  # an emoji, and Persian
    compare(page, REVERSED, REVERSED, f"zero\u200bwidth \u0007 \U000e0041 {ordinary}")
    texts = page.locator("#ranking .text").all_inner_texts()
    assert set(texts) == {"abc⟦U+202E⟧dcba", f"zero⟦U+200B⟧width ⟦U+0007⟧ ⟦U+E0041⟧ {ordinary}"}
    assert page.inner_text("#compare .prompt .invisible") == "Invisible characters: U+202E."
    draw_curve(page, "", f"{REVERSED} {REVERSED}")
    for place in ("#tokens", "#readout", "#curve-summary"):
        assert "⟦U+202E⟧" in page.inner_text(place)
    assert "⟦U+202E⟧" in page.get_by_role("slider").get_attribute("aria-valuetext")


def test_the_page_has_no_inline_script_and_no_inline_style(show):
    page = show()
    page.click("#compare-example")
    page.wait_for_selector("#ranking > li")
    inline = "[style], style, script:not([src]), [onclick], [onload], [onerror], [href^='http'], [src^='http']"
    assert page.locator(inline).count() == 0


# Access


@pytest.mark.parametrize("width", [400, 1280])
def test_no_view_scrolls_sideways(show, tmp_path, width):
    page = show(viewport={"width": width, "height": 800})
    compare(page, "wide" * 200, "x" * 600, GOOD)
    draw_curve(page, PROMPT, GOOD + " " + "y" * 600)
    page.click("#curve-table summary")
    score_file(page, as_lines(tmp_path / "rows.jsonl", [{"text": "a"}, b"{"]))
    for view in VIEWS:
        page.click(f"#tab-{view}")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width, view


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_modes(show, tmp_path, scheme):
    page = show(color_scheme=scheme)
    compare(page, PROMPT, GOOD, TOO_LONG)
    compare(page, PROMPT, GOOD, POOR)
    draw_curve(page, PROMPT, GOOD)
    paper = colour(page, "body", "backgroundColor")
    assert (luminance(paper) < 0.5) == (scheme == "dark")
    for selector, name, least in (
        ("h1", "color", 7), (".quiet", "color", 4.5), (".error", "color", 4.5), ("#chart text", "fill", 4.5),
        ("[role=tab]", "color", 4.5), ("textarea", "color", 7), ("textarea", "borderTopColor", 3),
        (".remove", "color", 4.5), ("#chart path", "stroke", 3), (".range circle", "fill", 3),
        (".range line", "stroke", 3), (".bar .filled", "fill", 3),
    ):  # fmt: skip
        assert contrast(colour(page, selector, name), paper) >= least, selector
    assert contrast(colour(page, ".primary"), colour(page, ".primary", "backgroundColor")) >= 4.5
    assert contrast(colour(page, ".best .rank"), colour(page, ".best .rank", "backgroundColor")) >= 4.5


def test_a_comparison_needs_no_mouse(show):
    page = show()
    press = page.keyboard.press

    def tab_to(selector):
        for _ in range(20):
            press("Tab")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    tab_to(".skip")
    tab_to("[role=tab]")
    press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-curve"
    assert page.is_visible("#curve")
    press("ArrowLeft")
    for selector, text in (("#compare .prompt textarea", PROMPT), ("#response-0", GOOD), ("#response-1", POOR)):
        tab_to(selector)
        page.keyboard.insert_text(text)
    press("Control+Enter")
    page.wait_for_selector("#ranking > li")
    tab_to("#compare-form .primary")
    press("Enter")
    page.wait_for_selector("#compare-form:not([aria-busy])")
    assert page.get_by_role("status").first.inner_text().startswith("Response")


def test_every_control_has_a_name(show):
    page = show()
    for view in VIEWS:
        page.click(f"#tab-{view}")
        for kind in ("button", "textbox", "combobox", "checkbox", "radio", "tab", "slider"):
            controls = page.get_by_role(kind)
            assert controls.count() == page.get_by_role(kind, name=re.compile(".")).count(), (view, kind)
