"""Checks find every kind of mistake in a task, and nothing if nothing is wrong."""

import itertools
import json
import tracemalloc
from dataclasses import replace

import pytest

from elm_jax import cli
from elm_jax.data import check, task_selection
from elm_jax.tasks import raw_rows, specs, user_tasks
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.file_rows import FileRows
from elm_jax.tokenizers import sentencepiece

FINE = [{"text": f"text {at}", "label": at % 2} for at in range(4)]
RANKED = ("{{text}} ||| {{answer_choices[label]}}", "no ||| yes")


def checked(rows, prompt=RANKED, **how):
    (spec,) = user_tasks.define_task("mine", rows=lambda split: rows, prompts={"p": prompt})
    (found,) = check.check_tasks([spec], Source(), **how)
    return found


def found(rows, prompt=RANKED, **how):
    return {finding.kind: finding.message for finding in checked(rows, prompt, **how).findings}


def test_the_embedded_suite_has_no_findings():
    for each in check.check_tasks(
        task_selection.select_tasks(["mini_size_animal", "mini_calendar_next"]), Source()
    ):
        assert each.findings == ()
        assert each.applies == each.rows > 90


def test_tasks_may_be_named():
    named = "mini_size_animal/than a dog"
    assert check.check_tasks(named) == check.check_tasks(task_selection.select_tasks(named))


def test_rows_that_a_prompt_applies_to_are_counted():
    told = checked(FINE, ("{% if label %}{{text}} ||| yes{% endif %}", None))
    assert (told.task, told.split, told.rows, told.applies) == ("mine/p", "train", 4, 2)
    assert told.findings == ()
    assert "applies to none of the 4 rows" in found(FINE, "{% if false %}a ||| b{% endif %}")["rows"]


def test_missing_columns_are_named_with_the_first_such_row():
    told = found([*FINE, {"label": 1}, {"text": "x"}])["columns"]
    assert "reads column 'text', which 1 of 6 rows lack. The first, mine/train/4, has only these" in told
    told = found(FINE, "{{txt}} ||| a")["columns"]
    assert "'txt', which 4 of 4 rows lack" in told
    assert "'text', 'label'" in told


def test_a_column_that_the_definition_lacks_is_a_finding():
    how = {"columns": ["txt"], "rows": lambda split: FINE}
    (spec,) = user_tasks.define_task("mine", prompts={"p": RANKED}, **how)
    ((finding,),) = [each.findings for each in check.check_tasks([spec], Source())]
    assert finding.kind == "columns"
    assert "got 'label', 'text'" in finding.message


def test_targets_outside_the_choices_are_found():
    told = found(FINE, ("{{text}} ||| maybe", "no ||| yes"))["outside"]
    assert told.startswith("4 rows have a target that is none of the choices.")
    assert "row 'mine/train/0': expected a target among the choices 'no', 'yes', got 'maybe'" in told


def test_one_sided_labels_are_found():
    told = found([{"text": f"{at}", "label": 1} for at in range(5)])
    assert "Choice 2 is the right one in all of 5 rows" in told["one-sided"]
    mostly = [{"text": f"{at}", "label": int(at == 0)} for at in range(40)]
    assert "Choice 1 is the right one in 98% of 40 rows" in found(mostly)["one-sided"]
    assert "one-sided" not in found([{"text": f"{at}", "label": int(at < 4)} for at in range(40)])


def test_empty_renderings_are_found():
    assert (
        "1 row renders to an empty input, mine/train/4 first"
        in found([*FINE, {"text": " ", "label": 0}])["empty"]
    )
    assert "empty target" in found(FINE, "{{text}} ||| {{ '' }}")["empty"]


def test_a_template_that_fails_is_found_with_its_first_row():
    told = found([*FINE, {"text": "x", "label": 0, "n": 1}], "{{text}} ||| {{ n // 0 }}")["rendering"]
    assert told.startswith("1 row cannot be rendered. The first: Template 'p' of 'mine', row 'mine/train/4'")
    (finding,) = checked(FINE, "{{text}} ||| {{ 'a' * 9999999 }}").findings  # whatever the row
    assert (finding.kind, finding.rows) == ("rendering", 4)


