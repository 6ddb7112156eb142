"""A real browser for tests: Debian's Chromium, driven by Playwright.

A page of it fails its test where it asks anything of the network or says anything on its console.
"""

import contextlib
from collections.abc import Iterator

import chromium
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PHONE = {"width": 375, "height": 700}


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    program = chromium.find() or pytest.fail(chromium.MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, dark: bool = False, allowed: str = "file:") -> Iterator[Page]:
    """A page that asks nothing of the network and whose console is clean.

    Args:
        dark: whether the person prefers dark pages.
        allowed: how each address that the page may ask for begins.
    """
    context = browser.new_context(color_scheme="dark" if dark else "light", accept_downloads=True)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        yield page
        assert [url for url in asked if not url.startswith((allowed, "data:", "blob:"))] == []
        assert said == []
    finally:
        context.close()
