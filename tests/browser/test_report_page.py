"""The report in a real Chromium without a network: heat map, tooltip, sorting, tables.

    python -m pytest tests/browser          (Chromium of the system, and playwright: requirements-browser.txt)

SCREENSHOTS=DIR keeps pictures of the page in its states, to look at.
"""

import csv
import os
import re
import shutil
import time
from pathlib import Path
from statistics import fmean

import pytest
from conftest import SHARED, needs_shared
from playwright.sync_api import sync_playwright

from llamax.languages import load
from llamax.report import read_system, write_report

RESULTS = SHARED / "llamax_results"
FIRST = "LLaMAX2-7B-Alpaca"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def chromium():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert path, "no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """A function that opens an HTML file; afterwards nothing but files was asked for, and no script failed."""
    asked, faults, contexts = [], [], []

    def open_page(path, scripts=True):
        context = chromium.new_context(
            viewport={"width": 1400, "height": 1000}, offline=True, java_script_enabled=scripts
        )
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert asked and all(url.startswith(("file:", "data:image/png")) for url in asked)


def picture(page, name, **options):
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", **options)


def hover(page, row, column):
    """Move to the cell of a row and column, given by their labels; the tooltip's lines, each a list of cells."""
    where = page.evaluate(
        """([row, column]) => {
            const y = grid.rows.findIndex((found) => found.label === row);
            const x = grid.columns.findIndex((found) => languages[found.language][0] === column);
            const box = document.querySelector("canvas").getBoundingClientRect();
            return [box.left + grid.left + (x + 0.5) * grid.w, box.top + grid.top + (y + 0.5) * grid.h];
        }""",
        [row, column],
    )
    page.mouse.move(*where)
    return tooltip(page)


def tooltip(page):
    tip = page.locator("#tip")
    if not tip.is_visible():
        return None
    return tip.locator("b").inner_text(), [line.split("\t") for line in tip.locator("table").inner_text().split("\n")]


def labels(page, what):
    """The labels of the heat map's rows or columns in their order; the map itself is pixels."""
    label = {"rows": "row.label", "columns": "languages[row.language][CODE]"}[what]
    return page.evaluate(f"grid.{what}.map((row) => {label})")


