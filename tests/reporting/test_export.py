"""Export: tables and figures in files of their own, read back by other programs' readers."""

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from etils import epath

from elm_jax.reporting import documents, export
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report
from elm_jax.reporting.tables import Table

FIGURES = ("comparisons", "prompts", "experts", "key_map")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def written(report, tmp_path):
    return {file.name: file for file in export.export_report(report, epath.Path(tmp_path / "new"))}


def test_every_table_is_there_in_three_forms_and_every_figure(report, written):
    tables = {f"{name}.{ending}" for name in documents.list_tables(report) for ending in ("csv", "md", "tex")}
    assert {"accuracy.tex", "comparisons.csv", "chosen_experts.md"} < tables
    assert set(written) == tables | {f"{name}.svg" for name in FIGURES}


def test_a_table_in_csv_has_the_cells_of_the_table(report, written):
    for name, table in documents.list_tables(report).items():
        lines = list(csv.reader(written[f"{name}.csv"].read_text().splitlines()))
        assert lines[0] == list(table.header)
        assert len(lines) == len(table.rows) + 1


def test_a_table_in_latex_is_booktabs_with_its_text_escaped():
    table = Table(
        "A_b",
        ("method", "50 %"),
        (("zero-shot:", ""), ("roe_1 †", "+1.5"), ("x & {y}", "−2.0")),
        "With $ and #.",
    )
    assert export.render_latex(table, "own").splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A\_b. With \$ and \#.}",
        r"\label{tab:own}",
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"method & 50 \% \\",
        r"\midrule",
        r"\multicolumn{2}{l}{\emph{zero-shot:}} \\",
        r"roe\_1 $\dagger$ & +1.5 \\",
        r"x \& \{y\} & $-$2.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_text_is_escaped_as_pandas_does():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    cells = [["roe_1", "50 % & $5", "a#b"], ["a~b", "c^d", "e\\f {g}"]]
    theirs = pandas.DataFrame(cells, columns=["a_method", "b", "c"]).to_latex(index=False, escape=True)
    # pandas writes a space after the name of a command, and we a pair of braces.
    theirs = re.sub(r"(\\text[a-z]+) ", r"\1{}", theirs)
    ours = export.render_latex(Table("", ("a_method", "b", "c"), tuple(map(tuple, cells))), "x")
    assert [line for line in ours.splitlines() if line.endswith(r"\\")] == [
        line for line in theirs.splitlines() if line.endswith(r"\\")
    ]


def test_every_character_of_our_own_tables_is_one_that_latex_sets():
    sources = Path(export.__file__).parent.glob("*.py")
    used = {letter for file in sources if file.name != "export.py" for letter in file.read_text()}
    unknown = {letter for letter in used if ord(letter) > 0xFF} - set(export.LATEX)
    assert unknown <= {"⁹"}  # of a comment


def test_every_line_of_a_table_in_latex_has_as_many_cells_as_columns(report, written):
    for name, table in documents.list_tables(report).items():
        text = written[f"{name}.tex"].read_text()
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert len(columns) == len(table.header)
        for line in text.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1


def test_figures_are_xml_with_a_mark_for_each_number(report, written):
    drawn = {name: ElementTree.fromstring(written[f"{name}.svg"].read_text()) for name in FIGURES}
    assert len(list(drawn["comparisons"].iter(f"{SVG}circle"))) == len(report.comparisons)
    assert len(list(drawn["prompts"].iter(f"{SVG}circle"))) == len(report.rows)
    titled = [one for one in drawn["experts"].iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    assert len(titled) == len(report.matrix)
    assert len(list(drawn["key_map"].iter(f"{SVG}path"))) == 6 * 4  # datasets, queries of each
    for figure in drawn.values():
        width = float(figure.attrib["width"])
        assert all(float(one.attrib["cx"]) <= width for one in figure.iter(f"{SVG}circle"))


def test_names_of_users_stay_text_in_figures(make_run, tmp_path):
    run = ReportInputs(**make_run(rows=20, odd=" <script src=x>\"'&|"))
    for name, figure in export.render_figures(build_report(run, test=PairedTest(50))).items():
        texts = [one.text for one in ElementTree.fromstring(figure).iter(f"{SVG}text")]
        assert any("<script" in text for text in texts) == (name != "comparisons")
        assert "<script" not in figure
