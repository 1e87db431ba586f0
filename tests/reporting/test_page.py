"""The page as a parser sees it: whole, sortable, self-contained, and no name of a user becomes markup."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from elm_jax.reporting import page
from elm_jax.reporting.summary import summarise

VOID = {"meta", "link", "input", "br"}
ODD = " <script src=x>\"'&|"


class Page(HTMLParser):
    """Elements with their attributes and text; fails where a tag is left open or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "path": [e["tag"] for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attrs):
        return [
            element
            for element in self.elements
            if element["tag"] == tag
            and all(value in (element["attrs"].get(name) or "").split() for name, value in attrs.items())
        ]

    def classed(self, tag, name):
        return self.all(tag, **{"class": name})


@pytest.fixture(scope="module")
def parsed(report):
    return Page(page.html(report))


def squeezed(element):
    return " ".join(element["text"].split())


def test_every_section_is_there(parsed):
    assert [section["attrs"]["id"] for section in parsed.all("section")] == [
        "accuracy",
        "comparisons",
        "prompts",
        "experts",
        "selections",
        "rows",
        "environment",
    ]


def test_parts_without_content_are_left_out(report):
    lean = dataclasses.replace(report, comparisons=(), selections=(), matrix=())
    sections = [section["attrs"]["id"] for section in Page(page.html(lean)).all("section")]
    assert sections == ["accuracy", "prompts", "rows", "environment"]


def test_the_lead_names_the_best_method_without_hindsight_and_its_comparison(parsed, report):
    (lead,) = parsed.classed("p", "lead")
    best = max((m for m in report.means if not m["hindsight"]), key=lambda m: m["macro"])
    assert squeezed(lead).startswith(f"{best['method']} gets {100 * best['macro']:.1f} %")
    assert "6 tasks with 12 prompts, 360 rows in all" in squeezed(lead)
    assert "after correction for 4 comparisons" in squeezed(lead)


def test_the_headline_shows_every_cell_with_its_interval_and_chance_below(parsed, report):
    cells = [
        element
        for element in parsed.all("td")
        if "data-value" in element["attrs"] and "mean" not in element["attrs"]["class"]
    ]
    for cell, task in zip(cells, report.tasks, strict=False):
        low, high = 100 * task["low"], 100 * task["high"]
        assert float(cell["attrs"]["data-value"]) == task["accuracy"]
        assert squeezed(cell) == f"{100 * task['accuracy']:.1f}{low:.1f}–{high:.1f}"
    foot = [squeezed(element) for element in parsed.all("td") if "tfoot" in element["path"]]
    assert foot[3:] == ["33.3", "50.0", "25.0", "50.0", "20.0", "50.0"]


def test_hindsight_is_explained_and_never_the_best(parsed):
    text = " ".join(squeezed(caption) for caption in parsed.classed("p", "caption"))
    assert "best_single and oracle were picked in hindsight, by the right answers of these very rows" in text
    rows = parsed.classed("tr", "hindsight")
    assert [squeezed(row).split(" ")[0] for row in rows] == ["best_single", "oracle"]
    start = parsed.elements.index(rows[1])
    oracle = parsed.elements[start : start + 25]
    assert not any("best" in (element["attrs"].get("class") or "").split() for element in oracle)


def test_every_column_with_a_button_sits_in_a_sortable_table(parsed):
    buttons = [element for element in parsed.all("button") if "th" in element["path"]]
    assert len(buttons) == 10 + 5 + 5 + 6
    assert len(parsed.classed("table", "sortable")) == 4


def test_filters_name_a_table_that_exists(parsed):
    for element in parsed.classed("input", "filter"):
        assert len(parsed.all("table", id=element["attrs"]["data-filters"])) == 1


def test_each_comparison_is_drawn_and_the_number_of_them_is_said(parsed):
    assert len(parsed.classed("svg", "forest")) == 4
    assert any("4 comparisons of macro means" in squeezed(p) for p in parsed.classed("p", "caption"))


def test_the_heat_map_has_a_cell_for_each_expert_and_prompt_with_its_value_on_hover(parsed, report):
    cells = parsed.classed("td", "heat")
    assert len(cells) == len(report.matrix) == 12 * 12
    titles = {cell["attrs"]["title"].split(" · ")[0] for cell in cells}
    for row in report.matrix:
        where = f"{row['expert']} on {row['task']}/{row['prompt']}"
        assert f"{where}: {page.tables.percent(row['accuracy'])} %" in titles
    assert [squeezed(family) for family in parsed.classed("tr", "family")] == [
        "calendar",
        "comparison",
        "sentiment",
        "taxonomy",
    ]


def test_the_experts_that_were_chosen_are_marked(parsed, report):
    first = {(row["expert"], f"{row['task']}/{row['prompt']}") for row in report.selections}
    marked = {
        tuple(cell["attrs"]["title"].split(": ")[0].split(" on ")) for cell in parsed.classed("td", "chosen")
    }
    assert marked == first
    assert len(parsed.classed("td", "merged")) == 12 * 2


def test_votes_are_drawn_in_proportion(parsed, report):
    bars = parsed.classed("div", "votes")
    assert len(bars) == len(report.selections)
    flex = [
        span["attrs"]["style"] for span in parsed.classed("span", "other") + parsed.classed("span", "chosen")
    ]
    assert sum(int(style.removeprefix("flex:")) for style in flex) == 32 * len(report.selections)


def test_the_page_fetches_nothing(parsed, report):
    text = page.html(report)
    assert not re.search(r"https?:|//[a-z]", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert not any("src" in element["attrs"] for element in parsed.elements)
    assert [element["attrs"]["href"] for element in parsed.elements if "href" in element["attrs"]] == [
        "data:,"
    ]
    (policy,) = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["attrs"]["content"].startswith("default-src 'none';")


def test_light_and_dark_name_the_same_colours(report):
    style = page.html(report)
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    names = [set(re.findall(r"--[a-z0-9-]+(?=:)", block)) for block in (light, dark)]
    assert names[0] == names[1]


def test_no_name_becomes_markup(make_run):
    odd = summarise(**make_run(rows=10, odd=ODD), samples=10)
    plain = summarise(**make_run(rows=10), samples=10)
    parsed = Page(page.html(odd))
    assert len(parsed.all("script")) == 1
    assert len(parsed.elements) == len(Page(page.html(plain)).elements)
    assert any(f"colour{ODD}" in squeezed(button) for button in parsed.all("button"))


def test_a_title_and_a_note_in_the_environment_open_the_page(report):
    named = dataclasses.replace(report, environment={"title": "A & B", "note": "small", "seed": 1})
    parsed = Page(page.html(named))
    assert [squeezed(element) for element in parsed.all("h1") + parsed.classed("p", "note")] == [
        "A & B",
        "small",
    ]
    assert [element["text"] for element in parsed.all("dt") if "section" in element["path"]][-1] == "seed"


def test_one_method_on_one_prompt_makes_a_page(make_task):
    text = page.html(summarise([make_task("a/1", "base", [True, False])], [], {}))
    assert "1 task with 1 prompt, 2 rows in all" in " ".join(Page(text).all("header")[0]["text"].split())
