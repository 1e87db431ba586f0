"""Buckets: the few shapes that rows are scored in, chosen from the data's own lengths.

Rows with one prompt are one item: it is encoded once, and all its answers stand in one trie. Items of similar
length share a shape. Few shapes mean few compilations, close ones little padding; what a row scores does not
depend on the shape it falls in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.scoring import tries
from elm_jax.scoring.tries import Tokens, Trie

# Every shape costs a compilation, which on short rows outweighs the padding that a finer ladder would save.
BUCKET_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
# Of a batch, so that there are few: none is more than half as large again as the one before.
BATCH_SIZES = tuple(sorted({1, *(each << power for power in range(14) for each in (2, 3))}))
MAX_PROMPT_TOKENS = 2048
MAX_TRIE_NODES = 512  # answers whose trie would have more are spread over several items
PROMPT_STEP, NODE_STEP = 8, 4  # lengths are multiples of these
MAX_PROMPT_LENGTHS, MAX_NODE_COUNTS = 10, 4  # shapes at most, however much is to be scored
Unit = TypeVar("Unit")


@dataclass(frozen=True)
class PromptWithChoices:
    """One row to score.

    Attributes:
        prompt: token ids.
        answers: token ids of each answer choice; none if the row is answered in free text.
    """

    prompt: Tokens
    answers: Sequence[Tokens]


@dataclass(frozen=True)
class PromptGroup:
    """A prompt with the answers of all rows that have it.

    Attributes:
        prompt: token ids.
        trie: of the answers.
        answers: (row, choice) of each answer, in the trie's order.
    """

    prompt: Tokens
    trie: Trie
    answers: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> list[int]:
        """The rows that have the prompt."""
        return list(dict.fromkeys(row for row, _ in self.answers))


class BucketShape(NamedTuple):
    """The lengths of a bucket: tokens of a prompt, nodes of a trie, edges of a trie."""

    prompt: int
    nodes: int
    edges: int


class ScoringBatch(NamedTuple):
    """B prompts of S tokens with their tries of N nodes and M edges, filled up with padding.

    Attributes:
        prompts: token ids.
        nodes: tokens that the decoder reads.
        depths: positions of the nodes in their answers.
        ancestor_mask: which nodes a node attends to; padding attends to itself alone.
        real: which nodes are no padding.
        edge_nodes: the node that predicts each edge's token.
        edge_tokens: the token of each edge.
    """

    prompts: Int[Array, "B S"]
    nodes: Int[Array, "B N"]
    depths: Int[Array, "B N"]
    ancestor_mask: Bool[Array, "B N N"]
    real: Bool[Array, "B N"]
    edge_nodes: Int[Array, "B M"]
    edge_tokens: Int[Array, "B M"]


Paths = Int[np.ndarray, "B C T"]
"""The edges of every answer; M where there is none."""


def group_by_prompt(rows: Sequence[PromptWithChoices]) -> list[PromptGroup]:
    """Returns the distinct prompts with their answers.

    Raises `UserError` for a row without answers, an empty answer, and a prompt that is empty or too long.
    """
    together: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        if not row.answers:
            raise UserError(f"Expected an answer choice in every row, got none in row {number}.")
        if not 0 < len(row.prompt) <= MAX_PROMPT_TOKENS:
            raise UserError(
                f"Expected a prompt of 1 to {MAX_PROMPT_TOKENS} tokens, got {len(row.prompt)} in row "
                f"{number}."
            )
        together.setdefault(np.asarray(row.prompt, np.int32).tobytes(), []).append(number)
    found = []
    known: dict[tuple[bytes, ...], Trie] = {}  # the same few choices may belong to many prompts
    for numbers in together.values():
        answers = [(number, choice) for number in numbers for choice in range(len(rows[number].answers))]
        for part in _split_by_trie_size(rows, answers):
            tokens = [rows[number].answers[choice] for number, choice in part]
            key = tuple(np.asarray(answer, np.int32).tobytes() for answer in tokens)
            if key not in known:
                known[key] = tries.build_trie(tokens)
            found.append(PromptGroup(rows[numbers[0]].prompt, known[key], tuple(part)))
    return found


def _split_by_trie_size(
    rows: Sequence[PromptWithChoices], answers: list[tuple[int, int]]
) -> Iterator[list[tuple[int, int]]]:
    """Cuts the answers of one prompt where their trie might grow too large."""
    part, tokens = [], 0
    for number, choice in answers:
        length = len(rows[number].answers[choice])
        if part and tokens + length > MAX_TRIE_NODES:
            yield part
            part, tokens = [], 0
        part.append((number, choice))
        tokens += length
    yield part


def choose_shapes(found: Sequence[PromptGroup], *, compile_tokens: float = 0.0) -> list[BucketShape]:
    """Returns few shapes that hold all items with little padding, the smallest first.

    A further shape must save `compile_tokens` tokens of padding: what its compilation costs.
    """
    if not found:
        return []
    lengths = np.array([len(item.prompt) for item in found])
    nodes = np.array([len(item.trie.tokens) for item in found])
    edges = np.array([len(item.trie.edge_nodes) for item in found])
    chosen = []
    shortest = 0
    for length in choose_lengths(lengths, PROMPT_STEP, MAX_PROMPT_LENGTHS, compile_tokens):
        here = (shortest < lengths) & (lengths <= length)
        fewest = 0
        for count in choose_lengths(nodes[here], NODE_STEP, MAX_NODE_COUNTS, compile_tokens):
            inside = here & (fewest < nodes) & (nodes <= count)
            chosen.append(BucketShape(length, count, _round_up(int(edges[inside].max()), NODE_STEP)))
            fewest = count
        shortest = length
    return chosen


def smallest_bucket(length: int, buckets: Sequence[int], *, what: str) -> int:
    """Returns the smallest of some lengths that holds `length`: for texts that come a few at a time."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise UserError(f"Expected a {what} of at most {buckets[-1]}, got {length}.")


