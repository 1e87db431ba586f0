"""What flags name: a run with its base, files of tasks, a tokenizer, options as NAME=VALUE."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from elm_jax.cli.options import (
    DEFAULT_OUT,
    LengthFlags,
    ProcessFlags,
    RenderFlags,
    SourceFlags,
    TokenFlags,
)
from elm_jax.errors import UserError

if TYPE_CHECKING:
    from elm_jax.session.workspace import Run
    from elm_jax.tasks.data_source import Lengths, Source
    from elm_jax.tokenizers.sentencepiece import Tokenizer


@dataclass(frozen=True)
class Reader:
    """How rows are read.

    Attributes:
        source: Where they come from.
        tokenizer: None if neither a run nor a vocabulary was named.
        lengths: Tokens of a prompt and of an answer at most.
    """

    source: "Source"
    tokenizer: "Tokenizer | None"
    lengths: "Lengths"


def open_run(
    run: str,
    source: SourceFlags,
    names: Sequence[str] | None = None,
    *,
    cache: str | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    lengths: LengthFlags | None = None,
    dry_run: bool = False,
) -> "Run":
    """Opens a run's directory with what the flags say of its base and its data.

    Args:
        run: The run's directory.
        source: Where datasets, templates and files of tasks are.
        names: The command's tasks; files of tasks among them are read too.
        cache: Directory of prepared rows.
        limit: Rows of each task at most.
        dtype: Type of the base, float32 or bfloat16.
        lengths: Tokens that are kept, if the run is made here.
        dry_run: Whether nothing is written; a run that --base would make is opened without a directory.

    Raises:
        UserError: If the run, its base or a file of tasks is missing or cannot be read.
    """
    from elm_jax.session import opening
    from elm_jax.session.run_directory import Workspace

    unmade = resolve_base_settings(run, source, dtype=dtype, lengths=lengths, dry_run=dry_run)
    return opening.open_run(
        Workspace.at(run, read_only=dry_run),
        **unmade,
        data_dir=source.data_dir,
        templates_dir=source.templates_dir,
        task_files=task_files(source.tasks, names),
        overrides={"prepared": cache, "limit": limit, "on_bad_row": source.on_bad_row},
        dtype=dtype,
    )


def resolve_base_settings(
    run: str,
    source: SourceFlags,
    *,
    dtype: str | None = None,
    lengths: LengthFlags | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Makes the run of a base that --base names, or checks that it is the run's.

    Returns:
        In a dry run, which makes none, what `open_run` needs to open a new run all the same.

    Raises:
        UserError: If there is no such base or tokenizer, or if the run has another base.
    """
    if source.base is None:
        if source.tokenizer is not None:
            raise UserError("Expected --base beside --tokenizer, got none. Fix: name the base too.")
        return {}
    from elm_jax.session import opening
    from elm_jax.session.run_directory import Workspace
    from elm_jax.tasks.data_source import Lengths, Source

    kept = Lengths()
    if lengths is not None:
        kept = replace_given(kept, prompt=lengths.max_prompt, answer=lengths.max_answer)
    given = {"data_dir": source.data_dir, "templates_dir": source.templates_dir}
    absolute = {name: place and os.path.abspath(place) for name, place in given.items()}
    rows = replace_given(Source(), vocabulary=source.tokenizer, on_bad_row=source.on_bad_row, **absolute)
    workspace = Workspace.at(run, read_only=dry_run)
    is_new = opening.set_base(workspace, source.base, source=rows, lengths=kept, dtype=dtype)
    made = {"initial_checkpoint": source.base, "source": rows, "lengths": kept}
    return made if is_new and dry_run else {}


def task_files(files: Sequence[str] | None, names: Sequence[str] | None = None) -> list[str]:
    """Returns the absolute paths of files that define tasks, given by --tasks or among the names."""
    from elm_jax.data import task_selection

    every = [*(files or []), *filter(task_selection.is_task_file, names or [])]
    return [os.path.abspath(file) for file in every]


def load_task_files(files: Sequence[str] | None) -> list[str]:
    """Defines the tasks of these files, and returns the absolute paths."""
    if not files:
        return []
    from elm_jax.tasks import user_tasks

    for file in files:
        user_tasks.load_tasks(file)
    return [os.path.abspath(file) for file in files]


def row_reader(run: str | None, source: SourceFlags, tokens: TokenFlags, render: RenderFlags) -> Reader:
    """Returns how a command without a base reads rows; it tokenises them if it has a run or a vocabulary."""
    from elm_jax.session import opening
    from elm_jax.tasks import data_source

    if run:
        resolve_base_settings(run, source, lengths=tokens)
    if run or tokens.vocabulary:
        reading = opening.load_data_settings(
            run or DEFAULT_OUT, vocabulary_file=tokens.vocabulary, extra_ids=tokens.extra_ids
        )
        rows, tokenizer, lengths = reading.source, reading.tokenizer, reading.lengths
    else:
        rows, lengths = data_source.Source(), data_source.Lengths()
        tokenizer = opening.find_tokenizer(source.base, source.tokenizer) if source.base else None
    rows = data_source.override_rendering(rows, render.truncate, render.faithful)
    rows = replace_given(
        rows,
        data_dir=source.data_dir,
        templates_dir=source.templates_dir,
        on_bad_row=source.on_bad_row,
    )
    return Reader(rows, tokenizer, replace_given(lengths, prompt=tokens.max_prompt, answer=tokens.max_answer))


def replace_given(record: Any, **values: Any) -> Any:
    """Returns a dataclass with those of the values that are not None."""
    return replace(record, **{name: value for name, value in values.items() if value is not None})


def parse_options(texts: Sequence[str] | None, reserved: Collection[str], example: str) -> dict[str, Any]:
    """Splits options NAME=VALUE; a value that is not JSON is text.

    >>> parse_options(["k=10", "how=cosine"], (), "k=10")
    {'k': 10, 'how': 'cosine'}

    Args:
        texts: The options.
        reserved: Names that are flags or arguments of their own.
        example: An option that the command takes, for the error.

    Raises:
        UserError: If a text is not NAME=VALUE, or its name is reserved.
    """
    options: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"Expected an option as NAME=VALUE, got {text!r}. Fix: write it as {example}.")
        if name in reserved:
            raise UserError(
                f"Expected an option such as {example}, got {text!r}. Fix: {name!r} is no option; if the "
                f"command has a flag --{name}, use that."
            )
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def join_hosts(processes: ProcessFlags) -> None:
    """Connects this process with the others of its job, if there are any."""
    if processes.multiprocess:
        from elm_jax.launch import hosts

        hosts.join(hosts.HostAddress(processes.coordinator, processes.process_count, processes.process_index))