def table_of(system, metric):
    with open(RESULTS / system / f"{metric}.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in rows}


def by_mean(table, system_rows):
    means = {name: fmean(float(cell) for cell in table[name].values() if cell != "/") for name in system_rows}
    return sorted(means, key=means.get)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    names = [FIRST, *sorted(path.name for path in RESULTS.iterdir() if path.name != FIRST)]
    outputs = {name: RESULTS / name for name in names}
    systems = {name: read_system(folder) for name, folder in outputs.items()}
    return write_report(outputs, systems, tmp_path_factory.mktemp("report") / "nine.html")[-1]


@needs_shared
def test_the_nine_published_systems(nine, opened):
    began = time.monotonic()
    page = opened(nine)
    assert time.monotonic() - began < 5
    assert page.title() == "Translation scores: 9 systems"
    tables = {system: table_of(system, "spBLEU") for system in (FIRST, "NLLB-200")}
    assert labels(page, "rows")[:4] == ["en-x", "x-en", "ar-x", "x-ar"] and len(labels(page, "columns")) == 102

    title, lines = hover(page, "en-x", "fr")
    picture(page, "1-tooltip")
    assert title == "English → French (en-fr)"
    assert lines[0][:3] == ["system", "spBLEU", "difference*"] and len(lines) == 9  # Swallow has Japanese only
    found = {line[0]: line[1:3] for line in lines}
    ours, theirs = (tables[system]["en-x"]["fr"] for system in (FIRST, "NLLB-200"))
    assert found[FIRST] == [ours, ""]
    assert found["NLLB-200"] == [theirs, f"{float(theirs) - float(ours):+.2f}"]
    assert hover(page, "x-en", "fr")[0] == "French → English (fr-en)"
    assert hover(page, "en-x", "en") is None  # no direction

    page.select_option("#row-key", "mean")
    assert labels(page, "rows") == by_mean(tables[FIRST], tables[FIRST])
    page.select_option("#row-order", "-1")
    assert labels(page, "rows") == by_mean(tables[FIRST], tables[FIRST])[::-1]
    page.select_option("#column-key", "name")
    assert labels(page, "columns") == sorted(load(), key=lambda code: (load()[code].name, code))
    page.select_option("#column-key", "mean")
    page.select_option("#column-order", "-1")
    assert labels(page, "columns")[0] == "en"
    page.select_option("#column-key", "family")
    families = [load()[code].family for code in labels(page, "columns")]
    assert families == sorted(families, reverse=True)
    picture(page, "2-sorted")
    title, lines = hover(page, "en-x", "fr")  # the cell has moved, its score has not
    assert title == "English → French (en-fr)" and [line[1] for line in lines if line[0] == FIRST] == [ours]

    page.select_option("#metric", "COMET")
    page.select_option("#system", label="NLLB-200")
    _, lines = hover(page, "zh-x", "sw")
    assert [line[1] for line in lines if line[0] == "NLLB-200"] == [table_of("NLLB-200", "COMET")["zh-x"]["sw"]]
    picture(page, "3-comet")
    page.select_option("#metric", "spBLEU")
    page.select_option("#system", label=FIRST)
    page.select_option("#minus", label="NLLB-200")
    assert "minus NLLB-200" in page.locator("#legend").inner_text()
    _, lines = hover(page, "en-x", "fr")
    assert [line[2] for line in lines if line[0] == FIRST] == [f"{float(ours) - float(theirs):+.2f}"]
    picture(page, "4-difference")
    page.select_option("#layout", "square")
    assert hover(page, "fr", "en")[0] == "French → English (fr-en)"
    picture(page, "5-square")
    page.select_option("#system", label="Swallow-7B-Instruct-v0.1")
    page.select_option("#minus", "")
    page.select_option("#layout", "rows")
    assert sorted(labels(page, "rows")) == ["ja-x", "x-ja"]


@needs_shared
def test_tables_sort_by_a_click_and_cells_are_reached_by_keys(nine, opened):
    page = opened(nine)
    averages = page.locator("#averages table").first

    def column(number):
        return averages.locator(f"tbody td:nth-child({number})").all_inner_texts()

    button = averages.locator("thead tr:last-child button").nth(1)
    means = [float(mean) for mean in column(2)]
    button.click()
    assert [float(mean) for mean in column(2)] == sorted(means, reverse=True) and column(1)[0] == "NLLB-200"
    button.click()
    assert [float(mean) for mean in column(2)] == sorted(means)
    high = [number for number, cell in enumerate(column(6)) if cell == ""]  # of Swallow: no two high languages
    averages.locator("thead tr:last-child button").nth(5).click()
    assert len(high) == 1 and column(6)[-1] == ""
    picture(page, "6-page", full_page=True)

    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    assert tooltip(page)[0] == "English → Afrikaans (en-af)"
    page.keyboard.press("ArrowDown")
    assert tooltip(page)[0] == "Afrikaans → English (af-en)"
    page.keyboard.press("Escape")
    assert tooltip(page) is None

    rows = page.locator("#all tbody tr")
    page.locator("#all summary").click()
    rows.first.wait_for()
    assert rows.count() == 1560
    page.locator("#filter").fill("swahili")
    expected = sum(
        "sw" in (each["src"], each["tgt"]) and each["metric"] == "spBLEU" for each in read_system(RESULTS / FIRST)
    )
    assert page.locator("#all tbody tr:visible").count() == expected
    assert page.locator("#found").inner_text() == f"{expected} directions"
    page.locator("#counts summary").click()
    page.locator("#counts").scroll_into_view_if_needed()
    picture(page, "7-counts", full_page=True)


@needs_shared
def test_without_scripts_pictures_and_averages_are_there(nine, opened):
    page = opened(nine, scripts=False)
    images = page.locator("img:visible")
    assert images.count() == 10  # nine heat maps and the counts
    assert page.locator("#averages td:visible").count() > 0
    assert not page.locator("#interactive").is_visible()
    picture(page, "8-without-scripts", full_page=True)


def synthetic(codes, metrics, shift=0):
    return [
        {"src": a, "tgt": b, "metric": metric, "score": float((7 * i * j + shift) % 60), "n": 1012, "signature": metric}
        for i, a in enumerate(codes)
        for j, b in enumerate(codes)
        if a != b
        for metric in metrics
    ]


def test_all_directions_open_quickly(tmp_path, opened):
    rows = synthetic(load(), ("spBLEU", "chrF++"))
    path = write_report({"all": tmp_path}, {"all": rows}, tmp_path / "all.html")[-1]
    began = time.monotonic()
    page = opened(path)
    assert len(labels(page, "rows")) == len(labels(page, "columns")) == 102
    assert time.monotonic() - began < 5
    title, lines = hover(page, "ar", "de")
    (expected,) = (each for each in rows if (each["src"], each["tgt"], each["metric"]) == ("ar", "de", "spBLEU"))
    assert title == "Arabic → German (ar-de)"
    assert lines[1] == ["all", f"{expected['score']:.2f}", "", "1,012", "1"]
    picture(page, "9-all-directions")


def test_names_of_any_kind(tmp_path, opened):
    """What is markup in a name, a signature or a sentence is shown, not run; unseen languages have their section."""
    bad = "</script><img src=x onerror=alert(1)>"
    rows = [{**each, "signature": bad} for each in synthetic(("en", "fr", "ace_Arab"), ("spBLEU", "R_tgt"), 5)]
    samples = [("en", "fr", [(1, (bad, bad, "مرحبا", "réf"))])]
    path = write_report({bad: tmp_path, "b": tmp_path}, {bad: rows, "b": rows}, tmp_path / "any.html", samples)[-1]
    page = opened(path)
    assert hover(page, "en", "fr")[1][1][0] == bad
    assert page.locator("img[onerror]").count() == 0
    assert page.locator("#samples td[dir=auto]").all_inner_texts() == [bad, bad, "مرحبا", "réf"]
    assert re.search(r"unseen\s+.*\d", page.locator("#seen").inner_text())
    picture(page, "10-small", full_page=True)
