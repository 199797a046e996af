"""The report in Chromium: loading, sorting, token view, themes and widths.

Collected by `make browser` only.
"""

import csv
import io
import json
import re
from itertools import combinations

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


def overlapping(boxes):
    """Return the pairs of boxes, each left, top, right and bottom in pixels, with a common area."""
    return [
        (one, other)
        for one, other in combinations(boxes, 2)
        if min(one[2], other[2]) - max(one[0], other[0]) > 1
        and min(one[3], other[3]) - max(one[1], other[1]) > 1
    ]


BOXES = (
    "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
    ".map(r => [r.left, r.top, r.right, r.bottom])"
)


@pytest.mark.parametrize("width", [1280, 390])
def test_every_point_has_its_name_beside_it(open_page, width):
    window = open_page(width=width)
    for measure in ("bleu", "chrf", "rougeL"):
        chart = f"#trade-off-{measure}"
        names = [each.text for each in window.all(f"{chart} .annotation-text")]
        assert sorted(names) == ["imitkd_full", "mle", "teacher"]
        boxes = window(BOXES, f"{chart} .annotation-text")
        (plot,) = window(BOXES, f"{chart} .nsewdrag")
        assert overlapping(boxes) == []
        for left, top, right, bottom in boxes:
            assert plot[0] <= left
            assert right <= plot[2]
            assert plot[1] <= top
            assert bottom <= plot[3]


def test_names_find_room_among_many_points(open_page):
    """Twelve points in a small cloud: no name covers another one, and all are in the plot."""
    window = open_page()
    places = window(
        "(() => {"
        "  const points = [...Array(12).keys()]"
        "    .map(i => ({x: 200 + 9 * (i % 4), y: 120 + 11 * (i % 3)}));"
        "  const widths = points.map((_, i) => 40 + 7 * i);"
        "  return placeLabels(points, widths, {width: 420, height: 260})"
        "    .map(({box}) => [box.left, box.top, box.right, box.bottom]);"
        "})()"
    )
    assert len(places) == 12
    assert overlapping(places) == []
    assert all(left >= 0 and right <= 420 for left, _, right, _ in places)


def test_long_names_are_shortened_in_the_middle(open_page):
    window = open_page()
    window("(measure.font = '12px sans-serif', 0)")
    assert window("shorten('a name', 200)") == "a name"
    short = window("shorten(arguments[0], 60)", "a_very_long_name_of_a_run")
    assert short.startswith("a_v")
    assert short.endswith("run")
    assert window("measure.measureText(arguments[0]).width <= 60", short)


@pytest.mark.parametrize("width", [1280, 390])
def test_no_label_of_a_chart_is_cut_off(open_page, width):
    window = open_page(width=width)
    cut = window(
        "[...document.querySelectorAll('.chart')].flatMap(chart => {"
        "  const frame = chart.getBoundingClientRect();"
        "  return [...chart.querySelectorAll('svg text')].filter(text => {"
        "    const box = text.getBoundingClientRect();"
        "    return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1"
        "      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1);"
        "  }).map(text => `${chart.id}: ${text.textContent}`);"
        "})"
    )
    assert cut == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_names_of_the_models_wrap_and_stay_in_sight(open_page, width):
    window = open_page(width=width)
    for left, _, right, _ in window(BOXES, "nav a, nav button"):
        assert left >= 0
        assert right <= width
    window("(document.getElementById('learning').scrollIntoView(), 0)")
    window.wait("document.querySelector('.key').getBoundingClientRect().top >= 0")
    ((_, top, _, _),) = window(BOXES, "#learning h2")
    ((_, _, _, bottom),) = window(BOXES, "nav")
    assert top >= bottom


def test_a_table_is_downloaded_with_all_digits(open_page, runs):
    window = open_page()
    text = window("csvOf(document.querySelector('#models table'))")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["model"] for row in rows] == ["teacher", "mle", "imitkd_full"]
    results = json.loads((runs[0] / "results.json").read_text())["rows"]
    assert float(rows[1]["BLEU"]) == results[1]["bleu"]
    assert float(rows[0]["tokens/s"]) == results[0]["tokens_per_second"]
    assert rows[0]["training s"] == ""
    assert window("quoted(arguments[0])", 'a "b", c') == '"a ""b"", c"'
    assert len(window.all(".download")) == len(window.all("main table"))


def test_two_models_are_compared_in_either_order(open_page):
    window = open_page()
    verdict = "document.getElementById('verdict').textContent"
    assert window("[first.value, second.value]") == ["mle", "imitkd_full"]
    better = [int(each) for each in re.findall(r"\d+", window(verdict))]
    wins, losses, pairs, ties = better
    assert wins + losses + ties == pairs == window("compared.pairs")
    window("(first.selectedIndex = 2, second.selectedIndex = 1, showComparison(), 0)")
    assert window(verdict).startswith(f"imitkd_full is better at {losses}, mle at {wins} of ")
    shown = len(window.all("#losses li dl"))
    assert shown == min(wins, 4)
    window("(first.selectedIndex = 1, showComparison(), 0)")
    assert f"{pairs} are equal" in window(verdict)
    assert window.one("#wins").text == "nowhere"


def test_words_that_the_reference_lacks_are_faint(open_page):
    window = open_page()
    words = window(
        "wordsOf('The cat, <i> sat', 'a cat <I> SAT.').map(w => [w.textContent ?? w, w.className])"
    )
    assert words == [
        *(["The", "stray"], [" ", None], ["cat,", None], [" ", None], ["<i>", None]),
        *([" ", None], ["sat", None]),
    ]
