"""The report in Chromium: loading, sorting, token view, themes and widths.

Collected by `make browser` only.
"""

import json
import re

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.support.report_runs import HOSTILE

SPEED_UP_COLUMN = 3


def test_it_loads_without_an_error(open_page, browser):
    window = open_page()
    assert browser.get_log("browser") == []
    charts = window.all(".chart")
    assert len(charts) == window("data.charts.length") > 15
    assert all(chart.find_elements("css selector", "svg .trace") for chart in charts)


def test_it_requests_nothing_but_itself(open_page, browser, page):
    open_page()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert page.as_uri() in asked
    assert all(url == page.as_uri() or url.startswith(("data:", "blob:")) for url in asked)


def test_hostile_texts_are_shown_as_they_are(open_page):
    window = open_page()
    assert window("window.broken") is None
    shown = set()
    for index in range(window("list.options.length")):
        window(f"(list.selectedIndex = {index}, list.dispatchEvent(new Event('change')))")
        shown |= {phrase for phrase in HOSTILE if phrase in window("texts.textContent")}
    assert len(shown) >= 2


def column(window, index):
    """Return the texts of a column of the first table, from top to bottom."""
    rows = "[...document.querySelectorAll('#models tbody tr')]"
    return window(f"{rows}.map(row => row.cells[{index}].textContent.trim())")


def speeds(window):
    """Return the speed-ups, from top to bottom."""
    return [
        float(text.rstrip("\N{MULTIPLICATION SIGN}")) for text in column(window, SPEED_UP_COLUMN)
    ]


def test_a_heading_sorts_by_its_column(open_page):
    window = open_page()
    heading = window.all("#models th[scope=col]")[SPEED_UP_COLUMN]
    button = heading.find_element("css selector", "button")
    assert button.text.startswith("speed-up")
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    falling = speeds(window)
    assert len(falling) == 3
    assert falling == sorted(falling, reverse=True)
    button.send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert speeds(window) == sorted(falling)


def test_names_sort_by_the_alphabet_and_gaps_come_last(open_page):
    window = open_page()
    headings = window.all("#models thead button")
    headings[0].click()
    assert column(window, 0) == ["imitkd_full", "mle", "teacher"]
    seconds = next(i for i, each in enumerate(headings) if each.text.startswith("training s"))
    for _ in range(2):
        headings[seconds].click()
        assert column(window, 0)[-1] == "teacher"
    assert window("[...document.querySelectorAll('#models th[aria-sort$=ending]')].length") == 1


def tokens_of(window):
    """Return the chosen student's tokens: text, probability, rank, the teacher's best."""
    return window("data.sentences[list.value].tokens[chosen]")


def shown(text):
    """Return a token as the inspector shows it, with signs for a space and for no text."""
    return text.replace(" ", "\N{OPEN BOX}", 1) if text.startswith(" ") else text or "◌"


def test_a_click_on_a_token_shows_the_teachers_alternatives(open_page):
    window = open_page()
    tokens = tokens_of(window)
    assert len(tokens) == len(window.all(".token"))
    for index in (0, len(tokens) - 1):
        window.all(".token")[index].click()
        text, probability, _, best = tokens[index]
        named = window("[...document.querySelectorAll('#inspector b')].map(b => b.textContent)")
        assert named == [shown(each) for each in (text, *(other for other, _ in best))]
        assert len(best) == 5
        figure = window("percent.format(arguments[0])", probability)
        assert f" {figure}, " in window.one("#inspector p").text
        assert figure in window.all(".token")[index].get_attribute("title")


def test_tokens_are_reached_by_the_keyboard(open_page):
    window = open_page()
    window.all(".token")[0].click()
    last = len(window.all(".token")) - 1
    for key, place in (
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_RIGHT, 2),
        (Keys.ARROW_LEFT, 1),
        (Keys.END, last),
        (Keys.HOME, 0),
    ):
        ActionChains(window.browser).send_keys(key).perform()
        assert window("document.activeElement.dataset.index") == str(place)
        assert window("document.querySelector('.token[aria-current=true]').dataset.index") == str(
            place
        )
    assert window("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 1


def test_pointing_at_a_token_is_enough(open_page):
    window = open_page()
    token = window.all(".token")[1]
    ActionChains(window.browser).move_to_element(token).perform()
    assert token.get_attribute("aria-current") == "true"


def test_a_tap_on_a_token_is_enough(open_page):
    window = open_page(width=390)
    token = window.all(".token")[1]
    window("arguments[0].scrollIntoView({block: 'center'})", token)
    x, y = window(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(arguments[0].getBoundingClientRect())",
        token,
    )
    touch = "Input.dispatchTouchEvent"
    window.browser.execute_cdp_cmd(touch, {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    window.browser.execute_cdp_cmd(touch, {"type": "touchEnd", "touchPoints": []})
    window.wait("document.querySelectorAll('.token')[1].ariaCurrent === 'true'")


def test_improbable_tokens_are_darker(open_page):
    window = open_page()
    colors = window(
        "[...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)"
    )
    opacity = [float(re.search(r"([\d.]+)\)$", color).group(1)) for color in colors]
    probabilities = [token[1] for token in tokens_of(window)]
    falling = sorted(zip(probabilities, opacity, strict=True), reverse=True)
    assert len(set(opacity)) > 1
    assert [each for _, each in falling] == sorted(opacity)


def test_another_student_can_be_chosen(open_page):
    window = open_page()
    window.one("[data-run=imitkd_full]").click()
    assert window.one("#texts [aria-pressed=true]").text == "imitkd_full"
    written = window("data.sentences[list.value].texts.imitkd_full")
    pieces = window("data.sentences[list.value].tokens.imitkd_full.map(token => token[0]).join('')")
    assert pieces.replace("⟨end⟩", "").strip() == written
    assert len(window.all(".token")) == window(
        "data.sentences[list.value].tokens.imitkd_full.length"
    )


def test_the_search_finds_a_sentence(open_page):
    window = open_page()
    number = window("data.sentences[3].source.split(' ')[0]")
    window.one("#search").send_keys(number)
    assert window("[...list.options].every(o => o.text.includes(arguments[0]))", number)
    assert number in window("texts.textContent")
    window.one("#search").send_keys("nothing has this")
    assert window("list.options.length") == 0


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
AXIS = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"


@pytest.mark.parametrize(("theme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_is_the_systems_until_it_is_chosen(open_page, theme, other):
    window = open_page(theme=theme)
    paper = {"light": "rgb(253, 252, 250)", "dark": "rgb(21, 23, 27)"}
    ink = {"light": "rgb(31, 35, 40)", "dark": "rgb(230, 227, 220)"}
    assert window(BACKGROUND) == paper[theme]
    assert window(AXIS) == ink[theme]
    window.one("#theme").click()
    window.wait(f"{BACKGROUND} === '{paper[other]}'")
    window.wait(f"{AXIS} === '{ink[other]}'")


def test_a_model_is_hidden_in_every_chart(open_page):
    window = open_page()
    lines = "document.querySelectorAll('#learning-loss .trace').length"
    assert window(lines) == 2
    window.one("[data-model=mle]").click()
    window.wait(f"{lines} === 1")
    window.one("[data-model=mle]").click()
    window.wait(f"{lines} === 2")


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_is_never_wider_than_its_window(open_page, width):
    window = open_page(width=width)
    assert window("innerWidth") == width
    assert window("document.documentElement.scrollWidth") <= width
    for chart in window.all(".chart svg"):
        assert window("arguments[0].getBoundingClientRect().right", chart) <= width
