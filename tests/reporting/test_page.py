"""The page as a parser sees it: whole, sortable, self-contained, and no name of a user becomes markup."""

import base64
import dataclasses
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest

from elm_jax.records import Selection
from elm_jax.reporting import page
from elm_jax.reporting.records import GeneratedResult, MethodDescription
from elm_jax.reporting.report_files import write_report
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report

VOID = {"meta", "link", "input", "br", "col", "wbr"}
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
    return Page(page.render_html(report))


def squeezed(element):
    return " ".join(element["text"].split())


def test_every_section_is_there(parsed):
    assert [section["attrs"]["id"] for section in parsed.all("section")] == [
        "accuracy",
        "comparisons",
        "prompts",
        "experts",
        "selections",
        "map",
        "rows",
        "environment",
    ]


def test_parts_without_content_are_left_out(report):
    lean = dataclasses.replace(report, comparisons=(), selections=(), matrix=(), key_map=None)
    sections = [section["attrs"]["id"] for section in Page(page.render_html(lean)).all("section")]
    assert sections == ["accuracy", "prompts", "rows", "environment"]


def test_every_link_inside_the_page_leads_somewhere(parsed):
    ids = {element["attrs"].get("id") for element in parsed.elements}
    links = [element["attrs"]["href"] for element in parsed.all("a")]
    inside = [link for link in links if link[0] == "#"]
    assert len(inside) == 9
    assert {link.removeprefix("#") for link in inside} <= ids


def test_the_page_links_to_the_files_of_the_same_numbers_beside_it(report, parsed, tmp_path):
    links = [element["attrs"]["href"] for element in parsed.all("a")]
    beside = {link for link in links if link[0] != "#"}
    assert beside == {path.name for path in write_report(report, tmp_path).values()} - {"report.html"}


def test_every_table_has_a_caption_and_headers_with_their_scope(parsed):
    captions = [element for element in parsed.all("caption") if "table" in element["path"]]
    assert len(captions) == len(parsed.all("table")) == 4
    assert all(header["attrs"].get("scope") for header in parsed.all("th"))
    assert all("aria-label" in scroll["attrs"] for scroll in parsed.classed("div", "scroll"))


def test_the_lead_names_the_best_method_without_hindsight_and_its_comparison(parsed, report):
    (lead,) = parsed.classed("p", "lead")
    best = max((m for m in report.means if m.labels == "none"), key=lambda m: m.macro)
    assert squeezed(lead).startswith(f"{best.method} gets {100 * best.macro:.1f} %")
    assert "6 tasks with 12 prompts, 360 rows in all" in squeezed(lead)
    assert "after correction for 4 comparisons" in squeezed(lead)


@pytest.mark.parametrize(("right", "answer"), [(38, "Yes"), (20, "The test does not tell"), (4, "No")])
def test_the_first_sentence_says_whether_retrieval_beats_multitask(make_task, right, answer):
    counts = {"base": 1, "multitask": 21, "roe": right}
    scores = [make_task("a/1", name, [True] * n + [False] * (40 - n)) for name, n in counts.items()]
    methods = [MethodDescription(name, name, None, "none", "") for name in ("multitask", "roe")]
    inputs = ReportInputs(scores, methods=methods)
    report = build_report(inputs, pairs=[("roe", "base"), ("roe", "multitask")], test=PairedTest(200))
    first, second = map(squeezed, Page(page.render_html(report)).classed("p", "lead"))
    assert first.startswith(f"Does retrieval beat multitask here? {answer}:")
    assert f"{100 * (right - 21) / 40:+.1f}" in first
    assert ("does not tell it apart from" in second) == (right == 20)


