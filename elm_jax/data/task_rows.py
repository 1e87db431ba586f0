"""Task rows: a task's prompted examples, rendered now or read as they were prepared, and their token ids."""

from collections.abc import Iterable, Sequence

from elm_jax.data import identity, prepared_files, token_losses, tokenized_rows
from elm_jax.data.task_selection import SEQIO, prepared_file
from elm_jax.data.token_losses import TokenizationReport
from elm_jax.data.tokenized_rows import StoredExamples, TokenizedRows
from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings
from elm_jax.records import PromptedExample, RowCounts, TaskSpec
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.tasks import original, rendering, row_counts
from elm_jax.tasks.data_source import Lengths, Source, get_split
from elm_jax.tasks.task_templates import find_template
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers.sentencepiece import Tokenizer

Examples = Renderings | StoredExamples
"""A sequence of prompted examples, with what became of all rows as `counts`."""


def load_examples(spec: TaskSpec, source: Source) -> Examples:
    """Returns a task's prompted examples, of the split that the source or the spec names.

    They are read from the source's prepared rows if these are current, and rendered otherwise. A command
    calls this once for each task, and hands the examples on.

    Args:
        spec: The task.
        source: Where rows and templates come from.

    Raises:
        UserError: If rows or a template are missing, if no row can be used, or if one cannot and the source
            says that it is to be refused, or if prepared rows are damaged.
    """
    if spec.group == SEQIO:
        return _load_seqio_rows(spec, source)
    stored_key = _find_prepared(spec, source)
    if source.prepared is not None and stored_key is not None:
        file = prepared_file(source.prepared, spec, get_split(spec, source))
        stored = StoredExamples(prepared_files.load(file, stored_key), stored_key)
        rendering.require_usable(spec, stored.counts, (), source)
        return stored
    return rendering.examples(spec, source=source)


def print_counts(stages: Stages, counts: Iterable[RowCounts]) -> None:
    """Prints what became of the rows of tasks, in one line for all of them, if rows were read."""
    every = row_counts.add_counts(counts)
    if every.read:
        stages.console.print(f"{row_counts.describe_counts(every)}.", highlight=False)


def print_tokenization_report(stages: Stages, losses: Iterable[TokenizationReport | None]) -> None:
    """Prints what of the rows of tasks the model does not see, in one line, if there is any."""
    lost = token_losses.describe_tokenization_report(token_losses.sum_tokenization_reports(losses))
    if lost:
        stages.console.print(f"The model does not see all: {lost}.", highlight=False)


def is_prepared(spec: TaskSpec, source: Source) -> bool:
    """Returns whether current prepared rows of a task are here."""
    try:
        return _find_prepared(spec, source) is not None
    except UserError:  # no source or no template, or a damaged file: `load_examples` says so
        return False


def rendering_key(spec: TaskSpec, source: Source) -> str:
    """Returns the cache key of a task's rendered rows, without reading the rows."""
    template = find_template(spec, source.templates_dir)
    key = prepared_files.make_rendering_key(
        identity.identify_rows(spec, source),
        {name: getattr(template, name) for name in ("id", "name", "jinja", "answer_choices")},
        {
            "seed": source.seed,
            "truncate": source.truncate,
            "faithful": original.list_row_switches(source.faithful),
        },
    )
    revision = identity.find_revision(spec, source)
    return f"{key}@{revision}" if revision else key


def is_same_rendering(stored: str, now: str) -> bool:
    """Returns whether two rendering keys are of the same rows, as far as both know the revision of the data.

    >>> is_same_rendering("one@main", "one"), is_same_rendering("one@main", "one@other")
    (True, False)
    """
    key, _, revision = stored.partition("@")
    other_key, _, other_revision = now.partition("@")
    return key == other_key and (not revision or not other_revision or revision == other_revision)


def tokenize_texts(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Returns the token ids of texts, each cut to `length` tokens of which the last is end-of-sequence."""
    return [[*ids[: length - 1], tokenizer.eos] for ids in tokenizer.encode_all(texts)]


def tokenize_task(
    examples: Sequence[PromptedExample], tokenizer: Tokenizer, lengths: Lengths
) -> TokenizedRows:
    """Returns a task's examples as token ids: as they were prepared if that is current, or tokenised now."""
    if isinstance(examples, StoredExamples):
        rendered = examples.cache_key.partition("-")[0]
        if examples.cache_key == prepared_files.make_cache_key(rendered, tokenizer, lengths):
            return examples.rows
    return tokenized_rows.tokenize_examples(examples, tokenizer, lengths)


def build_scoring_rows(
    examples: Sequence[PromptedExample], tokenizer: Tokenizer, lengths: Lengths, *, task: str
) -> list[PromptWithChoices]:
    """Returns the token ids of examples' inputs and answer choices, to be scored.

    Raises:
        UserError: If an example of the task has no choices, or if its target is none of them.
    """
    for example in examples:
        if not example.choices or example.label is None:
            lack = "no answer choices" if not example.choices else "a target outside its choices"
            raise UserError(
                f"Expected answer choices with the target among them in every row of {task!r}, got row "
                f"{example.row_id!r} with {lack}. Fix: evaluate another task; `elm tasks list` shows metrics."
            )
    rows = tokenize_task(examples, tokenizer, lengths)
    return [
        PromptWithChoices(rows.inputs[row], tokenized_rows.get_choices(rows, row))
        for row in range(len(examples))
    ]


def _find_prepared(spec: TaskSpec, source: Source) -> str | None:
    """Returns the cache key of a task's prepared rows; None if there are none, or others than now."""
    if source.prepared is None:
        return None
    file = prepared_file(source.prepared, spec, get_split(spec, source))
    if not file.exists():
        return None
    stored_key = prepared_files.read_cache_key(file)
    rendered = stored_key.partition("-")[0]
    return stored_key if is_same_rendering(rendered, rendering_key(spec, source)) else None


def _load_seqio_rows(spec: TaskSpec, source: Source) -> StoredExamples:
    """Returns rows that were prepared through SeqIO: only the module of the task can make them."""
    split = get_split(spec, source)
    file = None if source.prepared is None else prepared_file(source.prepared, spec, split)
    if file is None or not file.exists():
        raise UserError(
            f"Expected prepared rows of SeqIO's task {spec.dataset!r}, {split} split, got none. Fix: run "
            f"`elm prepare {spec.dataset} --module MODULE --split {split}`."
        )
    return StoredExamples(prepared_files.load(file), prepared_files.read_cache_key(file))
