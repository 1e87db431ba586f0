"""`elm tasks preview`: shows rows as the model will see them, with what is cut or unknown in colour."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from elm_jax.data import token_losses
from elm_jax.prompting.render import Renderings
from elm_jax.records import PromptedExample, RowCounts, TaskSpec
from elm_jax.tasks import raw_rows, rendering, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.row_counts import add_counts
from elm_jax.tokenizers.sentencepiece import Tokenizer

TEMPLATE_CUT_STYLE = "bold yellow"
TOKEN_CUT_STYLE = "red"
UNKNOWN_STYLE = "magenta"
FOLDED_STYLE = "cyan"
COMBINING_MARK_STYLE = "underline"
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


@dataclass(frozen=True)
class Preview:
    """The first rows of a task.

    Attributes:
        rows: The rows that are shown.
        counts: Rows that were read for them, used, left out and cut.
        count: Number of all rows of the split.
    """

    rows: tuple[PreviewRow, ...]
    counts: RowCounts
    count: int


def preview_task(
    spec: TaskSpec,
    source: Source,
    *,
    rows: int = 3,
    tokenizer: Tokenizer | None = None,
    lengths: Lengths | None = None,
) -> Preview:
    """Returns the first rows that can be used, ready to print, and the number of all rows.

    Args:
        spec: The task.
        source: Where its rows and template come from.
        rows: Rows to show.
        tokenizer: Counts tokens, and what the model will not see is marked; default: words are counted.
        lengths: Tokens of inputs and of targets that training keeps.

    Raises:
        UserError: If no row can be used, or if one of those before the last that is shown cannot and the
            source says that it is to be refused.
    """
    template = task_templates.find_template(spec, source.templates_dir)
    found, unlimited = raw_rows.open_rows(spec, source), replace(source, truncate=None)
    shown: list[PreviewRow] = []
    parts: list[Renderings] = []
    for row in raw_rows.read_in_blocks(found, rows):
        parts.append(rendering.render_part(spec, [row], template, source))
        for example in parts[-1]:
            whole = next(iter(rendering.render_part(spec, [row], template, unlimited)), None)
            lines = tuple(_lines(example, whole, tokenizer, lengths or Lengths()))
            shown.append(PreviewRow(example, lines))
        if len(shown) == rows:
            break
    counts = add_counts(part.counts for part in parts)
    unused = [row for part in parts for row in part.unused]
    rendering.require_usable(spec, counts, unused, source)
    return Preview(tuple(shown), counts, found.count)


def _lines(
    example: PromptedExample, whole: PromptedExample | None, tokenizer: Tokenizer | None, lengths: Lengths
) -> Iterator[Text]:
    if whole is None:
        yield Text("[cannot be rendered without the limit of characters]", TEMPLATE_CUT_STYLE)
        whole = example
    yield from mark_text(example.input, whole.input, tokenizer, lengths.prompt, is_input=True)
    notes = _note_choices(example.choices, tokenizer, lengths)
    for number, (choice, note) in enumerate(zip(example.choices, notes, strict=True)):
        mark = Text("* " if number == example.label else "  ")
        first, *more = mark_text(choice, choice, tokenizer, lengths.answer)
        yield from (mark + first + Text(note, TOKEN_CUT_STYLE), *more)
    first, *more = mark_text(example.target, whole.target, tokenizer, lengths.answer)
    yield from (Text("-> ", style="bold") + first, *more)
    texts = [example.input, example.target, *example.choices]
    if tokenizer is None:
        counts = [len(text.split()) for text in texts]
        parts, hint = [f"input {counts[0]}", f"target {counts[1]}"], "; tokens with --run or --vocabulary"
    else:
        counts = [len(ids) + 1 for ids in tokenizer.encode_all(texts)]  # each with its end
        counts[0] -= not tokenizer.input_eos
        parts = [
            f"input {counts[0]} (limit {lengths.prompt})",
            f"target {counts[1]} (limit {lengths.answer})",
        ]
        hint = ""
    if example.choices:
        parts.append(f"choices {', '.join(map(str, counts[2:]))}")
    yield Text(f"{'words' if tokenizer is None else 'tokens'}: {', '.join(parts)}{hint}", style="dim")


def mark_text(
    text: str, whole: str, tokenizer: Tokenizer | None, most: int, *, is_input: bool = False
) -> Iterator[Text]:
    """Yields a text with marks where its template cut a value and on what the model will not see.

    If its tokens decode to another text, that follows.
    """
    shown = Text(text)
    kept = most - (tokenizer.input_eos if tokenizer and is_input else 1)
    seen = len(text) if tokenizer is None else count_seen_characters(text, tokenizer, kept)
    for start, end in find_decomposed(text):
        shown.stylize(COMBINING_MARK_STYLE, start, end)
    decoded = text
    if tokenizer is not None:
        ids = tokenizer.encode(text)
        decoded = tokenizer.decode(ids[:kept])
        for part in token_losses.count_missing([text], [ids], tokenizer):
            bounds = (r"(?<!\S)", r"(?!\S)") if tokenizer.has_words_only else ("", "")
            for match in re.finditer(re.escape(part).join(bounds), text):
                shown.stylize(UNKNOWN_STYLE, *match.span())
        for at, character in enumerate(text):
            if character in tokenizer.folded:
                shown.stylize(f"{FOLDED_STYLE} reverse", at, at + 1)
    if seen < len(text):
        shown.stylize(TOKEN_CUT_STYLE, seen)
    cuts = find_cuts(text, whole)
    for place in cuts:
        shown.stylize(TEMPLATE_CUT_STYLE, place, place + len(ELLIPSIS))
    if cuts:
        cut = len(whole) - len(text) + len(cuts) * len(ELLIPSIS)
        shown.append(f" [{cut:,} characters cut by the template]", TEMPLATE_CUT_STYLE)
    elif text != whole:
        shown.append(f" [without the limit of characters: {whole!r:.200}]", TEMPLATE_CUT_STYLE)
    if seen < len(text):
        shown.append(f" [cut after {most} tokens: the last {len(text) - seen:,} characters]", TOKEN_CUT_STYLE)
    yield shown
    if decoded.strip() != text[:seen].strip():
        yield Text("   the model sees: ", style="dim") + Text(decoded, UNKNOWN_STYLE)


def _note_choices(choices: Sequence[str], tokenizer: Tokenizer | None, lengths: Lengths) -> list[str]:
    """Returns what is wrong with each choice: nothing, or that it is an earlier one, or the only one."""
    if len(choices) == 1:
        return [" [the only choice]"]
    seen = [tuple(choice) for choice in choices]
    if tokenizer is not None:
        kept = token_losses.kept_tokens(tokenizer, lengths)[2]
        seen = [tuple(map(str, ids[:kept])) for ids in tokenizer.encode_all(choices)]
    notes = []
    for number, choice in enumerate(choices):
        text, tokens = choices.index(choice), seen.index(seen[number])
        note = f" [choice {text + 1} again]" if text < number else ""
        notes.append(note or (f" [the same tokens as choice {tokens + 1}]" if tokens < number else ""))
    return notes


def find_decomposed(text: str) -> list[tuple[int, int]]:
    """Returns where a text has a letter and its marks that Unicode composes to fewer characters.

    >>> find_decomposed("cafe\u0301s")
    [(3, 5)]
    """
    if text.isascii():
        return []
    places = (match.span() for match in re.finditer(r".[\u0300-\u036f\u1ab0-\u1aff\u3099\u309a]+", text))
    return [
        (start, end)
        for start, end in places
        if len(unicodedata.normalize("NFC", text[start:end])) < end - start
    ]


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


def count_seen_characters(text: str, tokenizer: Tokenizer, kept: int) -> int:
    """Returns how many characters of a text are in its first `kept` tokens."""
    ids = tokenizer.encode(text)
    if len(ids) <= kept:
        return len(text)
    low, high = 0, len(text)  # the longest beginning that is no more tokens than are kept
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(text[:middle])) <= kept:
            low = middle
        else:
            high = middle - 1
    return low


def to_json(preview: Preview) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of a preview as JSON has them."""
    names = ("input", "target", "choices", "label")
    return {"rows": [{name: getattr(row.example, name) for name in names} for row in preview.rows]}
