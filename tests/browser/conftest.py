"""A page of really trained runs in a real browser."""

import shutil
import time

import pytest
from selenium import webdriver

from tests.support.report_runs import trained_runs
from textgen_experiments.reporting.report import ReportOptions, report

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 60  # for a page to load on a busy machine


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """Path of a report; its charts have gaps."""
    folder = tmp_path_factory.mktemp("runs")
    runs = trained_runs(folder)
    report(ReportOptions(tuple(runs), folder / "report.html", sentences=12))
    return folder / "report.html"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium, with its console and its requests recorded."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "Debian's package chromium must be installed"
    assert driver, "Debian's package chromium-driver must be installed"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(SECONDS)
    yield chrome
    chrome.quit()


class Window:
    """The page in a browser of some size and theme.

    Args:
        browser: the driver.
        page: path of the page.
        width: of the window, CSS pixels; a phone below 600.
        theme: "light" or "dark", what the system asks for.
    """

    def __init__(self, browser, page, width, theme):
        self.browser = browser
        phone = width < 600
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": phone}
        preference = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
        browser.get("about:blank")  # or a page left behind could be taken for this one
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what was recorded before
        browser.get(page.as_uri())
        # On a busy machine Chromium's driver can return before the page's script has run.
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def __call__(self, script, *arguments):
        """The value of a JavaScript expression."""
        return self.browser.execute_script(f"return {script}", *arguments)

    def all(self, selector):
        """The elements that match."""
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        """The first element that matches; an error if there is none."""
        return self.browser.find_element("css selector", selector)

    def wait(self, script):
        """Return once a JavaScript expression is true."""
        last = time.monotonic() + SECONDS
        while not self(script):
            assert time.monotonic() < last, f"not true in {SECONDS} seconds: {script}"
            time.sleep(0.05)


@pytest.fixture
def open_page(browser, page):
    """width, theme -> the page in a window."""

    def opened(width=1280, theme="light"):
        return Window(browser, page, width, theme)

    return opened
