"""Formats: the JSON files that DREAM, BIG-bench and CT0 were published as, read into rows.

What is wrong with a file is a `UserError` naming the file and the dialogue or example, as in `files`.
"""

from collections.abc import Mapping
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tasks.files import Reader, Row, checked, not_empty, parse_json, read_text


def read_dream(file: storage.PathLike) -> list[Row]:
    """Reads DREAM's JSON: one row a question, with the columns of the hub's copy.

    Each dialogue is `[turns, questions, dialogue id]`; `id` counts the questions from 0.
    """
    rows: list[Row] = []
    dialogues = parse_json(read_text(file), repr(str(file)))
    if not isinstance(dialogues, list):
        raise UserError(f"{str(file)!r} should hold a list of dialogues as DREAM's files do.")
    for number, dialogue in enumerate(dialogues, start=1):
        where = f"{str(file)!r}, dialogue {number}"
        try:
            turns, questions, identity = dialogue
            found = [(entry["question"], entry["choice"], entry["answer"]) for entry in questions]
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"{where}: [turns, questions, id] is wanted as in DREAM's files.") from error
        for question, choice, answer in found:
            row = {
                "id": len(rows),
                "dialogue_id": identity,
                "dialogue": turns,
                "question": question,
                "choice": choice,
                "answer": answer,
            }
            _check_dream(row, where)
            rows.append(checked(row, where))
    return not_empty(rows, file)


_PREFIXES = {
    "task_prefix": "",
    "example_input_prefix": "\nQ: ",
    "choice_prefix": "\n choice: ",
    "example_output_prefix": "\nA: ",
}


def read_bigbench(file: storage.PathLike) -> list[Row]:
    """Reads a task of BIG-bench: one row an example, with `text`, `choices` and the right choice's `label`.

    The text is the paper's (its code differs from BIG-bench's own by a space before every choice, and keeps
    the choices in the file's order): task prefix, input prefix, input, all choices where they belong to the
    input, output prefix. The label is None where not exactly one choice is right.
    """
    task = _object(file)
    examples = task.get("examples")
    if not isinstance(examples, list):
        raise UserError(
            f"{str(file)!r} should be a task of BIG-bench with `examples`, but has none. The file of a task "
            "with subtasks has none itself: read those of its subfolders."
        )
    for name in _PREFIXES:
        if not isinstance(task.get(name, ""), str):
            raise UserError(f"{str(file)!r}: its {name} should be a text, but {task[name]!r:.40} came.")
    before, ask, choose, answer = (task.get(name, usual) for name, usual in _PREFIXES.items())
    rows = []
    for number, example in enumerate(examples, start=1):
        where = f"{str(file)!r}, example {number}"
        text = example.get("input") if isinstance(example, dict) else None
        scores = example.get("target_scores") if isinstance(example, dict) else None
        if not (isinstance(text, str) and isinstance(scores, dict) and scores):
            raise UserError(f"{where}: an `input` and the `target_scores` of its choices are wanted.")
        # A text like "false" counts as true, as in both codes; logic_grid_puzzle has it.
        shown = list(scores) if task.get("append_choices_to_input", True) else []
        right = [place for place, score in enumerate(scores.values()) if score == 1]
        row = {
            "text": "".join([before, ask, text, *(choose + choice for choice in shown), answer]),
            "choices": list(scores),
            "label": right[0] if len(right) == 1 else None,
        }
        rows.append(checked(row, where))
    return not_empty(rows, file)


def read_ct0(file: storage.PathLike) -> list[Row]:
    """Reads CT0's JSON, lists of `src` and `tgt`: one row a pair.

    Where a target is a list of references, `tgt` is the first of them; `references` holds them all.
    """
    columns = _object(file)
    sources, targets = columns.get("src"), columns.get("tgt")
    if not (isinstance(sources, list) and isinstance(targets, list) and len(sources) == len(targets)):
        raise UserError(
            f"{str(file)!r} should hold two lists of the same length, `src` and `tgt`, as CT0's do."
        )
    rows = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1):
        where = f"{str(file)!r}, pair {number}"
        references = target if isinstance(target, list) else [target]
        if not (references and all(isinstance(text, str) for text in [source, *references])):
            raise UserError(f"{where}: a text and its target should be texts, but {target!r:.80} came.")
        rows.append(checked({"src": source, "tgt": references[0], "references": references}, where))
    return not_empty(rows, file)


READERS: Mapping[str, Reader] = {"dream": read_dream, "bigbench": read_bigbench, "ct0": read_ct0}
"""Readers by the name that the catalogue gives them."""


def _object(file: storage.PathLike) -> dict[str, Any]:
    value = parse_json(read_text(file), repr(str(file)))
    if not isinstance(value, dict):
        raise UserError(f"{str(file)!r} should hold a JSON object, but {value!r:.40} came.")
    return value


def _check_dream(row: Row, where: str) -> None:
    for column in ("dialogue_id", "question", "answer"):
        if not isinstance(row[column], str):
            raise UserError(f"{where}: its {column} should be a text, but {row[column]!r} came.")
    for column in ("dialogue", "choice"):
        value = row[column]
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise UserError(f"{where}: its {column} should be a list of texts, but {value!r} came.")
