"""Token findings: what the model does not see of rendered rows, as findings of a check."""

from collections import Counter
from collections.abc import Iterator, Sequence

from elm_jax.data import token_losses
from elm_jax.data.findings import Tally, TaskFinding, format_rows
from elm_jax.data.token_losses import TokenizationCounts
from elm_jax.records import PromptedExample
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import Tokenizer

NAMES = ("inputs", "targets", "choices")


class TokenizationChecker:
    """Tokenises rows that come block by block, and keeps counts alone.

    Args:
        tokenizer: The tokenizer.
        lengths: Tokens of inputs and of targets that training keeps.
    """

    def __init__(self, tokenizer: Tokenizer, lengths: Lengths) -> None:
        self._tokenizer = tokenizer
        self._most = (lengths.prompt, lengths.answer, lengths.answer)
        self._kept = token_losses.kept_tokens(tokenizer, lengths)
        self._losses = [TokenizationCounts()] * len(NAMES)
        self._longest = [(0, "")] * len(NAMES)
        self._cut = [0] * len(NAMES)  # rows
        self._unknown = self._folded = 0
        self._same = Tally[str]()
        self._missing: Counter[str] = Counter()
        self._folded_marks: Counter[str] = Counter()

    def add(self, examples: Sequence[PromptedExample]) -> None:
        """Looks at the next rows."""
        tokenizer, unknown = self._tokenizer, set[int]()
        choices = [(at, text) for at, example in enumerate(examples) for text in example.choices]
        of_kinds = (
            [(at, example.input) for at, example in enumerate(examples)],
            [(at, example.target) for at, example in enumerate(examples)],
            choices,
        )
        folded: set[int] = set()
        ids: list[list[int]] = []
        for number, owned in enumerate(of_kinds):
            texts = [text for _, text in owned]
            ids, kept = tokenizer.encode_all(texts), self._kept[number]
            self._losses[number] += token_losses.count_tokenization(ids, kept, tokenizer.unknown)
            self._missing.update(token_losses.count_missing(texts, ids, tokenizer))
            self._folded_marks.update(token_losses.count_folded(texts, tokenizer))
            cut: set[int] = set()
            for (at, text), tokens in zip(owned, ids, strict=True):
                if tokenizer.unknown in tokens:
                    unknown.add(at)
                if len(tokens) > kept:
                    cut.add(at)
                if len(tokens) > self._longest[number][0]:
                    self._longest[number] = len(tokens), examples[at].row_id
                if tokenizer.folded.intersection(text):
                    folded.add(at)
            self._cut[number] += len(cut)
        self._unknown += len(unknown)
        self._folded += len(folded)
        self._compare_choices(examples, ids)

    def findings(self) -> Iterator[TaskFinding]:
        """Yields what was found."""
        if self._unknown:
            shares = [
                f"{loss.unknown / loss.tokens:.1%} of the tokens of {name}"
                for name, loss in zip(NAMES, self._losses, strict=True)
                if loss.unknown
            ]
            yield TaskFinding(
                "unknown",
                self._unknown,
                f"{' and '.join(shares)} are unknown to the vocabulary, in {format_rows(self._unknown)}. It "
                f"lacks {token_losses.name_worst(self._missing)}.",
            )
        if self._folded:
            yield TaskFinding(
                "folded",
                self._folded,
                f"{format_rows(self._folded, 'has', 'have')} newlines or tabs, which are spaces to the "
                f"vocabulary: {token_losses.name_worst(self._folded_marks)}.",
            )
        for number, (name, loss) in enumerate(zip(NAMES, self._losses, strict=True)):
            if loss.cut:
                # End-of-sequence counts among the tokens of a text.
                most, (longest, row_id) = self._most[number], self._longest[number]
                yield TaskFinding(
                    "over-long",
                    self._cut[number],
                    f"{loss.cut:,} of {loss.texts:,} {name} have more than {most} tokens and are cut; the "
                    f"longest, of {row_id}, has {longest + most - self._kept[number]:,}. {loss.lost:,} of "
                    f"{loss.tokens:,} tokens are lost.",
                )
        if self._same.rows:
            yield TaskFinding(
                "same-tokens",
                self._same.rows,
                f"{format_rows(self._same.rows, 'has', 'have')} choices that differ and are the same "
                f"tokens: in {self._same.first}.",
            )

    def _compare_choices(self, examples: Sequence[PromptedExample], ids: Sequence[list[int]]) -> None:
        start, kept = 0, self._kept[2]
        for example in examples:
            first: dict[tuple[int, ...], str] = {}
            own = ids[start : start + len(example.choices)]
            for choice, tokens in zip(example.choices, own, strict=True):
                other = first.setdefault(tuple(tokens[:kept]), choice)
                if other != choice:
                    self._same.add(f"{example.row_id}, the first, {other!r:.100} and {choice!r:.100}")
                    break
            start += len(example.choices)
