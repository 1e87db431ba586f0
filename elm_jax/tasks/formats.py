"""Formats: the JSON files of DREAM, BIG-bench and CT0, read into rows.

Readers raise a UserError that names the file and the dialogue or example, as those of `files` do.
"""

from collections.abc import Mapping
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tasks.file_rows import FileRow, FileRows, hold_rows_in_memory, require_rows
from elm_jax.tasks.files import Reader, parse_json, read_text, require_text


def read_dream(file: storage.PathLike) -> FileRows:
    """Reads DREAM's JSON: one row per question, with the columns of the hub's copy.

    Each dialogue is `[turns, questions, dialogue id]`; `id` counts the questions from 0.
    """
    rows: list[FileRow] = []
    dialogues = parse_json(read_text(file), repr(str(file)))
    if not isinstance(dialogues, list):
        raise UserError(
            f"Expected {str(file)!r} to hold a list of dialogues, got another value. Fix: use DREAM's own "
            "file."
        )
    for number, dialogue in enumerate(dialogues, start=1):
        where = f"{str(file)!r}, dialogue {number}"
        try:
            turns, questions, identity = dialogue
            found = [(entry["question"], entry["choice"], entry["answer"]) for entry in questions]
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"{where}: expected [turns, questions, id], got another value. Fix: use DREAM's own file."
            ) from error
        for question, choice, answer in found:
            row = {
                "id": len(rows),
                "dialogue_id": identity,
                "dialogue": turns,
                "question": question,
                "choice": choice,
                "answer": answer,
            }
            _require_dream_types(row, where)
            rows.append(require_text(row, where))
    return hold_rows_in_memory(require_rows(rows, file))


_PREFIXES = {
    "task_prefix": "",
    "example_input_prefix": "\nQ: ",
    "choice_prefix": "\n choice: ",
    "example_output_prefix": "\nA: ",
}


def read_bigbench(file: storage.PathLike) -> FileRows:
    """Reads a task of BIG-bench: one row per example, with `text`, `choices` and the right choice's `label`.

    The text is that of the paper's code, which puts a space before every choice, unlike BIG-bench's own, and
    keeps the choices in the file's order: task prefix, input prefix, input, the choices if they belong to the
    input, output prefix. The label is None unless exactly one choice is right.
    """
    task = _read_object(file)
    examples = task.get("examples")
    if not isinstance(examples, list):
        raise UserError(
            f"Expected {str(file)!r} to be a task of BIG-bench with `examples`, got none. Fix: of a task "
            "with subtasks, use the files in its subfolders."
        )
    for name in _PREFIXES:
        if not isinstance(task.get(name, ""), str):
            raise UserError(
                f"{str(file)!r}: expected text as {name}, got {task[name]!r:.40}. Fix: use BIG-bench's own "
                "file."
            )
    before, ask, choose, answer = (task.get(name, usual) for name, usual in _PREFIXES.items())
    rows = []
    for number, example in enumerate(examples, start=1):
        where = f"{str(file)!r}, example {number}"
        text = example.get("input") if isinstance(example, dict) else None
        scores = example.get("target_scores") if isinstance(example, dict) else None
        if not (isinstance(text, str) and isinstance(scores, dict) and scores):
            raise UserError(
                f"{where}: expected `input` and `target_scores`, got another value. Fix: choose a task with "
                "choices."
            )
        # A text like "false" counts as true, as in both codes; logic_grid_puzzle has it.
        shown = list(scores) if task.get("append_choices_to_input", True) else []
        right = [place for place, score in enumerate(scores.values()) if score == 1]
        row = {
            "text": "".join([before, ask, text, *(choose + choice for choice in shown), answer]),
            "choices": list(scores),
            "label": right[0] if len(right) == 1 else None,
        }
        rows.append(require_text(row, where))
    return hold_rows_in_memory(require_rows(rows, file))


def read_ct0(file: storage.PathLike) -> FileRows:
    """Reads CT0's JSON, lists of `src` and `tgt`: one row per pair.

    If a target is a list of references, `tgt` is the first of them; `references` holds all.
    """
    columns = _read_object(file)
    sources, targets = columns.get("src"), columns.get("tgt")
    if not (isinstance(sources, list) and isinstance(targets, list) and len(sources) == len(targets)):
        raise UserError(
            f"Expected {str(file)!r} to hold lists `src` and `tgt` of one length, got other values. Fix: use "
            "CT0's own file."
        )
    rows = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1):
        where = f"{str(file)!r}, pair {number}"
        references = target if isinstance(target, list) else [target]
        if not (references and all(isinstance(text, str) for text in [source, *references])):
            raise UserError(
                f"{where}: expected texts, got the target {target!r:.80}. Fix: use CT0's own file."
            )
        rows.append(require_text({"src": source, "tgt": references[0], "references": references}, where))
    return hold_rows_in_memory(require_rows(rows, file))


READERS: Mapping[str, Reader] = {"dream": read_dream, "bigbench": read_bigbench, "ct0": read_ct0}
"""Readers by the name that the catalogue gives them."""


def _read_object(file: storage.PathLike) -> dict[str, Any]:
    value = parse_json(read_text(file), repr(str(file)))
    if not isinstance(value, dict):
        raise UserError(
            f"Expected {str(file)!r} to hold a JSON object, got {value!r:.40}. Fix: use the published file."
        )
    return value


def _require_dream_types(row: FileRow, where: str) -> None:
    for column in ("dialogue_id", "question", "answer"):
        if not isinstance(row[column], str):
            raise UserError(
                f"{where}: expected text as {column}, got {row[column]!r}. Fix: use DREAM's own file."
            )
    for column in ("dialogue", "choice"):
        value = row[column]
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise UserError(
                f"{where}: expected a list of texts as {column}, got {value!r}. Fix: use DREAM's own file."
            )
