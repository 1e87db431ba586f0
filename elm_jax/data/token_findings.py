"""Token findings: what the model does not see of rendered rows, as findings of a check."""

import itertools
from collections.abc import Iterator, Sequence

from elm_jax.data import token_losses
from elm_jax.data.findings import RenderedRow, TaskFinding, format_rows
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import Tokenizer

NAMES = ("inputs", "targets", "choices")


def find_token_losses(
    rows: Sequence[RenderedRow], tokenizer: Tokenizer, lengths: Lengths
) -> Iterator[TaskFinding]:
    """Yields what is lost of rows when they are tokenised.

    Args:
        rows: The rows.
        tokenizer: The tokenizer.
        lengths: Tokens of inputs and of targets that training keeps.
    """
    texts = [
        [row.rendered.input for row in rows],
        [row.rendered.target for row in rows],
        [choice for row in rows for choice in row.choices],
    ]
    owners = [range(len(rows)), range(len(rows)), [at for at, row in enumerate(rows) for _ in row.choices]]
    ids = [tokenizer.encode_all(each) for each in texts]
    yield from _find_unknown(texts, ids, owners, tokenizer)
    yield from _find_folded(rows, tokenizer)
    kept = token_losses.kept_tokens(tokenizer, lengths)
    most = (lengths.prompt, lengths.answer, lengths.answer)
    for number, name in enumerate(NAMES):
        of_texts = [rows[at] for at in owners[number]]
        yield from _find_cut(name, ids[number], kept[number], most[number], of_texts)
    yield from _find_same_tokens(rows, ids[2], kept[2])


def find_choice_faults(rows: Sequence[RenderedRow]) -> Iterator[TaskFinding]:
    """Yields rows with a choice twice, and rows with a single one: no vocabulary can mend them."""
    repeated = [row for row in rows if len(set(row.choices)) < len(row.choices)]
    if repeated:
        first = repeated[0]
        twice = next(choice for choice in first.choices if first.choices.count(choice) > 1)
        yield TaskFinding(
            "repeated-choices",
            len(repeated),
            f"{format_rows(len(repeated), 'has', 'have')} a choice more than once: in {first.id}, the first, "
            f"it is {twice!r:.100}.",
        )
    single = [row for row in rows if len(row.choices) == 1]
    if single:
        yield TaskFinding(
            "single-choice",
            len(single),
            f"{format_rows(len(single), 'has', 'have')} a single choice, which is right whatever the model "
            f"says ({single[0].id} is the first).",
        )


def find_unicode_forms(rows: Sequence[RenderedRow]) -> Iterator[TaskFinding]:
    """Yields rows that write characters in two parts (NFD) where the same rows or others have one (NFC)."""
    forms = [token_losses.find_forms(row.texts) for row in rows]
    parts = [row for row, (_, decomposed) in zip(rows, forms, strict=True) if decomposed]
    composed = sum(composed for composed, _ in forms)
    if parts and composed:
        yield TaskFinding(
            "unicode",
            len(parts),
            f"{format_rows(len(parts), 'has', 'have')} letters and their marks as two characters (Unicode's "
            f"NFD), and {composed:,} as one (NFC): they look the same and are different texts. "
            f"{parts[0].id} is the first.",
        )


def _find_unknown(
    texts: Sequence[Sequence[str]],
    ids: Sequence[Sequence[list[int]]],
    owners: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
) -> Iterator[TaskFinding]:
    unknown = tokenizer.unknown
    concerned = {
        at
        for lists, rows in zip(ids, owners, strict=True)
        for tokens, at in zip(lists, rows, strict=True)
        if unknown in tokens
    }
    if not concerned:
        return
    shares = []
    for name, lists in zip(NAMES, ids, strict=True):
        loss = token_losses.count_loss(lists, 0, unknown)
        if loss.unknown:
            shares.append(f"{loss.unknown / loss.tokens:.1%} of the tokens of {name}")
    missing = token_losses.count_missing(itertools.chain(*texts), itertools.chain(*ids), tokenizer)
    yield TaskFinding(
        "unknown",
        len(concerned),
        f"{' and '.join(shares)} are unknown to the vocabulary, in "
        f"{format_rows(len(concerned))}. It lacks {token_losses.name_worst(missing)}.",
    )


def _find_folded(rows: Sequence[RenderedRow], tokenizer: Tokenizer) -> Iterator[TaskFinding]:
    concerned = [row for row in rows if any(tokenizer.folded.intersection(text) for text in row.texts)]
    if concerned:
        found = token_losses.count_folded((text for row in concerned for text in row.texts), tokenizer)
        yield TaskFinding(
            "folded",
            len(concerned),
            f"{format_rows(len(concerned), 'has', 'have')} newlines or tabs, which are spaces to the "
            f"vocabulary: {token_losses.name_worst(found)}.",
        )


def _find_cut(
    name: str, ids: Sequence[list[int]], kept: int, most: int, rows: Sequence[RenderedRow]
) -> Iterator[TaskFinding]:
    """Yields the texts that are cut; `most` counts end-of-sequence, and `rows` has the row of each text."""
    loss = token_losses.count_loss(ids, kept, None)
    if loss.cut:
        longest = max(range(len(ids)), key=lambda at: len(ids[at]))
        concerned = {row.id for row, tokens in zip(rows, ids, strict=True) if len(tokens) > kept}
        yield TaskFinding(
            "over-long",
            len(concerned),
            f"{loss.cut:,} of {loss.texts:,} {name} have more than {most} tokens and are cut; the longest, "
            f"of {rows[longest].id}, has {len(ids[longest]) + most - kept:,}. {loss.lost:,} of "
            f"{loss.tokens:,} tokens are lost.",
        )


def _find_same_tokens(
    rows: Sequence[RenderedRow], ids: Sequence[list[int]], kept: int
) -> Iterator[TaskFinding]:
    concerned: list[tuple[RenderedRow, str, str]] = []
    start = 0
    for row in rows:
        first: dict[tuple[int, ...], str] = {}
        for choice, tokens in zip(row.choices, ids[start : start + len(row.choices)], strict=True):
            other = first.setdefault(tuple(tokens[:kept]), choice)
            if other != choice:
                concerned.append((row, other, choice))
                break
        start += len(row.choices)
    if concerned:
        row, one, two = concerned[0]
        yield TaskFinding(
            "same-tokens",
            len(concerned),
            f"{format_rows(len(concerned), 'has', 'have')} choices that differ and are the same tokens: in "
            f"{row.id}, the first, {one!r:.100} and {two!r:.100}.",
        )
