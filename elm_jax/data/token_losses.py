"""Tokenization reports: what of a task's texts the model does not see, counted where they are tokenised."""

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from elm_jax import schema
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import Tokenizer

MAX_NAMED_LOSSES = 5
"""Characters or words that a sentence names."""
MAX_FILED_LOSSES = 100
"""Those that a file keeps."""


@dataclass(frozen=True)
class TokenizationCounts(schema.Form):
    """What is lost of some texts.

    Attributes:
        texts: Number of texts.
        tokens: Tokens of all of them, before any is cut, without end-of-sequence.
        unknown: How many of the tokens are unknown.
        cut: Texts that are cut.
        lost: Tokens that are cut off.
    """

    texts: int = 0
    tokens: int = 0
    unknown: int = 0
    cut: int = 0
    lost: int = 0

    def __add__(self, other: "TokenizationCounts") -> "TokenizationCounts":
        return TokenizationCounts(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )


@dataclass(frozen=True)
class TokenizationReport(schema.Form):
    """What is lost of the rows of a task.

    Attributes:
        inputs: Of the inputs.
        targets: Of the targets.
        choices: Of the answer choices of all rows.
        missing: Characters that the vocabulary lacks, or words if it is one of words -> how often they occur.
        folded: Newlines and tabs that are spaces to the vocabulary -> how often they occur.
        same_choices: Rows of which choices that differ have the same tokens.
        repeated_choices: Rows of which two choices are the same text.
        single_choices: Rows with one choice alone.
        composed: Rows with characters that Unicode composes, as in its normal form NFC.
        decomposed: Rows with the parts of such characters, as in its normal form NFD.
    """

    inputs: TokenizationCounts = TokenizationCounts()
    targets: TokenizationCounts = TokenizationCounts()
    choices: TokenizationCounts = TokenizationCounts()
    missing: Mapping[str, int] = field(default_factory=dict)
    folded: Mapping[str, int] = field(default_factory=dict)
    same_choices: int = 0
    repeated_choices: int = 0
    single_choices: int = 0
    composed: int = 0
    decomposed: int = 0

    def __add__(self, other: "TokenizationReport") -> "TokenizationReport":
        return TokenizationReport(
            *(_add(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))
        )


def _add(one: Any, other: Any) -> Any:
    return dict(Counter(one) + Counter(other)) if isinstance(one, Mapping) else one + other


def build_tokenization_report(
    texts: Sequence[Sequence[str]],
    ids: Sequence[Sequence[list[int]]],
    choice_starts: np.ndarray,
    tokenizer: Tokenizer,
    lengths: Lengths,
) -> TokenizationReport:
    """Returns what is lost of rows.

    Args:
        texts: Inputs, targets, and the choices of all rows.
        ids: The token ids of each, uncut and without end-of-sequence.
        choice_starts: Where the choices of the rows begin and end.
        tokenizer: The tokenizer.
        lengths: Tokens of inputs and of targets that are kept.
    """
    kept = kept_tokens(tokenizer, lengths)
    missing: Counter[str] = Counter()
    for each, lists in zip(texts, ids, strict=True):
        missing.update(count_missing(each, lists, tokenizer))
    faults: Counter[tuple[bool, bool, bool]] = Counter()
    forms: Counter[tuple[bool, bool]] = Counter()
    for row, (start, end) in enumerate(itertools.pairwise(choice_starts.tolist())):
        of_row = texts[2][start:end]
        faults[find_choice_faults(of_row, [each[: kept[2]] for each in ids[2][start:end]])] += 1
        forms[find_unicode_forms((texts[0][row], texts[1][row], *of_row))] += 1
    inputs, targets, choices = (
        count_tokenization(lists, most, tokenizer.unknown) for lists, most in zip(ids, kept, strict=True)
    )
    same, repeated, single = (sum(n for found, n in faults.items() if found[at]) for at in range(3))
    composed, decomposed = (sum(n for found, n in forms.items() if found[at]) for at in range(2))
    return TokenizationReport(
        inputs=inputs,
        targets=targets,
        choices=choices,
        missing=dict(missing),
        folded=count_folded(itertools.chain(*texts), tokenizer),
        same_choices=same,
        repeated_choices=repeated,
        single_choices=single,
        composed=composed,
        decomposed=decomposed,
    )


def kept_tokens(tokenizer: Tokenizer, lengths: Lengths) -> tuple[int, int, int]:
    """Returns how many tokens of an input, a target and a choice are kept, end-of-sequence not counted."""
    # End-of-sequence takes the place of a token wherever it is added.
    return lengths.prompt - tokenizer.input_eos, lengths.answer - 1, lengths.answer - 1


def count_tokenization(tokens: Sequence[Sequence[int]], kept: int, unknown: int | None) -> TokenizationCounts:
    """Returns what is lost of texts.

    Args:
        tokens: The token ids of each text, without end-of-sequence.
        kept: How many of a text are kept.
        unknown: The id of unknown; None if there is none.

    >>> count_tokenization([[5, 2, 6], [2]], kept=2, unknown=2)
    TokenizationCounts(texts=2, tokens=4, unknown=2, cut=1, lost=1)
    """
    over = [len(ids) - kept for ids in tokens if len(ids) > kept]
    return TokenizationCounts(
        texts=len(tokens),
        tokens=sum(map(len, tokens)),
        unknown=0 if unknown is None else sum(ids.count(unknown) for ids in tokens),
        cut=len(over),
        lost=sum(over),
    )


