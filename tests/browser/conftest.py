"""A page of trained runs in a real browser."""

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
LOAD_SECONDS = 60  # on a busy machine


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Return the folders of two runs."""
    return trained_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory):
    """Write a report whose charts have gaps, and return its path."""
    output = tmp_path_factory.mktemp("report") / "report.html"
    report(ReportOptions(tuple(runs), output, sentences=12))
    return output


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Start Chromium and record its console and its requests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "Debian's package chromium must be installed"
    assert driver, "Debian's package chromium-driver must be installed"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(LOAD_SECONDS)
    yield chrome
    chrome.quit()


class Window:
    """The page in a browser of some size and theme.

    Args:
        browser: the driver.
        page: path of the page.
        width: of the window, CSS pixels; a phone below 600.
        theme: "light" or "dark", the system's preference.
    """

    def __init__(self, browser, page, width, theme):
        self.browser = browser
        phone = width < 600
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": phone}
        preference = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
        browser.get("about:blank")  # or the previous page could be taken for this one
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # drops earlier entries
        browser.get(page.as_uri())
        # On a busy machine Chromium's driver can return before the page's script has run.
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def __call__(self, script, *arguments):
        """Return the value of a JavaScript expression."""
        return self.browser.execute_script(f"return {script}", *arguments)

    def all(self, selector):
        """Return all elements that match a selector."""
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        """Return the first element that matches a selector; raise if there is none."""
        return self.browser.find_element("css selector", selector)

    def wait(self, script):
        """Return once a JavaScript expression is true."""
        last = time.monotonic() + LOAD_SECONDS
        while not self(script):
            assert time.monotonic() < last, f"not true in {LOAD_SECONDS} seconds: {script}"
            time.sleep(0.05)


@pytest.fixture
def open_page(browser, page):
    """Return a function that opens the page in a window of some width and theme."""

    def opened(width=1280, theme="light"):
        return Window(browser, page, width, theme)

    return opened