@pytest.mark.parametrize(
    ("jinja", "row", "kind"),
    [
        (RANKED, {"text": "x", "label": 7}, "label"),
        (RANKED, {"text": "x", "label": -2}, "label"),
        (RANKED, {"text": "x", "label": -1}, "label"),  # withheld
        (RANKED, {"text": "x", "label": None}, "missing"),
        ("{{text}} ||| a", {"text": None, "label": 0}, "missing"),
        ("{{text}} {{note}} ||| a", {"text": "x", "label": 0, "note": ""}, "missing"),
        ("{{text}} ||| {{d.k}}", {"text": "x", "label": 0, "d": {}}, "element"),
        ("{{text}} {{d}} ||| a", {"text": "x", "label": 0, "d": {1, 2}}, "unstable"),
        ("{{text}} ||| {{d}}", {"text": "x", "label": 0, "d": b"\xff"}, "rendering"),
        ("{{text}} ||| a", {"text": "x" * 2_000_001, "label": 0}, "too-long"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_finding_of_its_reason(jinja, row, kind):
    rows = [{"note": "n", "d": {"k": "v"}, **each} for each in FINE]
    findings = {each.kind: each.rows for each in checked([*rows, {**rows[0], **row}], jinja).findings}
    assert findings.pop("one-sided", 0) in (0, 4)
    assert findings == {kind: 1}


def test_rows_that_a_template_does_not_apply_to_are_findings_where_they_are_refused():
    prompt = "{% if label %}{{text}} ||| yes{% endif %}"
    (spec,) = user_tasks.define_task("mine", rows=lambda split: FINE, prompts={"p": prompt})
    (told,) = check.check_tasks([spec], Source(on_bad_row="refuse"))
    assert [(each.kind, each.rows) for each in told.findings] == [("does-not-apply", 2)]


def test_a_column_that_a_template_reads_only_if_it_is_there_may_be_missing():
    rows = [*FINE, {"text": "more", "label": 1, "note": "so"}]
    assert found(rows, "{{text}}{% if note is defined %} {{note}}{% endif %} ||| a") == {}


def test_the_filter_that_cuts_texts_may_change_what_a_template_computes(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "templates.yaml").write_text(
        "dataset: mine\ntemplates:\n  1: !Template\n    answer_choices: null\n    id: '1'\n"
        "    name: product\n    jinja: '{{label}} times 3 ||| {{ 3 * label }}'\n"
        "    metadata: !TemplateMetadata {}\n"
    )
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"label": {at}}}\n' for at in (1, 2, 3)))
    (tmp_path / "mine.yaml").write_text("datasets:\n  mine:\n    jsonl: rows.jsonl\n")
    (spec,) = user_tasks.load_tasks(tmp_path / "mine.yaml")
    (told,) = check.check_tasks([spec], Source())
    assert [(each.kind, each.rows) for each in told.findings] == [("truncation", 3)]  # 111, 222 and 333
    (told,) = check.check_tasks([spec], Source(truncate=None))
    assert told.findings == ()


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_texts_of_rows():
    texts = ["word " * 400] * 64

    def rows():
        return ({"text": f"{at} {texts[at % 64]}", "label": at % 2} for at in range(6000))

    made = FileRows(6000, lambda numbers: itertools.islice(rows(), numbers[0], numbers[-1] + 1))
    (spec,) = user_tasks.define_task("mine", rows=lambda split: made, prompts={"p": RANKED})
    tracemalloc.start()
    (told,) = check.check_tasks([spec], Source())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (told.rows, told.findings) == (6000, ())
    assert peak < 2000 * 6000  # the bytes of the texts alone


def test_texts_cut_by_characters_and_by_tokens_are_found(tmp_path):
    long = [{"text": "word " * 600, "label": 0}, *FINE]
    assert "1 row has a text of more than 2,048 characters" in found(long)["over-long"]
    made_long = ("{{text * 999}} ||| {{answer_choices[label]}}", "no ||| yes")
    assert "4 rows have a text of more than 2,048 characters" in found(FINE, made_long)["over-long"]
    tokenizer = sentencepiece.train(["text 0 1 2 3 no yes"], tmp_path / "m", 50, kind="word", extra_ids=0)
    told = found(FINE, tokenizer=tokenizer, lengths=Lengths(prompt=2, answer=2))["over-long"]
    assert told.startswith(
        "4 of 4 inputs have more than 2 tokens and are cut; the longest, of mine/train/0, has 3"
    )
    assert "over-long" not in found(FINE, tokenizer=tokenizer, lengths=Lengths(prompt=3, answer=2))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = "text one two three no yes 0 1 2 3"
    file = tmp_path_factory.mktemp("v") / "m"
    return sentencepiece.train([text], file, 50, kind="word", extra_ids=0)


def test_the_share_of_unknown_tokens_is_found_with_the_worst_words(words):
    rows = [{"text": text, "label": 0} for text in ("one zwei", "zwei two drei", "two")]
    finding = next(each for each in checked(rows, tokenizer=words).findings if each.kind == "unknown")
    assert finding.rows == 2
    # 3 of the 6 tokens of inputs; every target and choice is known.
    assert "50.0% of the tokens of inputs" in finding.message
    assert "targets" not in finding.message
    assert "'zwei' 2, 'drei' 1" in finding.message
    assert "unknown" not in found(FINE, tokenizer=words)


def test_newlines_and_tabs_that_are_spaces_to_the_vocabulary_are_found(words):
    rows = [{"text": "one\n\ntwo\tthree", "label": 0}, {"text": "two", "label": 1}]
    finding = next(each for each in checked(rows, tokenizer=words).findings if each.kind == "folded")
    assert finding.rows == 1
    assert r"'\n' 2, '\t' 1" in finding.message
    assert "folded" not in found(rows)


def test_choices_that_are_the_same_tokens_the_same_text_or_alone_are_found(words):
    def kinds(choices, **how):
        every = checked(FINE, ("{{text}} ||| {{answer_choices[0]}}", choices), **how).findings
        return {each.kind: each.rows for each in every if "choice" in each.kind or each.kind == "same-tokens"}

    assert kinds("eins ||| zwei") == {}
    assert kinds("eins ||| zwei", tokenizer=words) == {"same-tokens": 4}
    assert kinds("no yes ||| no", tokenizer=words) == {}
    assert kinds("no yes ||| no", tokenizer=words, lengths=Lengths(9, 2)) == {"same-tokens": 4}
    assert kinds("no ||| yes ||| no", tokenizer=words) == {"repeated-choices": 4}
    assert kinds("no", tokenizer=words) == {"single-choice": 4}


def test_composed_characters_beside_decomposed_ones_are_found():
    composed, decomposed = {"text": "caf\u00e9", "label": 0}, {"text": "cafe\u0301", "label": 1}
    finding = next(each for each in checked([composed, decomposed]).findings if each.kind == "unicode")
    assert finding.rows == 1
    assert "mine/train/1 is the first" in finding.message
    for rows in ([composed, *FINE], [decomposed, *FINE]):
        assert "unicode" not in found(rows)


def test_lost_tokens_are_counted(words):
    rows = [{"text": text, "label": 0} for text in ("one two three", "two one", "one")]
    told = found(rows, tokenizer=words, lengths=Lengths(prompt=2, answer=2))["over-long"]
    assert "3 of 6 tokens are lost" in told
    told = found(rows, tokenizer=replace(words, input_eos=False), lengths=Lengths(prompt=2, answer=2))
    assert "1 of 6 tokens are lost" in told["over-long"]


def test_duplicates_and_contradictions_among_them_are_found():
    told = found([*FINE, {"text": "text 0", "label": 0}, {"text": "text 1", "label": 0}])["duplicates"]
    assert told.startswith(
        "2 rows have the input and choices of an earlier one, 1 of them with another target"
    )
    assert "(mine/train/4 has those of mine/train/0)" in told


def test_no_more_rows_are_read_than_the_limit(monkeypatch):
    read = []
    open_rows = raw_rows.open_rows

    def counted(*arguments):
        rows = open_rows(*arguments)

        def read_some(start, stop):
            read.extend(range(start, stop))
            return rows.read(start, stop)

        return replace(rows, read=read_some)

    monkeypatch.setattr(raw_rows, "open_rows", counted)
    rows = [{"text": f"text {at}", "label": at % 2} for at in range(50)]
    (spec,) = user_tasks.define_task("mine", rows=lambda split: rows, prompts={"p": RANKED})
    (told,) = check.check_tasks([spec], Source(limit=3))
    assert (told.rows, read) == (3, [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "got none"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: expected UTF-8"),
        (b'{"text": "a\0"}\n', "line 1: expected text, got a NUL byte"),
        (b'{"text": "\\u0000"}\n', "line 1: expected text, got a NUL"),
        (b'{"text": "' + b"a" * 10_000_000 + b'"}\n', "got 10,000,000"),
        (b'{"text": \n', "line 1: expected JSON"),
        (b"[1]\n", "expected a JSON object"),
    ],
    ids=["empty", "UTF-8", "NUL", "escaped NUL", "10 MB", "JSON", "list"],
)
def test_bad_files_are_findings_that_name_the_line(tmp_path, content, expected):
    (tmp_path / "rows.jsonl").write_bytes(content)
    (spec,) = user_tasks.define_task("mine", jsonl=str(tmp_path / "rows.jsonl"), prompts={"p": RANKED})
    (told,) = check.check_tasks([spec], Source())
    ((kind, message),) = [(finding.kind, finding.message) for finding in told.findings]
    assert kind == "rows"
    assert expected in message
    assert "rows.jsonl" in message
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl"]


def test_findings_of_allowed_kinds_are_dropped():
    told = [checked([{"text": "a", "label": 1}] * 3)]
    assert {finding.kind for finding in told[0].findings} == {"one-sided", "duplicates"}
    (left,) = check.drop_findings(told, check.parse_kinds(["duplicates"]))
    assert [finding.kind for finding in left.findings] == ["one-sided"]
    assert {finding.kind for finding in told[0].findings} <= set(check.FINDING_KINDS)


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["tasks", "check", *arguments])
    return stop.value.code


def test_the_command_exits_with_1_if_anything_is_wrong_and_reads_files(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n' * 2 + '{"text": "b", "label": 0}\n')
    (tmp_path / "mine.yaml").write_text(
        "datasets:\n  mine:\n    jsonl: rows.jsonl\n    prompts:\n      p:\n"
        '        jinja: "{{text}} ||| {{answer_choices[label]}}"\n        answer_choices: "no ||| yes"\n'
    )
    assert run(str(tmp_path / "mine.yaml")) == 1
    said = capsys.readouterr().out
    assert "mine/p (train): applies to 3 of 3 rows." in said
    assert "  duplicates: 1 row" in said
    assert run(str(tmp_path / "mine.yaml"), "--allow", "duplicates") == 0
    capsys.readouterr()
    assert run("mine/p", "--tasks", str(tmp_path / "mine.yaml"), "--json") == 1
    (told,) = json.loads(capsys.readouterr().out)
    assert told["applies"] == 3
    (finding,) = told["findings"]
    assert list(finding) == ["kind", "rows", "message"]
    assert (finding["kind"], finding["rows"]) == ("duplicates", 1)
    assert run(specs.task_specs("mini")[0].id) == 0
    assert run("mine/p", "--allow", "duplicate") == 2
