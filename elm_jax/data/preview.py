"""`elm tasks preview`: shows rows as the model will see them, with what is cut in colour."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from elm_jax.errors import UserError
from elm_jax.prompting.render import render
from elm_jax.prompting.templates import Rendered
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.tasks import data_source, raw_rows, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers.sentencepiece import Tokenizer

CUT = "bold yellow"
UNSEEN = "red"
ELLIPSIS = "..."  # what jinja's filter `truncate` ends a cut text with


@dataclass(frozen=True)
class PreviewRow:
    """One row of a preview.

    Attributes:
        example: The row.
        lines: What to print of it.
    """

    example: PromptedExample
    lines: tuple[Text, ...]


def preview_task(
    spec: TaskSpec,
    source: Source,
    *,
    rows: int = 3,
    tokenizer: Tokenizer | None = None,
    lengths: Lengths | None = None,
) -> tuple[list[PreviewRow], int]:
    """Returns the first rows that the template applies to, ready to print, and the number of all rows.

    Args:
        spec: The task.
        source: Where its rows and template come from.
        rows: Rows to show.
        tokenizer: Counts tokens, and what the model will not see is marked; default: words are counted.
        lengths: Tokens of inputs and of targets that training keeps.

    Raises:
        UserError: If rows cannot be rendered, or if the template applies to none of them.
    """
    split = data_source.get_split(spec, source)
    template = task_templates.find_template(spec, source.templates_dir)
    found, truncate = raw_rows.load_rows(spec, source), task_templates.get_truncate_length(spec, source)
    shown: list[PreviewRow] = []
    for row in found:
        if len(shown) == rows:
            break
        for example in render([row], template, truncate=truncate).examples:
            whole = template.render(row, None, row_id=example.row_id)
            lines = tuple(_lines(example, whole, tokenizer, lengths or Lengths()))
            shown.append(PreviewRow(example, lines))
    if not shown:
        raise UserError(
            f"Expected rows that the template of {spec.id!r} applies to, got none among the {len(found):,} "
            f"rows of the {split} split. Fix: choose another split or task."
        )
    return shown, len(found)


def _lines(
    example: PromptedExample, whole: Rendered | None, tokenizer: Tokenizer | None, lengths: Lengths
) -> Iterator[Text]:
    whole = whole or Rendered(example.input, example.target)
    yield _mark(example.input, whole.input, tokenizer, lengths.prompt)
    for number, choice in enumerate(example.choices):
        mark = Text("* " if number == example.label else "  ")
        yield mark + _mark(choice, choice, tokenizer, lengths.answer)
    yield Text("-> ", style="bold") + _mark(example.target, whole.target, tokenizer, lengths.answer)
    texts = [example.input, example.target, *example.choices]
    if tokenizer is None:
        counts = [len(text.split()) for text in texts]
        parts, hint = [f"input {counts[0]}", f"target {counts[1]}"], "; tokens with --run or --vocabulary"
    else:
        counts = [len(ids) + 1 for ids in tokenizer.encode_all(texts)]  # each with its end
        parts = [
            f"input {counts[0]} (limit {lengths.prompt})",
            f"target {counts[1]} (limit {lengths.answer})",
        ]
        hint = ""
    if example.choices:
        parts.append(f"choices {', '.join(map(str, counts[2:]))}")
    yield Text(f"{'words' if tokenizer is None else 'tokens'}: {', '.join(parts)}{hint}", style="dim")


def _mark(text: str, whole: str, tokenizer: Tokenizer | None, most: int) -> Text:
    """Returns a text with marks where its template cut a value and on what the model will not see."""
    shown = Text(text)
    seen = len(text) if tokenizer is None else count_seen_characters(text, tokenizer, most)
    if seen < len(text):
        shown.stylize(UNSEEN, seen)
    for place in find_cuts(text, whole):
        shown.stylize(CUT, place, place + len(ELLIPSIS))
    if text != whole:
        shown.append(f" [{len(whole) - len(text) + len(ELLIPSIS):,} characters cut by the template]", CUT)
    if seen < len(text):
        shown.append(f" [cut after {most} tokens: the last {len(text) - seen:,} characters]", UNSEEN)
    return shown


def find_cuts(text: str, whole: str) -> list[int]:
    """Returns the positions in a text where three dots stand for something of the whole text.

    >>> find_cuts("a... and b...", "a long story and b too")
    [1, 10]
    """
    places = []
    at = there = 0
    while at < len(text):
        if there < len(whole) and text[at] == whole[there]:
            at, there = at + 1, there + 1
            continue
        if not text.startswith(ELLIPSIS, at):
            break  # something else differs, such as white space
        places.append(at)
        at += len(ELLIPSIS)
        # The rest goes on where what follows the dots is found again.
        there = whole.find(text[at : at + 20].partition(ELLIPSIS)[0], there)
        if there < 0:
            break
    return places


def count_seen_characters(text: str, tokenizer: Tokenizer, most: int) -> int:
    """Returns how many characters of a text are in its first `most` tokens, end-of-sequence included."""
    ids = tokenizer.encode(text)
    if len(ids) < most:
        return len(text)
    low, high = 0, len(text)  # the longest beginning that is no more tokens than are kept
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(text[:middle])) <= most - 1:
            low = middle
        else:
            high = middle - 1
    return low
