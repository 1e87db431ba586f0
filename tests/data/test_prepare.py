"""Tasks are prepared once and whole, are stale if anything changes, and are read in place of rendering."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elm_jax import cli
from elm_jax.data import (
    prepare,
    prepared_files,
    row_ranges,
    task_rows,
    task_selection,
    token_losses,
    tokenized_rows,
)
from elm_jax.errors import UserError
from elm_jax.records import RowCounts
from elm_jax.tasks import data_source, original, raw_rows, rendering, specs
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece

TASKS = ["mini_size_animal", "mini_sentiment_film"]
LENGTHS = Lengths(prompt=24, answer=8)
CLOZE = ["InputStoryid", *(f"InputSentence{n}" for n in range(1, 5))]
CLOZE += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
TEMPLATES = """\
dataset: story_cloze
templates:
  1: !Template
    answer_choices: "{{sentence_quiz1}} ||| {{sentence_quiz2}}"
    id: "1"
    jinja: "{{input_sentence_1}} What now? ||| {{answer_choices[answer_right_ending - 1]}}"
    name: Novel Correct Ending
"""
MINI = "mini_size_animal/than a dog"
NOVEL = "story_cloze/Novel Correct Ending"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = [example.input for example in task_rows.load_examples(specs.find_task(MINI), Source())]
    return sentencepiece.train(words, tmp_path_factory.mktemp("v") / "m.model", 300, kind="word", extra_ids=0)


def made(tasks, tokenizer, directory, **changes):
    source = Source(**{"limit": 20, "prepared": directory, **changes})
    return prepare.prepare_tasks(
        tasks=tasks, tokenizer=tokenizer, source=source, lengths=LENGTHS, stages=Stages()
    )


@pytest.fixture
def cloze(tmp_path):
    """A directory of datasets and one of templates, small enough to be written here."""
    (tmp_path / "t" / "story_cloze" / "2016").mkdir(parents=True)
    (tmp_path / "t" / "story_cloze" / "2016" / "templates.yaml").write_text(TEMPLATES)
    (tmp_path / "d" / "story_cloze").mkdir(parents=True)
    write_cloze(
        tmp_path, [["1", "a", "b", "c", "d", "yes", "no", "1"], ["2", "e", "f", "g", "h", "up", "in", "2"]]
    )
    return {"data_dir": tmp_path / "d", "templates_dir": tmp_path / "t", "limit": None}


def test_switches_and_truncate_of_the_source_change_the_rendering(tokenizer, cloze, tmp_path):
    templates = tmp_path / "t" / "story_cloze" / "2016" / "templates.yaml"
    templates.write_text(TEMPLATES.replace("answer_choices[answer_right_ending - 1]", "''"))
    write_cloze(tmp_path, [["1", "long " * 9, "b", "c", "d", "yes", "no", "1"]])
    spec = specs.find_task(NOVEL)
    with pytest.raises(UserError, match="1 rows"):
        task_rows.load_examples(spec, Source(**cloze))
    kept = {**cloze, "prepared": tmp_path / "p", "faithful": ["empty_renderings"]}
    (whole,) = task_rows.load_examples(spec, Source(**kept))
    (cut,) = task_rows.load_examples(spec, Source(**kept, truncate=8))
    assert whole.input == "long " * 9 + " What now?"
    assert cut.input == "long... What now?"
    # What was prepared one way is stale for another, and current for its own.
    for truncate in (None, 8):
        (outcome,) = made([NOVEL], tokenizer, tmp_path / "p", **{**kept, "truncate": truncate})
        assert outcome.made
        (back,) = task_rows.load_examples(spec, Source(**kept, truncate=truncate))
        assert back == (cut if truncate else whole)
    (again,) = made([NOVEL], tokenizer, tmp_path / "p", **{**kept, "truncate": 8})
    assert not again.made


def test_all_enables_every_switch_and_an_unknown_one_is_an_error():
    assert original.list_row_switches(("all",)) == original.ROW_SWITCHES
    assert original.list_row_switches(["homonyms", "first_rows"]) == ("first_rows", "homonyms")
    assert original.list_row_switches(["swapped_bleu"]) == ()  # which no row depends on
    assert original.list_row_switches("first_rows") == ("first_rows",)
    with pytest.raises(UserError, match=r"No switch named 'homonym' .*'homonyms'"):
        original.list_row_switches(["homonym"])


def test_evaluation_reads_the_split_that_the_catalogue_names_for_it():
    def splits(**how):
        chosen = task_selection.select_tasks(["trec/trec1", "rte@does this imply"], **how)
        return {spec.id: data_source.get_split(spec, Source()) for spec in chosen}

    assert splits() == {"trec/trec1": "train", "super_glue_rte/does this imply": "validation"}
    assert splits(evaluation=True) == {"trec/trec1": "test", "super_glue_rte/does this imply": "validation"}


def test_a_dataset_is_found_by_any_of_its_names():
    (alone,) = {
        spec.dataset for spec in task_selection.select_tasks(["rte", "super_glue/rte", "super_glue_rte"])
    }
    assert alone == "super_glue_rte"


def write_cloze(place, rows):
    with (place / "d" / "story_cloze" / "2016.csv").open("w", newline="") as file:
        csv.writer(file).writerows([CLOZE, *rows])


def test_prepared_rows_equal_rendered_and_tokenised_ones(tokenizer, tmp_path):
    outcomes = made([*TASKS], tokenizer, tmp_path)
    assert len(outcomes) == 4
    for outcome in outcomes:
        spec = specs.find_task(outcome.task)
        rendered = task_rows.load_examples(spec, Source(limit=20))
        back = task_rows.load_examples(spec, Source(limit=20, prepared=tmp_path))
        assert isinstance(back, tokenized_rows.StoredExamples)
        assert tuple(back) == tuple(rendered)
        ours, theirs = (
            task_rows.tokenize_task(rendered, tokenizer, LENGTHS),
            task_rows.tokenize_task(back, tokenizer, LENGTHS),
        )
        assert theirs is back.rows
        for name in ("inputs", "targets", "choices"):
            assert [row.tolist() for row in getattr(ours, name)] == [
                row.tolist() for row in getattr(theirs, name)
            ]
        assert outcome.made
        assert outcome.rows == len(rendered) == 20
        assert outcome.counts == RowCounts(outcome.rows, outcome.rows)


def test_scoring_rows_are_the_same_from_prepared_rows(tokenizer, tmp_path):
    made([MINI], tokenizer, tmp_path)
    spec = specs.find_task(MINI)
    rendered, back = (
        task_rows.load_examples(spec, Source(limit=20)),
        task_rows.load_examples(spec, Source(limit=20, prepared=tmp_path)),
    )
    for ours, theirs in zip(
        task_rows.build_scoring_rows(rendered, tokenizer, LENGTHS, task=MINI),
        task_rows.build_scoring_rows(back, tokenizer, LENGTHS, task=MINI),
        strict=True,
    ):
        assert list(ours.prompt) == list(theirs.prompt)
        assert [list(each) for each in ours.answers] == [list(each) for each in theirs.answers]


def test_a_current_file_is_neither_rendered_nor_written_again(tokenizer, tmp_path, monkeypatch):
    first = made(TASKS, tokenizer, tmp_path)
    stamps = [os.stat(outcome.file).st_mtime_ns for outcome in first]

    def never(*arguments, **options):
        raise AssertionError("a row was read")

    monkeypatch.setattr(raw_rows, "open_rows", never)
    again = made(TASKS, tokenizer, tmp_path)
    assert [outcome.made for outcome in again] == [False] * 4
    assert [outcome.rows for outcome in again] == [20] * 4
    assert [os.stat(outcome.file).st_mtime_ns for outcome in again] == stamps


def test_the_rows_of_a_dataset_are_read_once_for_all_its_prompts(tokenizer, tmp_path, monkeypatch):
    read = []
    open_rows = raw_rows.open_rows

    def counted(spec, *arguments, **options):
        read.append(spec.dataset)
        return open_rows(spec, *arguments, **options)

    monkeypatch.setattr(raw_rows, "open_rows", counted)
    made(TASKS, tokenizer, tmp_path)
    assert sorted(read) == sorted(TASKS)


def test_processes_give_the_same_bytes(tokenizer, tmp_path):
    made(TASKS, tokenizer, tmp_path / "one")
    source = Source(limit=20, prepared=tmp_path / "two")
    outcomes = prepare.prepare_tasks(
        tasks=TASKS, tokenizer=tokenizer, source=source, lengths=LENGTHS, processes=2
    )
    assert [outcome.task for outcome in outcomes] == [spec.id for spec in task_selection.select_tasks(TASKS)]
    for outcome in outcomes:
        spec = specs.find_task(outcome.task)
        alone = task_selection.prepared_file(tmp_path / "one", spec, spec.split)
        assert (
            alone.read_bytes()
            == task_selection.prepared_file(tmp_path / "two", spec, spec.split).read_bytes()
        )


def test_prepared_tasks_are_neither_read_nor_rendered_again(tokenizer, tmp_path, monkeypatch):
    made(TASKS, tokenizer, tmp_path)

    def never(*arguments, **options):
        raise AssertionError("work was repeated")

    monkeypatch.setattr(raw_rows, "open_rows", never)
    monkeypatch.setattr(rendering, "render_rows", never)
    monkeypatch.setattr(tokenized_rows, "tokenize_examples", never)
    for spec in task_selection.select_tasks(TASKS):
        found = task_rows.load_examples(spec, Source(limit=20, prepared=tmp_path))
        assert len(task_rows.tokenize_task(found, tokenizer, LENGTHS).targets) == 20
        assert len(task_rows.build_scoring_rows(found, tokenizer, LENGTHS, task=spec.id)) == 20


def test_a_truncated_file_is_made_again(tokenizer, tmp_path):
    (outcome,) = made([MINI], tokenizer, tmp_path)
    file = Path(outcome.file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(UserError):
        prepared_files.read_cache_key(file)
    assert made([MINI], tokenizer, tmp_path)[0].made
    assert file.read_bytes() == whole


def test_a_change_of_data_template_tokenizer_or_options_makes_a_file_stale(tokenizer, tmp_path, cloze):
    def again(tokenizer=tokenizer, lengths=LENGTHS, **changes):
        source = Source(**{**cloze, "prepared": tmp_path / "p", **changes})
        (outcome,) = prepare.prepare_tasks(tasks=[NOVEL], tokenizer=tokenizer, source=source, lengths=lengths)
        return outcome.made

    assert again()
    assert not again()
    write_cloze(
        tmp_path, [["1", "a", "b", "c", "d", "yes", "no", "1"], ["2", "e", "f", "g", "h", "up", "in", "1"]]
    )
    assert again()
    template = tmp_path / "t" / "story_cloze" / "2016" / "templates.yaml"
    template.write_text(TEMPLATES.replace("What now?", "And then?"))
    assert again()
    assert not again()
    assert again(seed=7)
    assert again(limit=1)
    assert again(lengths=Lengths(prompt=12, answer=8))
    other = sentencepiece.train(["aa bb"], tmp_path / "m", 50, kind="word", extra_ids=0)
    assert again(tokenizer=other)
    assert not again(tokenizer=other)


def test_stale_rows_are_never_read(tokenizer, tmp_path, cloze):
    source = Source(**cloze, prepared=tmp_path / "p")
    prepare.prepare_tasks(tasks=[NOVEL], tokenizer=tokenizer, source=source, lengths=LENGTHS)
    write_cloze(tmp_path, [["9", "new", "b", "c", "d", "yes", "no", "1"]])
    found = task_rows.load_examples(specs.find_task(NOVEL), source)
    assert [example.input for example in found] == ["new What now?"]


def test_rows_prepared_with_another_tokenizer_are_tokenised_again(tokenizer, tmp_path):
    made([MINI], tokenizer, tmp_path)
    other = sentencepiece.train(["the dog"], tmp_path / "m", 50, kind="word", extra_ids=0)
    back = task_rows.load_examples(specs.find_task(MINI), Source(limit=20, prepared=tmp_path))
    assert isinstance(back, tokenized_rows.StoredExamples)
    assert task_rows.tokenize_task(back, other, LENGTHS).inputs[0].max() < other.size
    assert task_rows.tokenize_task(back, tokenizer, Lengths(prompt=4, answer=8)).inputs[0].size == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got none"),
        (b"InputStoryid,InputSentence1\n1,\xff\n", "line 2: expected UTF-8"),
        (b"InputStoryid,InputSentence1\n1,a\0b\n", "line 2: .* NUL"),
        (b"InputStoryid,InputSentence1\n1,a,b\n", "expected 2 columns"),
        (b"InputStoryid,InputSentence1\n1," + b"a" * 10_000_000 + b"\n", "larger than field limit"),
    ],
    ids=["empty", "no UTF-8", "NUL", "columns", "10 MB"],
)
def test_bad_data_is_an_error_and_nothing_is_written(tokenizer, tmp_path, cloze, content, message):
    (tmp_path / "d" / "story_cloze" / "2016.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare.prepare_tasks(
            tasks=[NOVEL], tokenizer=tokenizer, source=Source(**cloze, prepared=tmp_path / "p")
        )
    assert "2016.csv" in str(error.value)
    assert list((tmp_path / "p").iterdir()) == []


def test_one_task_that_cannot_be_prepared_does_not_stop_the_others(tokenizer, tmp_path, cloze):
    (tmp_path / "d" / "story_cloze" / "2016.csv").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 2 tasks could not be prepared; the others are") as error:
        made([NOVEL, MINI], tokenizer, tmp_path / "p", **cloze)
    assert "\n  story_cloze, 1 prompts: Expected rows" in str(error.value)
    assert task_selection.prepared_file(tmp_path / "p", specs.find_task(MINI), "train").exists()


def test_the_command_prepares_with_a_given_vocabulary(tokenizer, tmp_path, capsys):
    sentencepiece.train(["the dog is bigger"], tmp_path / "m.model", 50, kind="word")
    asked = ["prepare", MINI, "--vocabulary", str(tmp_path / "m.model"), "--cache", str(tmp_path / "p")]
    asked += ["--limit", "3", "--processes", "1", "--json"]
    cli.app(asked, standalone_mode=False)
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["task"], told["split"], told["rows"], told["made"]) == (MINI, "train", 3, True)
    assert len(prepared_files.load(told["file"]).inputs) == 3


def test_the_command_needs_a_run_or_a_vocabulary(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", MINI, "--run", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "got no directory" in capsys.readouterr().err


def made_up_rows(folder: Path, count: int) -> str:
    """Writes rows of one task, a third of which cannot be used, and returns the file that defines it."""
    rows = [
        {"text": f"row {number} {'word ' * (number % 30)}", "label": number % 3 if number % 3 < 2 else 9}
        for number in range(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return written_task(
        folder,
        first={"jinja": "{{text}} ||| {{answer_choices[label]}}", "answer_choices": "dog ||| cat"},
        other={"jinja": "{{text}} ? ||| {{answer_choices[label]}}", "answer_choices": "no ||| yes"},
    )


def written_task(folder: Path, **prompts: dict[str, str]) -> str:
    """Writes a file that defines a task of `rows.jsonl`; JSON is YAML."""
    file = folder / "mine.yaml"
    file.write_text(json.dumps({"datasets": {"mine": {"jsonl": "rows.jsonl", "prompts": prompts}}}))
    return str(file)


@pytest.mark.parametrize("limit", [None, pytest.param(1000, marks=pytest.mark.nightly), 1])
def test_ranges_and_processes_give_the_bytes_of_all_rows_at_once(tokenizer, tmp_path, monkeypatch, limit):
    file = made_up_rows(tmp_path, 3000)
    source = Source(tasks=[file], limit=limit)
    specs_ = task_selection.select_tasks([file], source)
    several = 1 if limit else 2
    for name, processes, rows_of_range in (("one", 1, 256), ("two", several, 2048), ("large", 1, 10_000)):
        monkeypatch.setattr(row_ranges, "RENDERINGS_PER_RANGE", rows_of_range)
        monkeypatch.setattr(row_ranges, "FEWEST_ROWS", rows_of_range)
        outcomes = prepare.prepare_tasks(
            tasks=[file],
            tokenizer=tokenizer,
            source=dataclasses.replace(source, prepared=tmp_path / name),
            lengths=LENGTHS,
            processes=processes,
        )
        assert [outcome.rows for outcome in outcomes] == [limit or 2000] * 2
        assert not [*(tmp_path / name).rglob("*.parts")]
    for spec in specs_:
        found = [
            task_selection.prepared_file(tmp_path / name, spec, "train").read_bytes()
            for name in ("one", "two", "large")
        ]
        assert found[0] == found[1] == found[2]
        key = prepared_files.read_cache_key(task_selection.prepared_file(tmp_path / "one", spec, "train"))
        made = task_rows.tokenize_task(task_rows.load_examples(spec, source), tokenizer, LENGTHS)
        worst = token_losses.keep_worst(made.losses.missing)
        made = dataclasses.replace(made, losses=dataclasses.replace(made.losses, missing=worst))
        prepared_files.save(tmp_path / "alone", made, key)
        assert found[0] == (tmp_path / "alone").read_bytes()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import sys, time; from elm_jax.data import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool.open_pool(2) as pool:\n"
        "        found = [pool.submit(__import__('os').getpid) for _ in range(2)]\n"
        "        busy = [pool.submit(time.sleep, 600) for _ in range(4)]\n"
        "        print(*pool._processes, flush=True)\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    for number in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE) as parent:
            workers = [int(word) for word in parent.stdout.readline().split()]
            assert len(workers) == 2
            parent.send_signal(number)
            assert parent.wait() == -number
        until = time.monotonic() + 30
        while any(is_alive(worker) for worker in workers) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(is_alive(worker) for worker in workers)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_column_that_some_ranges_lack_is_no_error_and_one_that_all_lack_is(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(row_ranges, "RENDERINGS_PER_RANGE", 2)
    monkeypatch.setattr(row_ranges, "FEWEST_ROWS", 2)
    rows = [{"text": f"row {number}", **({"note": "x"} if number > 3 else {})} for number in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = written_task(tmp_path, p={"jinja": "{{text}} ||| {{note}}"})
    (outcome,) = made([task], tokenizer, tmp_path / "p", limit=None)
    assert (outcome.rows, outcome.counts.read) == (2, 6)
    written_task(tmp_path, p={"jinja": "{{text}} ||| {{nothing}}"})
    with pytest.raises(UserError, match="'nothing'"):
        made([task], tokenizer, tmp_path / "q", limit=None)
