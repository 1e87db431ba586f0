"""What flags open: a run with its base, files of tasks, a vocabulary."""

import json
import os
from typing import TYPE_CHECKING, Any

from elm_jax.cli.options import DEFAULT_OUT
from elm_jax.errors import UserError

if TYPE_CHECKING:
    from elm_jax.tasks.data_source import Lengths, Source
    from elm_jax.tokenizers.sentencepiece import Vocabulary


def own_files(names: list[str] | None, tasks: list[str] | None) -> list[str]:
    """Returns the files that define tasks, be they given as such or among the names."""
    from elm_jax.data import task_selection

    return [*(tasks or []), *filter(task_selection.is_task_file, names or [])]


def task_files(files: list[str] | None) -> list[str]:
    """Reads files that define tasks, and returns where they are."""
    from elm_jax.tasks import own

    for file in files or []:
        own.load(file)
    return [os.path.abspath(file) for file in files or []]


def read_as(
    run: str | None, vocabulary: str | None, extra_ids: int, max_prompt: int | None, max_answer: int | None
) -> "tuple[Source, Vocabulary | None, Lengths]":
    """Returns how rows are read and tokenised where a run or a vocabulary was given; else no vocabulary."""
    if run or vocabulary:
        from elm_jax.session import opening

        found = opening.reading(run or DEFAULT_OUT, vocabulary_file=vocabulary, extra_ids=extra_ids)
        source, pieces, lengths = found.source, found.pieces, found.lengths
    else:
        from elm_jax.tasks import data_source

        source, pieces, lengths = data_source.Source(), None, data_source.Lengths()
    return source, pieces, given_to(lengths, prompt=max_prompt, answer=max_answer)


def given_to(record: Any, **flags: Any) -> Any:
    """Returns the record with the flags that were given."""
    from dataclasses import replace

    return replace(record, **{name: value for name, value in flags.items() if value is not None})


def router_options(given: list[str]) -> dict[str, Any]:
    """Splits options NAME=VALUE of a router; a value that is no JSON is text."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in ("experts", "queries", "router"):
            raise UserError(
                f"An option of a router as k=10 is wanted, but {text!r} came; --experts, --queries and "
                "--router are flags of their own."
            )
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
