"""The page in a real browser without a network: it opens, sorts, filters, pages, and looks like something."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import pytest

from elm_jax.reporting import page
from elm_jax.reporting.formatting import format_percent
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.reporting.records import MethodAnswer, RowExample
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report
from tests.browser import chromium, wants_browser

pytestmark = wants_browser
HELPERS = r"""
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = (selector) => all(selector).map((found) => found.textContent.trim().replace(/\s+/g, " "));
const set = (selector, value) => {
  const found = one(selector);
  found.value = value;
  for (const name of ["input", "change"]) found.dispatchEvent(new Event(name, { bubbles: true }));
};
"""


@pytest.fixture
def drive(tmp_path):
    """Runs the body of a function in a copy of a page that allows it, and returns what that returns."""

    def run(text, body, *options):
        allowed = re.sub(r"script-src [^;]*;", "script-src 'unsafe-inline';", text)
        script = f"""{HELPERS}
          const told = document.createElement("pre");
          told.id = "told";
          told.textContent = JSON.stringify((() => {{ {body} }})());
          document.body.append(told);"""
        copy = tmp_path / "copy.html"
        copy.write_text(allowed.replace("</body>", f"<script>{script}</script></body>"))
        drawn, complaints = chromium(copy, "--dump-dom", *options)
        assert complaints == []
        return json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', drawn, re.DOTALL)[1]))

    return run


def examples(count):
    """Rows where `roe_top1` is right on every third and `base` on every second; the last is free text."""
    rows = [
        RowExample(
            task="colour" if number % 2 else "rhyme",
            prompt="p0",
            row=f"row-{number}",
            input=f"What is number {number}? </script><b>&amp; " + "long " * (200 if number == 0 else 1),
            choices=("yes", "no"),
            target="yes",
            answers={
                method: MethodAnswer("yes" if number % step == 0 else "no", number % step == 0, (-0.5, -1.25))
                for method, step in (("base", 2), ("roe_top1", 3))
            },
        )
        for number in range(count)
    ]
    answers = {"base": MethodAnswer("a moon", False, None)}
    return [*rows, RowExample("haiku", "p", "last", "Write.", (), "a pond", answers)]


@pytest.fixture(scope="module")
def text(make_run):
    return page.render_html(
        build_report(ReportInputs(**make_run(), examples=examples(30)), test=PairedTest(50))
    )


def test_the_page_opens_without_a_network_and_draws_itself(text, report, tmp_path):
    (tmp_path / "page.html").write_text(text)
    drawn, complaints = chromium(tmp_path / "page.html", "--dump-dom")
    assert complaints == []
    assert len(re.findall(r'<td class="heat', drawn)) == len(report.matrix) == 12 * 12
    assert len(re.findall(r'<article class="row"', drawn)) == 10
    assert not re.search(r"https?:", drawn)


def test_a_script_that_is_not_the_pages_own_does_not_run(text, tmp_path):
    foreign = "<script>document.body.append('foreign' + 'script')</script></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", foreign))
    drawn, complaints = chromium(tmp_path / "page.html", "--dump-dom")
    assert "foreignscript" not in drawn
    assert '<article class="row"' in drawn
    assert any("Content Security Policy" in line for line in complaints)


def test_tables_sort_by_a_heading_block_by_block(text, report, drive):
    body = """
      const names = () => texts(".headline tbody tr:not(.block) th");
      const click = () => one(".headline thead tr:last-child th:nth-child(2) button").click();
      const before = names();
      click();
      const down = names();
      click();
      const order = one(".headline th[aria-sort]").getAttribute("aria-sort");
      return [before, down, names(), order, texts(".headline tbody tr:first-child th")];
    """
    before, down, up, order, first = drive(text, body)
    fair = [mean for mean in report.means if mean.labels == "none"]
    best_first = sorted(fair, key=lambda mean: -mean.macro)
    assert before[:5] == [mean.method for mean in fair]
    assert down[:5] == [mean.method for mean in best_first] != before[:5]
    assert up[:5] == down[:5][::-1]
    assert set(down[5:]) == {"best_single †", "oracle †"}
    assert order == "ascending"
    assert [title.split(":")[0] for title in first] == ["zero-shot", "hindsight"]


def test_what_is_missing_sorts_last_either_way(make_task, drive):
    scores = [
        make_task("a/1", method, [True, False, right])
        for method, right in (("base", True), ("seen", True), ("worse", False))
    ]
    scores[1] = dataclasses.replace(scores[1], seen=True)
    body = """
      const names = () => texts(".headline tbody tr:not(.block) th");
      const click = () => one(".headline thead tr:last-child th:nth-child(2) button").click();
      click();
      const down = names();
      click();
      return [down, names()];
    """
    down, up = drive(page.render_html(build_report(ReportInputs(scores), test=PairedTest(10))), body)
    assert (down, up) == (["base", "worse", "seen"], ["worse", "base", "seen"])


def test_a_filter_keeps_the_rows_that_hold_every_word_and_counts_them(text, drive):
    body = """
      const filter = "input[data-filters=chosen]";
      return ["weekday ROE_TOP1", "no such row", ""].map((words) => {
        set(filter, words);
        const shown = all("#chosen tbody tr").filter((row) => row.offsetHeight > 0).length;
        return [shown, one(filter).parentElement.querySelector("output").textContent];
      });
    """
    assert drive(text, body) == [[3, "3 of 24 shown"], [0, "0 of 24 shown"], [24, ""]]


def test_the_heat_map_shows_tasks_or_prompts_sorts_and_filters(text, drive):
    body = """
      const cells = () => all("#heat td.heat").length;
      const column = () => texts("#heat tbody td:nth-of-type(1)").map(Number);
      const click = () => one("#heat .prompt button").click();
      const found = { prompts: cells(), families: texts("#heat .family th") };
      set("#heat-view", "tasks");
      found.tasks = cells();
      set("#heat-view", "2");
      found.one = [cells(), texts("#heat .task")];
      click();
      found.down = column();
      found.sorted = one("#heat th[aria-sort]").getAttribute("aria-sort");
      click();
      found.up = column();
      click();
      found.back = texts("#heat .family th").length;
      set("#heat-filter", "calendar");
      found.filtered = [texts("#heat tbody tr:not(.family) th"), one("#heat-count").textContent];
      return found;
    """
    found = drive(text, body)
    assert (found["prompts"], found["tasks"]) == (12 * 12, 12 * 6)
    assert found["families"] == ["calendar", "comparison", "sentiment", "taxonomy"]
    assert found["one"] == [12 * 3, ["weekday"]]
    assert found["down"] == sorted(found["down"], reverse=True)
    assert (found["sorted"], found["up"]) == ("descending", sorted(found["down"]))
    assert found["back"] == 4
    names = [f"calendar-{number}/prompt" for number in range(3)]
    assert found["filtered"] == [names, "3 of 12 experts"]


def test_a_cell_of_the_heat_map_tells_its_value_its_interval_and_who_chose_it(text, report, drive):
    told = drive(text, "return all('#heat td.heat').map((cell) => [cell.title, cell.className]);")
    percent = format_percent
    titles = {title.split(" · ")[0] for title, _ in told}
    for row in report.matrix:
        where = f"{row.expert} on {row.task}/{row.prompt}"
        ends = f"{percent(row.low)}–{percent(row.high)}"
        assert f"{where}: {percent(row.accuracy)} %, 95 % interval {ends}, 60 rows" in titles
    chosen = [title for title, names in told if "chosen" in names.split()]
    first = {f"{row.expert} on {row.task}/{row.prompt}" for row in report.selections}
    assert {title.split(": ")[0] for title in chosen} == first
    assert all("of 32 votes" in title for title in chosen)
    assert sum("merged" in names.split() for _, names in told) == 12 * 2


def test_every_task_has_a_map_with_all_keys_its_queries_and_a_text_for_who_sees_none(text, report, drive):
    body = """
      const maps = all("svg.keymap[role=img]");
      const wide = maps.map((map) => map.querySelector("use.other").getBoundingClientRect().width);
      const marks = maps.map((map) => map.querySelectorAll("use.query").length);
      return [maps.map((map) => map.ariaLabel), wide, marks, texts("#map figure:first-of-type li")];
    """
    told, wide, marks, named = drive(text, body)
    assert [each.split(":")[0] for each in told] == [points.name for points in report.key_map.queries]
    assert all(100 < each <= 320 for each in wide)  # the keys are drawn in each
    assert marks == [4] * 6
    chosen = {row.expert for row in report.selections if row.task == report.key_map.queries[0].name}
    assert set(named) <= chosen
    assert all(name in told[0] for name in named)


def test_the_browser_of_rows_filters_searches_and_pages(text, drive):
    body = """
      const rows = () => texts("#rows-list h3").map((title) => title.split("row ").pop());
      const count = () => one("#rows-count").textContent;
      const found = {};
      set("#rows-method", "roe_top1");
      found.wrong = [count(), rows()];
      one("#rows-on").click();
      found.second = [count(), rows(), one("#rows-on").disabled];
      set("#rows-right", "right");
      found.right = [count(), rows()[1]];
      set("#rows-task", "colour");
      found.task = count();
      set("#rows-search", "NUMBER 27?");
      found.search = rows();
      set("#rows-search", "nothing like it");
      found.none = [count(), rows()];
      return found;
    """
    found = drive(text, body)
    wrong = [f"row-{number}" for number in range(30) if number % 3]
    assert found["wrong"] == ["20 of 31 rows, page 1 of 2", wrong[:10]]
    assert found["second"] == ["20 of 31 rows, page 2 of 2", wrong[10:], True]
    assert found["right"] == ["10 of 31 rows, page 1 of 1", "row-3"]
    assert found["task"] == "5 of 31 rows, page 1 of 1"
    assert found["search"] == ["row-27"]
    assert found["none"] == ["0 of 31 rows, page 1 of 1", []]


def test_a_row_shows_its_text_as_text_its_choices_and_who_picked_what(text, drive):
    body = """
      set("#rows-right", "");
      set("#rows-search", "number 2?");
      const card = one("#rows-list article");
      const input = card.querySelector(".text").textContent;
      const parts = ["thead th", "tbody tr"].map((part) => texts(`#rows-list article:first-child ${part}`));
      const ranked = [input, card.querySelectorAll("b").length, ...parts];
      set("#rows-search", "number 0?");
      const folded = one("#rows-list details") !== null;
      set("#rows-search", "a pond");
      return [ranked, folded, texts("#rows-list dt"), texts("#rows-list dd")];
    """
    (told, bold, head, lines), folded, names, answers = drive(text, body)
    assert told == "What is number 2? </script><b>&amp; long "
    assert bold == 0
    assert head == ["choice", "base✓ right", "roe_top1✗ wrong"]
    assert lines == ["yes — right-0.50 ◂-0.50", "no-1.25-1.25 ◂"]
    assert folded
    assert (names, answers) == (["target", "base ✗ wrong"], ["a pond", "a moon"])


def test_no_name_of_a_user_becomes_markup_or_runs(make_run, drive):
    odd = "<img src=x onerror=document.title='run'>\"'&"
    made = page.render_html(build_report(ReportInputs(**make_run(rows=10, odd=odd)), test=PairedTest(10)))
    body = "return [document.title, all('img').length, texts('#heat .family th')[0]];"
    assert drive(made, body) == ["Report", 0, f"calendar{odd}"]


def test_the_page_fits_a_narrow_window(text, drive):
    body = "return [document.documentElement.scrollWidth, window.innerWidth];"
    wide, window = drive(text, body, "--window-size=520,900")
    assert wide <= window <= 520


def test_a_laptops_window_has_the_whole_table_of_comparisons(text, drive):
    body = "const table = one('#comparisons .scroll'); return [table.scrollWidth, table.clientWidth];"
    table, room = drive(text, body, "--window-size=1280,900")
    assert table <= room


def test_the_keyboard_reaches_every_control_and_all_that_scrolls(text, drive):
    body = """
      all("details").forEach((found) => { found.open = true; });
      const wanted = all("button, input, select, summary, .scroll[role=region]");
      const reached = (found) => { found.focus(); return document.activeElement === found; };
      const missed = wanted.filter((found) => !found.disabled && !reached(found));
      return [wanted.length, missed.map((found) => found.outerHTML)];
    """
    controls, unreached = drive(text, body)
    assert controls > 40
    assert unreached == []


@pytest.mark.parametrize("width", [1400, pytest.param(520, marks=pytest.mark.nightly)])
def test_a_screenshot_is_not_blank_in_light_or_dark(text, tmp_path, width):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "page.html").write_text(text)
    brightness = {}
    for theme, options in (("light", []), ("dark", ["--force-dark-mode"])):
        shot = tmp_path / f"{theme}.png"
        chromium(tmp_path / "page.html", *options, f"--window-size={width},1600", f"--screenshot={shot}")
        with image.open(shot) as opened:
            picture = opened.convert("RGB")
        assert picture.size[0] == width
        assert len(picture.getcolors(2**24)) > 50
        # No part of it is an empty stretch.
        for top in range(0, 1600, 320):
            assert len(picture.crop((0, top, width, top + 320)).getcolors(2**24)) > 5
        brightness[theme] = picture.convert("L").resize((1, 1)).getpixel((0, 0))
    assert brightness["light"] > 180
    assert brightness["dark"] < 80


@pytest.mark.nightly
def test_the_papers_whole_table_makes_a_page_below_ten_megabytes_that_opens(make_task, drive):
    tasks = [f"task-{task}/prompt {number}" for task in range(11) for number in range(10)]
    matrix = [
        CorrectCount(
            task, f"set-{expert % 36}/expert {expert}", n=2, right=1 + ((expert + len(task)) % 3 == 0)
        )
        for expert in range(300)
        for task in tasks
    ]
    scores = [make_task(task, f"method-{number}", [True, False]) for number in range(8) for task in tasks]
    made = page.render_html(build_report(ReportInputs(scores, expert_counts=matrix), baseline=None))
    assert len(made.encode()) < 10_000_000
    body = "return [all('#heat tbody tr:not(.family)').length, all('#all tbody tr').length];"
    assert drive(made, body) == [300, 8 * 110]


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not here")
def test_on_paper_a_table_of_many_columns_is_whole(make_task, tmp_path):
    tasks = [f"a_task_of_some_length_{number}/p" for number in range(14)]
    right = {task: [row <= number for row in range(37)] for number, task in enumerate(tasks)}
    scores = [make_task(task, method, rows) for task, rows in right.items() for method in ("base", "roe")]
    made = build_report(ReportInputs(scores), pairs=[("roe", "base")], test=PairedTest(10))
    file = tmp_path / "report.html"
    file.write_text(page.render_html(made))
    chromium(file, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    command = ["pdftotext", "-raw", tmp_path / "report.pdf", "-"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for rows in right.values():  # of both methods
        assert written.count(format_percent(sum(rows) / 37)) >= 2
    assert "McNemar" in written