def choose_lengths(
    lengths: Int[np.ndarray, " N"], step: int, most: int, compile_tokens: float = 0.0
) -> list[int]:
    """Returns the lengths, multiples of `step` and at most `most`, that all of `lengths` are padded up to.

    They are those whose padding and number, each counted as `compile_tokens` tokens, cost least.

    >>> lengths = np.array([3, 3, 3, 16])
    >>> choose_lengths(lengths, 4, 8), choose_lengths(lengths, 4, 8, compile_tokens=40.0)
    ([4, 16], [16])
    """
    tops, member = np.unique(-(-lengths // step) * step, return_inverse=True)
    before = np.concatenate([[0], np.cumsum(np.bincount(member))])  # rows that are shorter than each top
    # Rows of tops i to j, all padded to top j.
    padded = tops[None, :] * (before[None, 1:] - before[:-1, None]).astype(float)
    padded[np.tril_indices(len(tops), -1)] = np.inf
    least, begins = [padded[0]], [np.zeros(len(tops), int)]
    for _ in range(min(most, len(tops)) - 1):
        table = np.vstack([np.full(len(tops), np.inf), least[-1][:-1, None] + padded[1:]])
        begins.append(table.argmin(axis=0))
        least.append(table.min(axis=0))
    level = int(np.argmin([total[-1] + number * compile_tokens for number, total in enumerate(least)]))
    at, found = len(tops) - 1, []
    for begin in begins[level::-1]:
        found.append(int(tops[at]))
        at = int(begin[at]) - 1
    return found[::-1]


def find_shape(item: PromptGroup, among: Sequence[BucketShape]) -> BucketShape:
    """Returns the first of the shapes that holds an item."""
    return next(shape for shape in among if shape_fits(shape, item))


def shape_fits(shape: BucketShape, item: PromptGroup) -> bool:
    """Says whether an item fits into a shape."""
    sizes = (len(item.prompt), len(item.trie.tokens), len(item.trie.edge_nodes))
    return all(size <= room for size, room in zip(sizes, shape, strict=True))


def split_batches(
    units: list[Unit], shape: BucketShape, batch_tokens: int, *, compile_tokens: float = 0.0
) -> Iterator[tuple[list[Unit], int]]:
    """Yields parts of the units, and the size of the batch that each is filled up to, the same for all.

    That is what has `batch_tokens`, or less where units shared out evenly need less and the padding that
    this saves is `compile_tokens` a compilation.
    """
    if not units:
        return
    tokens = shape.prompt + shape.nodes
    most = max(1, batch_tokens // tokens)
    count = -(-len(units) // most)
    even = -(-len(units) // count)
    size = min(most, next(size for size in BATCH_SIZES if size >= even) if even <= BATCH_SIZES[-1] else most)
    if (most - size) * count * tokens <= compile_tokens:
        size = most
    for start in range(0, len(units), size):
        yield units[start : start + size], size


def pack_tries(groups: Sequence[PromptGroup], shape: BucketShape) -> tuple[ScoringBatch, Paths]:
    """Returns the arrays of groups that a shape holds, and the edges of their answers."""
    count, choices = len(groups), max(len(group.trie.paths) for group in groups)
    longest = max(len(path) for group in groups for path in group.trie.paths)
    eye = np.eye(shape.nodes, dtype=bool)
    batch = ScoringBatch(
        prompts=np.zeros((count, shape.prompt), np.int32),
        nodes=np.zeros((count, shape.nodes), np.int32),
        depths=np.zeros((count, shape.nodes), np.int32),
        ancestor_mask=np.broadcast_to(eye, (count, shape.nodes, shape.nodes)).copy(),
        real=np.zeros((count, shape.nodes), bool),
        edge_nodes=np.zeros((count, shape.edges), np.int32),
        edge_tokens=np.zeros((count, shape.edges), np.int32),
    )
    paths = np.full((count, choices, longest), shape.edges, np.int32)
    for place, group in enumerate(groups):
        trie, nodes, edges = group.trie, len(group.trie.tokens), len(group.trie.edge_nodes)
        batch.prompts[place, : len(group.prompt)] = group.prompt
        batch.nodes[place, :nodes] = trie.tokens
        batch.depths[place, :nodes] = trie.depths
        batch.ancestor_mask[place, :nodes, :nodes] = trie.ancestor_mask
        batch.real[place, :nodes] = True
        batch.edge_nodes[place, :edges] = trie.edge_nodes
        batch.edge_tokens[place, :edges] = trie.edge_tokens
        for choice, path in enumerate(trie.paths):
            paths[place, choice, : len(path)] = path
    return batch, paths


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
