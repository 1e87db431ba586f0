"""Scorer: the scores of many rows under many experts, batched by length whatever task they belong to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from elm_jax.aot.program import Program, get_platform, with_shardings
from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import buckets, likelihood, rank
from elm_jax.scoring.buckets import BucketShape, PromptGroup, PromptWithChoices, ScoringBatch
from elm_jax.scoring.likelihood import EdgeScores
from elm_jax.scoring.programs import network_arguments

OnProgress = Callable[[int, int], None]
"""Is called with the pairs that are done, and all pairs."""
BATCH_TOKENS = 8192  # of prompts and tries together
# What the compilation of one shape costs, in products and sums that the device could do meanwhile: some three
# seconds of two CPU cores; on an accelerator some twenty at a third of 300 T/s, a guess.
COMPILATION_COST = {"cpu": 3e11, "other": 2e15}


class ChoiceScores(NamedTuple):
    """What the network makes of a row's C choices.

    Attributes:
        scores: summed log-probabilities in nats.
        greedy: whether no token of the choice has a likelier one in its place.
    """

    scores: Float[np.ndarray, " C"]
    greedy: Bool[np.ndarray, " C"]


class PendingBatch(NamedTuple):
    """A batch that the device has begun to score.

    Attributes:
        groups: B prompts with their answers.
        expert_of_group: their experts' places in the stack.
        paths: the edges of their answers.
        edges: what the device returns; it may have more rows, which fill the batch.
    """

    groups: list[PromptGroup]
    expert_of_group: Int[np.ndarray, " B"]
    paths: np.ndarray
    edges: EdgeScores


@dataclass(frozen=True)
class Network:
    """What works on a batch: the base with experts beside it.

    Attributes:
        config: of the base.
        params: of the base, or of a full expert in its stead.
        experts: a stack [E, …], one tree for all rows, or None.
        indexed: whether every row names its own of the experts.
    """

    config: T5Config
    params: Params
    experts: Params | None
    indexed: bool

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the base lies on; None is the default device."""
        return sharding.mesh_of(self.params)

    @property
    def row_parts(self) -> int:
        """How many parts the rows of a batch are split into."""
        return 1 if self.mesh is None else sharding.count_row_shards(self.mesh.shape)


def score_rows(
    config: T5Config,
    params: Params,
    rows: Sequence[PromptWithChoices],
    experts: Params | None = None,
    pairs: Int[np.ndarray, "P 2"] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    shapes: Sequence[BucketShape] | None = None,
    compile_tokens: float | None = None,
    progress: OnProgress | None = None,
    stacked: bool = True,
) -> list[np.ndarray]:
    """Returns, in the order of the pairs, the score in nats of each of a row's choices.

    The arguments are those of `score_rows_and_greedy`.
    """
    found = score_rows_and_greedy(
        config,
        params,
        rows,
        experts,
        pairs,
        batch_tokens=batch_tokens,
        shapes=shapes,
        compile_tokens=compile_tokens,
        progress=progress,
        stacked=stacked,
    )
    return [each.scores for each in found]


def score_rows_and_greedy(
    config: T5Config,
    params: Params,
    rows: Sequence[PromptWithChoices],
    experts: Params | None = None,
    pairs: Int[np.ndarray, "P 2"] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    shapes: Sequence[BucketShape] | None = None,
    compile_tokens: float | None = None,
    progress: OnProgress | None = None,
    stacked: bool = True,
) -> list[ChoiceScores]:
    """Returns, in the order of the pairs, what the network makes of each of a row's choices.

    A prompt that several rows share is encoded once for each expert, and so is every distinct beginning of
    its answers. If the parameters lie on a mesh, the rows of a batch are split over it. The next batch is
    assembled while the device works on the last one.

    Args:
        config: the network.
        params: of the base, or of a full expert in its stead.
        rows: prompts with their choices.
        experts: a stack [E, …], or one tree for all rows.
        pairs: (row, place of an expert in the stack), [P, 2]. Default: every row once, by the first expert
            or, without experts, by the base alone.
        batch_tokens: of one device.
        shapes: those of `choose_shapes_for`, given more rows than these, so that several calls share
            compilations.
        compile_tokens: how many tokens of padding a compilation must save. Default: `compilation_tokens`.
        progress: is called after every batch.
        stacked: whether `experts` is a stack; otherwise it is a single expert's tree, or that of a gate
            (`models.gating`).

    Raises:
        UserError: a row without choices, an empty answer, or a prompt that is empty or too long.
    """
    if pairs is None:
        pairs = np.stack([np.arange(len(rows)), np.zeros(len(rows), int)], axis=1)
    network = Network(config, params, experts, stacked and experts is not None)
    groups = buckets.group_by_prompt(rows)
    if compile_tokens is None:
        compile_tokens = compilation_tokens(params)
    # Answers of one prompt go together, so what rows alone fit into may not hold those of several.
    shapes = shapes or ()
    strays = [group for group in groups if not any(buckets.shape_fits(shape, group) for shape in shapes)]
    per_row = compile_tokens * len(rows) / max(len(rows), len(pairs), 1)
    shapes = [*shapes, *buckets.choose_shapes(strays, compile_tokens=per_row)]
    experts_of: dict[int, list[int]] = {}
    for row, expert in pairs.tolist():
        experts_of.setdefault(row, []).append(expert)
    scores: dict[tuple[int, int], ChoiceScores] = {}
    done, waiting = 0, None
    for shape, members in _group_by_shape(groups, shapes).items():
        for batch in _batches(network, members, experts_of, shape, batch_tokens, compile_tokens):
            if waiting is not None:
                done += _collect(waiting, rows, scores)
                if progress:
                    progress(min(done, len(pairs)), len(pairs))
            waiting = batch
    if waiting is not None:
        _collect(waiting, rows, scores)
    if progress:
        progress(len(pairs), len(pairs))
    return [scores[row, expert] for row, expert in pairs.tolist()]


