"""Chromium for tests of pages.

PLAUDIT_CHROMIUM names the browser, and a browser that is missing there fails the tests. Without that variable, the one
on the path is taken, and without that one the tests are skipped.
"""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = os.environ.get("PLAUDIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium, and PLAUDIT_CHROMIUM names none")


@contextmanager
def started_chromium():
    if "PLAUDIT_CHROMIUM" not in os.environ:
        pytest.importorskip("playwright", reason="playwright is not in this environment")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def colour(page, selector, name="color"):
    return page.eval_on_selector(selector, f"each => getComputedStyle(each).{name}")


def luminance(text):
    channels = [int(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