def test_of_methods_that_round_alike_the_lead_names_the_one_that_others_were_tested_against(make_task):
    counts = {"base": 100, "roe": 2001, "bm25": 2002}  # of 4,000 rows: 50.0 % both
    scores = [make_task("a/1", name, [True] * n + [False] * (4000 - n)) for name, n in counts.items()]
    report = build_report(ReportInputs(scores), test=PairedTest(100))
    (lead,) = Page(page.render_html(report)).classed("p", "lead")
    assert squeezed(lead).startswith("bm25 gets 50.0 %") or squeezed(lead).startswith("bm25 gets 50.1 %")
    assert "does not tell it apart from roe:" in squeezed(lead)


def test_the_headline_shows_every_cell_with_its_interval_and_chance_below(parsed, report):
    cells = [
        element
        for element in parsed.all("td")
        if "data-value" in element["attrs"] and "mean" not in element["attrs"]["class"]
    ]
    assert len(report.tasks) == 7 * 6
    for cell, task in zip(cells, report.tasks, strict=False):
        low, high = 100 * task.low, 100 * task.high
        assert float(cell["attrs"]["data-value"]) == task.accuracy
        assert squeezed(cell) == f"{100 * task.accuracy:.1f}{low:.1f}–{high:.1f}"
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
    assert len(buttons) == 10 + 7 + 7 + 6
    assert len(parsed.classed("table", "sortable")) == 4


def test_filters_name_a_table_that_exists(parsed):
    filters = [element for element in parsed.all("input") if "data-filters" in element["attrs"]]
    assert len(filters) == 2
    for element in filters:
        assert len(parsed.all("table", id=element["attrs"]["data-filters"])) == 1


def test_each_comparison_is_drawn_and_the_number_of_them_is_said(parsed):
    assert len(parsed.classed("svg", "forest")) == 4
    assert any("4 comparisons of macro means" in squeezed(p) for p in parsed.classed("p", "caption"))


def test_what_the_scripts_draw_lies_in_the_page_as_json(parsed, report):
    (data,) = [element for element in parsed.all("script") if element["attrs"].get("id") == "heat-data"]
    heat = json.loads(data["text"])
    assert sum(value is not None for line in heat["accuracy"] for value in line) == len(report.matrix)


def test_no_text_ends_the_script_that_holds_it():
    text = "</script><!-- \u2028 & <script>"
    assert json.loads(page.embed_json({"a": text})) == {"a": text}
    assert not set("<>&\u2028") & set(page.embed_json({"a": text}))
    assert page.embed_json({}) == ""


def test_only_the_pages_own_script_may_run(report):
    text = page.render_html(report)
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)


def test_votes_are_drawn_in_proportion(parsed, report):
    bars = parsed.classed("div", "votes")
    assert len(bars) == len(report.selections)
    flex = [
        span["attrs"]["style"] for span in parsed.classed("span", "other") + parsed.classed("span", "chosen")
    ]
    assert sum(int(style.removeprefix("flex:")) for style in flex) == 32 * len(report.selections)