def score_program(
    config: T5Config,
    base: Any,
    shape: BucketShape,
    rows: int,
    *,
    experts: Any = None,
    stacked: bool = True,
    mesh: Mesh | None = None,
) -> Program:
    """Returns the program that scores a batch of one shape.

    Args:
        config: the network.
        base: its parameters or their shapes; those of a full expert in its stead.
        shape: of the batch's prompts and tries.
        rows: of the batch, on all devices together.
        experts: a stack [E, …] or one tree for all rows, or their shapes; None scores the base alone.
        stacked: whether every row names its own of the experts.
        mesh: that the base lies on; None is the default device.
    """
    prompt, nodes, edges = shape

    def array(*widths: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((rows, *widths), dtype)

    batch = ScoringBatch(
        prompts=array(prompt),
        nodes=array(nodes),
        depths=array(nodes),
        ancestor_mask=array(nodes, nodes, dtype=jnp.bool_),
        real=array(nodes, dtype=jnp.bool_),
        edge_nodes=array(edges),
        edge_tokens=array(edges),
    )
    if mesh is not None:
        batch = with_shardings(batch, sharding.batch_shardings(mesh, batch))
    base, experts, index = network_arguments(base, experts, rows, stacked=stacked, mesh=mesh)
    return Program(
        "score", likelihood.compiled_scorer(config, get_platform(mesh)), (base, batch, experts, index)
    )


def choose_shapes_for(
    params: Params, rows: Sequence[PromptWithChoices], *, experts: float = 1.0
) -> list[BucketShape]:
    """Returns the shapes that it is best to score rows in, each under so many experts on average."""
    per_expert = compilation_tokens(params) / max(experts, 1.0)
    return buckets.choose_shapes(buckets.group_by_prompt(rows), compile_tokens=per_expert)


def compilation_tokens(params: Params) -> float:
    """Returns how many tokens of padding cost as much as the compilation of one more shape."""
    platform = get_platform(sharding.mesh_of(params))
    cost = COMPILATION_COST["cpu" if platform == "cpu" else "other"]
    return cost / (2 * sum(leaf.size for leaf in jax.tree.leaves(params)))


def _group_by_shape(
    groups: Sequence[PromptGroup], shapes: Sequence[BucketShape]
) -> dict[BucketShape, list[PromptGroup]]:
    """Returns the groups by the first shape that holds them, the longest shape first."""
    members: dict[BucketShape, list[PromptGroup]] = {}
    for group in groups:
        members.setdefault(buckets.find_shape(group, shapes), []).append(group)
    return {shape: members[shape] for shape in sorted(members, reverse=True)}


def _batches(
    network: Network,
    groups: Sequence[PromptGroup],
    experts_of: Mapping[int, Sequence[int]],
    shape: BucketShape,
    batch_tokens: int,
    compile_tokens: float,
) -> Iterator[PendingBatch]:
    """Yields batches of groups of one shape that the device has begun to score."""
    batch, paths = buckets.pack_tries(groups, shape)
    units = [
        (place, expert)
        for place, group in enumerate(groups)
        for expert in dict.fromkeys(expert for row in group.rows for expert in experts_of.get(row, ()))
    ]
    mesh, parts = network.mesh, network.row_parts
    for chosen, size in buckets.split_batches(
        units, shape, batch_tokens * parts, compile_tokens=compile_tokens
    ):
        size = -(-size // parts) * parts
        # What fills a batch repeats its first prompt.
        places, index = np.array(chosen + chosen[:1] * (size - len(chosen)), np.int32).T
        own = ScoringBatch(*(np.asarray(array)[places] for array in batch))
        if mesh is not None:
            own = jax.device_put(own, sharding.batch_shardings(mesh, own))
        run = score_program(
            network.config,
            network.params,
            shape,
            size,
            experts=network.experts,
            stacked=network.indexed,
            mesh=mesh,
        )
        edges = run(network.params, own, network.experts, index if network.indexed else None)
        count = len(chosen)
        yield PendingBatch(
            [groups[place] for place, _ in chosen], index[:count], paths[places][:count], edges
        )


def _collect(
    batch: PendingBatch,
    rows: Sequence[PromptWithChoices],
    scores: dict[tuple[int, int], ChoiceScores],
) -> int:
    """Puts a batch's scores where they belong; returns how many rows were begun."""
    count = len(batch.groups)
    sums = rank.answer_scores(np.asarray(batch.edges.logp)[:count], batch.paths)
    greedy = rank.answers_are_greedy(np.asarray(batch.edges.likeliest)[:count], batch.paths)
    begun = 0
    for place, (group, expert) in enumerate(zip(batch.groups, batch.expert_of_group.tolist(), strict=True)):
        for number, (row, choice) in enumerate(group.answers):
            if (row, expert) not in scores:
                choices = len(rows[row].answers)
                scores[row, expert] = ChoiceScores(
                    np.full(choices, np.nan, np.float32), np.zeros(choices, bool)
                )
                begun += 1
            own = scores[row, expert]
            own.scores[choice] = sums[place, number]
            own.greedy[choice] = greedy[place, number]
    return begun
