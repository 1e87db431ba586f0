"""`elm tasks preview`: rows as the model will see them, with what was cut shown in colour."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from elm_jax.errors import UserError
from elm_jax.prompting.render import render
from elm_jax.prompting.templates import Rendered
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.tasks import data_source, raw_rows, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers.sentencepiece import Vocabulary

CUT = "bold yellow"
UNSEEN = "red"
ELLIPSIS = "..."  # what jinja's filter `truncate` ends a cut text with


@dataclass(frozen=True)
class Previewed:
    """One row of a preview."""

    example: PromptedExample
    lines: tuple[Text, ...]


def preview(
    spec: TaskSpec,
    source: Source,
    *,
    rows: int = 3,
    pieces: Vocabulary | None = None,
    lengths: Lengths | None = None,
) -> tuple[list[Previewed], int]:
    """Returns the first rows that the template applies to, ready to print, and how many rows there are.

    With a vocabulary, tokens are counted and what is beyond the limits is marked; words without. Raises
    `UserError` as rendering does, and where the template applies to no row.
    """
    split = data_source.split_of(spec, source)
    template = task_templates.template_for(spec, source.templates_dir)
    found, truncate = raw_rows.load_rows(spec, source), task_templates.truncation(spec, source)
    shown: list[Previewed] = []
    for row in found:
        if len(shown) == rows:
            break
        for example in render([row], template, truncate=truncate).examples:
            whole = template.render(row, None, row_id=example.row_id)
            lines = tuple(_lines(example, whole, pieces, lengths or Lengths()))
            shown.append(Previewed(example, lines))
    if not shown:
        raise UserError(f"{spec.id!r} applies to none of the {len(found):,} rows of the {split} split.")
    return shown, len(found)


def _lines(
    example: PromptedExample, whole: Rendered | None, pieces: Vocabulary | None, lengths: Lengths
) -> Iterator[Text]:
    whole = whole or Rendered(example.input, example.target)
    yield _marked(example.input, whole.input, pieces, lengths.prompt)
    for number, choice in enumerate(example.choices):
        mark = Text("* " if number == example.label else "  ")
        yield mark + _marked(choice, choice, pieces, lengths.answer)
    yield Text("-> ", style="bold") + _marked(example.target, whole.target, pieces, lengths.answer)
    texts = [example.input, example.target, *example.choices]
    if pieces is None:
        counts = [len(text.split()) for text in texts]
        told, hint = [f"input {counts[0]}", f"target {counts[1]}"], "; tokens with --run or --vocabulary"
    else:
        counts = [len(ids) + 1 for ids in pieces.encode_all(texts)]  # each with its end
        told = [f"input {counts[0]} (limit {lengths.prompt})", f"target {counts[1]} (limit {lengths.answer})"]
        hint = ""
    if example.choices:
        told.append(f"choices {', '.join(map(str, counts[2:]))}")
    yield Text(f"{'words' if pieces is None else 'tokens'}: {', '.join(told)}{hint}", style="dim")


def _marked(text: str, whole: str, pieces: Vocabulary | None, most: int) -> Text:
    """Returns a text with marks where its template cut a value, and on what the model will not see."""
    shown = Text(text)
    seen = len(text) if pieces is None else seen_length(text, pieces, most)
    if seen < len(text):
        shown.stylize(UNSEEN, seen)
    for place in cuts(text, whole):
        shown.stylize(CUT, place, place + len(ELLIPSIS))
    if text != whole:
        shown.append(f" [{len(whole) - len(text) + len(ELLIPSIS):,} characters cut by the template]", CUT)
    if seen < len(text):
        shown.append(f" [cut after {most} tokens: the last {len(text) - seen:,} characters]", UNSEEN)
    return shown


def cuts(text: str, whole: str) -> list[int]:
    """Returns where in a text something of the whole was left out and three dots stand for it.

    >>> cuts("a... and b...", "a long story and b too")
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


def seen_length(text: str, pieces: Vocabulary, most: int) -> int:
    """Returns how many characters of a text the model sees when `most` tokens are kept, the last an end."""
    ids = pieces.encode(text)
    if len(ids) < most:
        return len(text)
    low, high = 0, len(text)  # the longest beginning that is no more tokens than are kept
    while low < high:
        middle = (low + high + 1) // 2
        if len(pieces.encode(text[:middle])) <= most - 1:
            low = middle
        else:
            high = middle - 1
    return low