def test_the_page_fetches_nothing(parsed, report):
    text = page.render_html(report)
    assert not re.search(r"https?:|//[a-z]", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert not any("src" in element["attrs"] for element in parsed.elements)
    links = [element["attrs"]["href"] for element in parsed.elements if "href" in element["attrs"]]
    beside = {f"report.{ending}" for ending in ("csv", "md", "json")}  # which a reader may open
    assert {link for link in links if not link.startswith("#")} == {"data:,", *beside}
    (policy,) = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["attrs"]["content"].startswith("default-src 'none';")


def test_light_and_dark_name_the_same_colours(report):
    style = page.render_html(report)
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    names = [set(re.findall(r"--[a-z0-9-]+(?=:)", block)) for block in (light, dark)]
    assert names[0] == names[1]


def test_no_name_becomes_markup(make_run):
    odd = build_report(ReportInputs(**make_run(rows=10, odd=ODD)), test=PairedTest(10))
    plain = build_report(ReportInputs(**make_run(rows=10)), test=PairedTest(10))
    parsed = Page(page.render_html(odd))
    assert len(parsed.all("script")) == 2
    assert len(parsed.elements) == len(Page(page.render_html(plain)).elements)
    assert any(f"colour{ODD}" in squeezed(button) for button in parsed.all("button"))


def test_a_title_and_a_note_in_the_environment_open_the_page(report):
    named = dataclasses.replace(report, environment={"title": "A & B", "note": "small", "seed": 1})
    parsed = Page(page.render_html(named))
    assert [squeezed(element) for element in parsed.all("h1") + parsed.classed("p", "note")] == [
        "A & B",
        "small",
    ]
    assert [element["text"] for element in parsed.all("dt") if "section" in element["path"]][-1] == "seed"


def test_one_method_on_one_prompt_makes_a_page(make_task):
    text = page.render_html(build_report(ReportInputs([make_task("a/1", "base", [True, False])])))
    assert "1 task with 1 prompt, 2 rows in all" in " ".join(Page(text).all("header")[0]["text"].split())


def test_votes_beyond_the_eighth_part_are_summed_up(make_task):
    votes = {f"x/{number}": 1 for number in range(12)}
    selection = Selection("a/1", "roe", {"x/3": 1.0}, votes, ("1",) * 12)
    parsed = Page(
        page.render_html(build_report(ReportInputs([make_task("a/1", "base", [True])], [selection])))
    )
    titles = [part["attrs"].get("title", "") for part in parsed.all("span")]
    assert [title for title in titles if title.startswith(("x/3", "4 others"))] == ["x/3: 1", "4 others: 4"]


def test_few_shot_methods_stand_in_a_block_of_their_own_and_are_never_the_best(make_task):
    scores = [make_task("a/1", "base", [True, False]), make_task("a/1", "lorahub", [True, True])]
    methods = [MethodDescription("lorahub", "lorahub", None, "few", "5 rows")]
    parsed = Page(page.render_html(build_report(ReportInputs(scores, methods=methods), test=PairedTest(10))))
    (block,) = parsed.classed("tbody", "few")
    assert squeezed(block).startswith("few-shot: chosen with a few labelled rows of the task lorahub 100.0")
    assert len(parsed.classed("td", "best")) == 3
    (lead,) = parsed.classed("p", "lead")
    assert squeezed(lead).startswith("base gets 50.0 %")


def test_cells_that_were_seen_are_marked_and_the_mean_says_what_it_is_over(make_task):
    scores = [make_task(task, of, [True, False]) for of in ("base", "multi") for task in ("a/1", "b/1")]
    scores[2] = dataclasses.replace(scores[2], seen=True)
    parsed = Page(page.render_html(build_report(ReportInputs(scores), test=PairedTest(10))))
    (cell,) = parsed.classed("td", "seen")
    assert squeezed(cell).startswith("50.0 ‡")
    assert any("1 of 2 tasks" in squeezed(mean) for mean in parsed.classed("td", "mean"))


def test_the_papers_tasks_stand_under_their_headings_beside_published_rows(make_task):
    scores = [make_task(f"{task}/1", "base", [True]) for task in ("story_cloze", "super_glue_cb")]
    parsed = Page(page.render_html(build_report(ReportInputs(scores))))
    groups = [squeezed(head) for head in parsed.all("th", scope="colgroup")]
    assert groups == ["Means", "Natural language inference", "Sentence completion"]
    (block,) = parsed.classed("tbody", "published")
    assert "published, not measured here" in squeezed(block)
    assert "T0-3B 66.9 – 48.8 84.9" in squeezed(block)


def test_a_report_of_generated_answers_alone_makes_a_page():
    row = GeneratedResult("roe", "haiku", "p", 3, "bleu (intl)", 12.5, 10.0, 15.0, False)
    parsed = Page(page.render_html(build_report(ReportInputs(generated=[row]))))
    assert [section["attrs"]["id"] for section in parsed.all("section")] == ["generated", "environment"]
    assert "12.5 [10.0, 15.0]" in squeezed(parsed.all("table", id="written")[0])