def count_missing(
    texts: Iterable[str], tokens: Iterable[Sequence[int]], tokenizer: Tokenizer
) -> dict[str, int]:
    """Returns what of texts a vocabulary lacks, and how often it occurs: characters, or words.

    Args:
        texts: The texts.
        tokens: The token ids of each.
        tokenizer: The tokenizer. Words are counted if its vocabulary is one of words.
    """
    unknown = tokenizer.unknown
    found = [text for text, ids in zip(texts, tokens, strict=True) if unknown in ids]
    if not found or unknown is None:
        return {}
    counts = Counter(" ".join(found).split()) if tokenizer.has_words_only else _count_characters(found)
    parts = sorted(counts)
    return {
        part: counts[part]
        for part, ids in zip(parts, tokenizer.encode_all(parts), strict=True)
        if unknown in ids
    }


def count_folded(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Returns how often each newline or tab occurs that is a space to the vocabulary."""
    every = "".join(texts) if tokenizer.folded else ""
    return {mark: count for mark in sorted(tokenizer.folded) if (count := every.count(mark))}


def find_unicode_forms(texts: Iterable[str]) -> tuple[bool, bool]:
    """Returns whether texts have characters that Unicode composes (NFC), and parts of such ones (NFD).

    >>> find_unicode_forms(["caf\u00e9"]), find_unicode_forms(["cafe\u0301"]), find_unicode_forms(["cafe"])
    ((True, False), (False, True), (False, False))
    """
    special = [text for text in texts if not text.isascii()]
    return (
        any(len(unicodedata.normalize("NFD", text)) > len(text) for text in special),
        any(len(unicodedata.normalize("NFC", text)) < len(text) for text in special),
    )


def _count_characters(texts: Sequence[str]) -> dict[str, int]:
    points = np.frombuffer("".join(texts).encode("utf-32-le", errors="surrogatepass"), np.uint32)
    counts = np.bincount(points)
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def find_choice_faults(choices: Sequence[str], tokens: Sequence[Sequence[int]]) -> tuple[bool, bool, bool]:
    """Returns whether choices that differ have the same tokens, if two are the same, and if one is alone.

    >>> find_choice_faults(["a", "a", "b"], [[5], [5], [5]])
    (True, True, False)
    """
    kinds = set(choices)
    return (
        len(kinds) > len({tuple(ids) for ids in tokens}),
        len(kinds) < len(choices),
        len(choices) == 1,
    )


def sum_tokenization_reports(losses: Iterable[TokenizationReport | None]) -> TokenizationReport:
    """Returns the sum of losses, as far as they are known."""
    return sum(filter(None, losses), TokenizationReport())


def describe_tokenization_report(losses: TokenizationReport) -> str:
    """Returns what the model does not see of a task's rows, in a line; nothing if it sees all of it."""
    parts = []
    for name in ("inputs", "targets", "choices"):
        loss: TokenizationCounts = getattr(losses, name)
        if loss.unknown:
            parts.append(f"{loss.unknown / loss.tokens:.1%} of the tokens of {name} unknown")
        if loss.cut:
            parts.append(f"{loss.cut:,} of {loss.texts:,} {name} cut ({loss.lost:,} tokens lost)")
    if losses.missing:
        parts.append(f"the vocabulary lacks {name_worst(losses.missing)}")
    if losses.folded:
        parts.append(f"read as spaces {name_worst(losses.folded)}")
    for count, what in (
        (losses.same_choices, "with choices of the same tokens"),
        (losses.repeated_choices, "with a choice twice"),
        (losses.single_choices, "with a single choice"),
    ):
        if count:
            parts.append(f"{count:,} row{'s' * (count != 1)} {what}")
    if losses.composed and losses.decomposed:
        parts.append(f"{losses.decomposed:,} rows in Unicode's NFD beside {losses.composed:,} in NFC")
    return ", ".join(parts)


def name_worst(missing: Mapping[str, int]) -> str:
    """Returns the most frequent of what a vocabulary lacks, with numbers.

    >>> name_worst({"é": 3, chr(10): 12})
    "'\\\\n' 12, 'é' 3"
    """
    worst = list(keep_worst(missing).items())[:MAX_NAMED_LOSSES]
    return ", ".join(f"{part!r} {count:,}" for part, count in worst)


def keep_worst(missing: Mapping[str, int]) -> dict[str, int]:
    """Returns the most frequent of what a vocabulary lacks, as a file keeps it."""
    return dict(sorted(missing.items(), key=lambda item: (-item[1], item[0]))[:MAX_FILED_LOSSES])


def dump_tokenization_report(losses: TokenizationReport) -> bytes:
    """Returns losses as JSON; the same losses give the same bytes."""
    values = {
        each.name: vars(value)
        if isinstance(value := getattr(losses, each.name), TokenizationCounts)
        else value
        for each in fields(losses)
    }
    return json.dumps(values, sort_keys=True).encode()


def parse_tokenization_report(content: bytes) -> TokenizationReport:
    """Returns the report that `dump_tokenization_report` wrote; raises a UserError for anything else."""
    return schema.parse(content, TokenizationReport, what="losses of rows", fix="prepare the task again")
