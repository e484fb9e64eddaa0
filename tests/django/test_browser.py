"""The pages in a real browser, under a strict policy, with JavaScript and without."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
if os.environ.get("IMAGELABS_TEST_SERVICES") != "1":
    pytest.importorskip("selenium", reason="no selenium")
    if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
        pytest.skip("no Chromium", allow_module_level=True)

from selenium.webdriver import Chrome, ChromeOptions, ChromeService  # noqa: E402 - optional
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

PATIENCE = 30.0  # seconds for anything; a busy machine is slow
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--lang=en", "--window-size=1280,1000",
]  # fmt: skip

Browse = Callable[..., Chrome]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pages on loopback, with an engine that draws for six seconds."""
    folder = tmp_path_factory.mktemp("site")
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3"),
                "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}}  # fmt: skip
    drawn_here = {
        "BACKEND": "imagelabs_sdk.embedded.embedded_transport",
        "OPTIONS": {"duration": 6.0, "poll_interval": 0.5},
    }
    environment = {
        **os.environ,
        "IMAGELABS_TEST_DATABASE": json.dumps(database),
        "IMAGELABS_TEST_MEDIA": str(folder / "media"),
        "IMAGELABS_TEST_SETTINGS": json.dumps({"default": drawn_here}),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.django.app.site"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            try:
                assert port, (folder / "log").read_text()
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                process.wait(10)


@pytest.fixture
def browse(site: str, tmp_path: Path) -> Iterator[Browse]:
    """Opens a browser, logged in, at the form that asks for an image."""
    opened: list[Chrome] = []

    def browse(*, javascript: bool = True) -> Chrome:
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in [*ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not javascript:
            off = {"profile.managed_default_content_settings.javascript": 2}
            options.add_experimental_option("prefs", off)
        browser = Chrome(options=options, service=ChromeService(DRIVER))
        opened.append(browser)
        browser.set_page_load_timeout(PATIENCE)
        browser.get(f"{site}/images/")
        for name in ("username", "password"):
            browser.find_element(By.NAME, name).send_keys("visitor")
        browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
        until(browser, lambda: browser.current_url == f"{site}/images/")
        return browser

    yield browse
    for browser in opened:
        browser.quit()


def until(browser: Chrome, condition: Callable[[], Any]) -> Any:
    """What `condition` answers, once that is anything."""
    return WebDriverWait(browser, PATIENCE, poll_frequency=0.05).until(lambda _: condition())


def draw(browser: Chrome, prompt: str = "a lighthouse at dusk") -> None:
    """Ask for an image, and come to its page."""
    for name, value in {"prompt": prompt, "width": "512", "height": "384", "seed": "7"}.items():
        browser.find_element(By.NAME, name).send_keys(value)
    browser.find_element(By.CSS_SELECTOR, ".imagelabs-form button").click()
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".imagelabs-job"))


def first(browser: Chrome, selector: str, what: str) -> Any:
    """A property of the first element, in one step: the next poll may replace it."""
    found = "const found = document.querySelector(arguments[0]);"
    return browser.execute_script(f"{found} return found && found.{what}", selector)


def assert_nothing_was_refused(browser: Chrome, *, but: str = "\0") -> None:
    """Neither by the policy nor by the site."""
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if but not in entry["message"]] == []


PREVIEW_BELOW_THE_NEXT = """
const [before, next] = document.querySelectorAll(".imagelabs-frame img");
return next && before.naturalWidth > 0
"""
NO_PREVIEW = "/preview/"  # it may be over between a poll and its image


def test_a_prompt_becomes_an_image_before_ones_eyes(browse: Browse) -> None:
    """The whole way: the form, the bar that moves, the preview, the image; then peace."""
    browser = browse()
    draw(browser)
    job = browser.current_url
    browser.execute_script(
        """
        const says = document.querySelector("[role=status]");
        window.said = [says.textContent];
        new MutationObserver(() => said.push(says.textContent))
            .observe(says, {childList: true, characterData: true, subtree: true});
        """
    )
    frame = first(browser, ".imagelabs-frame", "getBoundingClientRect().toJSON()")
    begun = until(browser, lambda: first(browser, "progress[value]", "value"))
    until(browser, lambda: first(browser, ".imagelabs-frame > img[alt='']", "naturalWidth"))
    until(browser, lambda: (first(browser, "progress[value]", "value") or 0) > begun)
    until(browser, lambda: browser.execute_script(PREVIEW_BELOW_THE_NEXT))
    until(browser, lambda: first(browser, ".imagelabs-frame a img", "naturalWidth") == 512)
    assert first(browser, ".imagelabs-frame a img", "alt") == "a lighthouse at dusk"
    assert first(browser, ".imagelabs-frame", "getBoundingClientRect().toJSON()") == frame
    assert not browser.find_elements(By.CSS_SELECTOR, "[hx-trigger], [aria-busy], progress")
    said = browser.execute_script("return said")
    assert said[-1] == "Your image is ready."
    assert len(said) == len(set(said)), "read aloud more than once"
    assert browser.current_url == job
    assert_nothing_was_refused(browser, but=NO_PREVIEW)


def test_without_javascript_the_page_refreshes_itself(browse: Browse) -> None:
    """And stops when there is nothing to wait for."""
    browser = browse(javascript=False)
    draw(browser)
    progress = (By.CSS_SELECTOR, "progress")
    assert browser.find_elements(*progress)
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".imagelabs-frame a img"))
    assert not browser.find_elements(*progress)
    assert "http-equiv" not in browser.page_source
    assert "Your image is ready." in browser.page_source
    assert_nothing_was_refused(browser, but=NO_PREVIEW)


def test_a_card_whose_session_ends_takes_the_page_to_the_login(browse: Browse) -> None:
    """And the login leads back to the job."""
    browser = browse()
    draw(browser)
    job = browser.current_url
    browser.delete_all_cookies()
    until(browser, lambda: "/admin/login/" in browser.current_url)
    for name in ("username", "password"):
        browser.find_element(By.NAME, name).send_keys("visitor")
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    until(browser, lambda: browser.current_url == job)


def test_what_is_typed_stays_text(browse: Browse) -> None:
    """No code comes in by a prompt, and what is wrong is said at its field."""
    browser = browse()
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    browser.find_element(By.NAME, "aspect_ratio").send_keys("Square")
    for name, value in {"prompt": evil, "width": "512"}.items():
        browser.find_element(By.NAME, name).send_keys(value)
    browser.find_element(By.CSS_SELECTOR, ".imagelabs-form button").click()
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#id_width_error, .errorlist"))
    browser.find_element(By.NAME, "width").clear()
    browser.find_element(By.CSS_SELECTOR, ".imagelabs-form button").click()
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".imagelabs-job"))
    assert first(browser, ".imagelabs-prompt", "textContent") == evil
    assert_nothing_was_refused(
        browser,
        but="/images/ - Failed to load resource: the server responded with a status of 422",
    )


def test_the_admin_works_under_the_same_policy(browse: Browse, site: str) -> None:
    """Its thumbnails come from an address of its own."""
    browser = browse()
    draw(browser)
    until(browser, lambda: first(browser, ".imagelabs-frame a img", "naturalWidth"))
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    browser.get(f"{site}/admin/imagelabs/imagejob/")
    until(browser, lambda: first(browser, ".field-small_image img", "naturalWidth") == 512)
    browser.find_element(By.CSS_SELECTOR, ".field-small_image a").click()
    until(browser, lambda: first(browser, ".field-large_image img", "naturalWidth") == 512)
    assert_nothing_was_refused(browser)
