"""Tokenised rows: one task's rows as flat arrays of token ids, with their texts beside them.

`prepared_files` writes them to files and reads them from there.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int

from elm_jax import schema
from elm_jax.axes import PAD
from elm_jax.data import ragged, row_digests, token_losses
from elm_jax.data.ragged import RaggedTokens
from elm_jax.data.row_digests import RowDigests
from elm_jax.data.token_losses import TokenizationReport
from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings
from elm_jax.records import PromptedExample, RowCounts
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import EOS, Tokenizer


@dataclass(frozen=True, eq=False)
class TokenizedRows:
    """The N rows of one task and split as token ids; targets and choices end with end-of-sequence.

    Attributes:
        row_ids: Ids of the rows.
        texts: The inputs as text, which keys are embedded from.
        target_texts: The targets as text.
        choice_texts: The answer choices of all rows as text, in the order of `choices`.
        inputs: Token ids of the inputs.
        targets: Token ids of the targets.
        choices: Token ids of the choices of all rows; row i has `choice_starts[i]` to `choice_starts[i + 1]`.
        choice_starts: Where the choices of the rows begin and end, int64.
        labels: Index of the right choice, int32; -1 for a row without one.
        digests: Digests of the rows, if they were kept.
        counts: What became of the rows that these come from; None if that is not known.
        losses: What of the texts the model does not see; None in files that do not say.
        accepted: The accepted answers of each row as JSON, or an empty text; none if no file says.
    """

    row_ids: Sequence[str]
    texts: Sequence[str]
    target_texts: Sequence[str]
    choice_texts: Sequence[str]
    inputs: RaggedTokens
    targets: RaggedTokens
    choices: RaggedTokens
    choice_starts: Int[np.ndarray, " edges"]
    labels: Int[np.ndarray, " N"]
    digests: RowDigests | None = None
    counts: RowCounts | None = None
    losses: TokenizationReport | None = None
    accepted: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class StoredExamples(Sequence[PromptedExample]):
    """The prompted examples of tokenised rows; an example is made when it is read.

    Attributes:
        rows: The tokenised rows.
        cache_key: The cache key that their file holds.
    """

    rows: TokenizedRows
    cache_key: str

    @property
    def counts(self) -> RowCounts:
        """What became of the rows that were read; all were used if the file does not say."""
        return self.rows.counts or RowCounts(len(self), len(self))

    def __len__(self) -> int:
        return len(self.rows.row_ids)

    @overload
    def __getitem__(self, index: SupportsIndex) -> PromptedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptedExample]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PromptedExample | list[PromptedExample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        rows, row = self.rows, range(len(self))[index]
        start, end = rows.choice_starts[row : row + 2].tolist()
        label = int(rows.labels[row])
        return PromptedExample(
            row_id=rows.row_ids[row],
            input=rows.texts[row],
            target=rows.target_texts[row],
            choices=tuple(rows.choice_texts[start:end]),
            label=None if label < 0 else label,
            accepted=_parse_accepted(rows.accepted[row]) if rows.accepted else (),
        )


def _parse_accepted(text: str) -> tuple[str, ...]:
    answers = schema.parse(text.encode() or b"[]", list[str], what="answers", fix="prepare the task again")
    return tuple(answers)


def tokenize_examples(
    examples: Sequence[PromptedExample], tokenizer: Tokenizer, lengths: Lengths
) -> TokenizedRows:
    """Returns examples as token ids; longer lists are cut, and still end with end-of-sequence.

    An example whose target is none of its choices has no label, and can be trained on all the same.

    Args:
        examples: The prompted examples.
        tokenizer: The tokenizer; its `input_eos` says whether inputs end with end-of-sequence. An input
            without tokens is end-of-sequence in any case.
        lengths: Tokens of inputs and of targets that are kept, end-of-sequence included.

    Raises:
        UserError: If there are no examples, a length is below 2, or a label is no index of the choices.
    """
    if not examples:
        raise UserError("Expected examples to tokenise, got none. Fix: check the name of the split.")
    if min(lengths.prompt, lengths.answer) < 2:
        raise UserError(f"Expected lengths of at least 2 tokens, got {lengths}. Fix: raise the lower one.")
    for example in examples:
        if example.label is not None and not 0 <= example.label < len(example.choices):
            raise UserError(
                f"Expected the label of row {example.row_id!r} to be the index of one of its "
                f"{len(example.choices)} choices, from 0, got {example.label}. Fix: correct the label."
            )
    inputs = tuple(example.input for example in examples)
    targets = tuple(example.target for example in examples)
    choices = tuple(text for example in examples for text in example.choices)
    starts = ragged.compute_offsets(len(example.choices) for example in examples)
    ids = [tokenizer.encode_all(texts) for texts in (inputs, targets, choices)]
    cut = [
        _cut(ids[0], lengths.prompt, tokenizer.input_eos),
        _cut(ids[1], lengths.answer),
        _cut(ids[2], lengths.answer),
    ]
    return TokenizedRows(
        row_ids=tuple(example.row_id for example in examples),
        texts=inputs,
        target_texts=targets,
        choice_texts=choices,
        inputs=cut[0],
        targets=cut[1],
        choices=cut[2],
        choice_starts=starts,
        labels=np.array([-1 if example.label is None else example.label for example in examples], np.int32),
        counts=get_row_counts(examples),
        losses=token_losses.build_tokenization_report(
            (inputs, targets, choices), ids, starts, tokenizer, lengths
        ),
        accepted=tuple(json.dumps(each.accepted) if each.accepted else "" for each in examples),
    )


def find_digests(examples: Sequence[PromptedExample]) -> RowDigests:
    """Returns the digests of examples: those that were prepared with them, or else computed now."""
    stored = examples.rows.digests if isinstance(examples, StoredExamples) else None
    return row_digests.digest_rows(examples) if stored is None else stored


def pair_extra_gold_answers(
    rows: TokenizedRows, tokenizer: Tokenizer, lengths: Lengths
) -> tuple[RaggedTokens, RaggedTokens]:
    """Returns the token ids of an input and a target for every accepted answer but the first of its row."""
    others = [
        (row, answer)
        for row, accepted in enumerate(rows.accepted)
        for answer in json.loads(accepted or "[]")[1:]
    ]
    inputs = ragged.pack_tokens(rows.inputs[row] for row, _ in others)
    return inputs, _cut(tokenizer.encode_all([answer for _, answer in others]), lengths.answer)


def tokenize_inputs(inputs: Sequence[str], tokenizer: Tokenizer, lengths: Lengths) -> Any:
    """Returns the token ids of inputs, as `tokenize_examples` has them."""
    return _cut(tokenizer.encode_all(inputs), lengths.prompt, tokenizer.input_eos)


def get_row_counts(examples: Sequence[PromptedExample]) -> RowCounts:
    """Returns what became of the rows of examples; of a plain sequence all were used."""
    if isinstance(examples, Renderings | StoredExamples):
        return examples.counts
    return RowCounts(len(examples), len(examples))


def get_choices(rows: TokenizedRows, row: int) -> list[np.ndarray]:
    """Returns the token ids of every choice of a row."""
    start, end = rows.choice_starts[row : row + 2].tolist()
    return rows.choices[start:end]


def pad(rows: Sequence[np.ndarray], length: int) -> Int[np.ndarray, "N length"]:
    """Returns rows of token ids as int32 [N, length], padded at their ends.

    Raises:
        UserError: If a row is longer.

    >>> pad([np.array([5, 1]), np.array([6, 7, 1])], 4).tolist()
    [[5, 1, 0, 0], [6, 7, 1, 0]]
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    if lengths.size and lengths.max() > length:
        longest = int(lengths.argmax())
        raise UserError(
            f"Expected rows of at most {length} tokens, got {lengths[longest]} in row {longest}. Fix: "
            "tokenise them with a lower limit, or choose a longer batch."
        )
    padded = np.full((len(rows), length), PAD, np.int32)
    if lengths.sum():
        padded[np.arange(length) < lengths[:, None]] = np.concatenate(rows)
    return padded


def _cut(lists: Sequence[list[int]], length: int, add_eos: bool = True) -> RaggedTokens:
    """Cuts every list; ends it with end-of-sequence if `add_eos` or if it is empty."""
    cut = [[*tokens[: length - 1], EOS] if add_eos or not tokens else tokens[:length] for tokens in lists]
    flat = np.fromiter(itertools.chain.from_iterable(cut), np.int32)
    return RaggedTokens(flat, ragged.compute_offsets(map(len, cut)))
