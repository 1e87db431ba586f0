"""Evaluation: the scores of many rows under many experts, batched by length whatever task they belong to."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from elm_jax.aot.program import Program, platform_of, replicated, with_shardings
from elm_jax.models import sharding
from elm_jax.models.shapes import shapes_of
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import buckets, likelihood, rank

OnProgress = Callable[[int, int], None]  # pairs done, pairs in all
BATCH_TOKENS = 8192  # of prompts and tries together
# What the compilation of one shape costs, in products and sums that the device could do meanwhile: some three
# seconds of two CPU cores; on an accelerator some twenty at a third of 300 T/s, a guess.
COMPILATION_COST = {"cpu": 3e11, "other": 2e15}
Scored = tuple[list[buckets.PromptGroup], Int[np.ndarray, " B"], np.ndarray, likelihood.EdgeScores]


class ChoiceScores(NamedTuple):
    """What the network makes of a row's C choices."""

    scores: Float[np.ndarray, " C"]  # in nats
    greedy: Bool[np.ndarray, " C"]  # whether no token of the choice has a likelier one in its place


def score_rows(
    config: T5Config,
    params: Params,
    rows: Sequence[buckets.PromptWithChoices],
    experts: Params | None = None,
    pairs: Int[np.ndarray, "P 2"] | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """Returns, in the order of the pairs, the score in nats of each of a row's choices; see `rate_rows`."""
    return [rated.scores for rated in score_rows_and_greedy(config, params, rows, experts, pairs, **options)]


def score_rows_and_greedy(
    config: T5Config,
    params: Params,
    rows: Sequence[buckets.PromptWithChoices],
    experts: Params | None = None,
    pairs: Int[np.ndarray, "P 2"] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    shapes: Sequence[buckets.BucketShape] | None = None,
    worth: float | None = None,
    progress: OnProgress | None = None,
    stacked: bool = True,
) -> list[ChoiceScores]:
    """Returns, in the order of the pairs, what the network makes of each of a row's choices.

    A pair is a row's number and an expert's, of the stack [E, …]; without pairs every row is scored once, by
    the first expert or, without experts, by the base alone. Where they are not `stacked`, experts are one
    tree for all rows: a single expert's, or that of a gate (`models.gating`). A prompt that several rows
    share is encoded once for each expert, and so is every distinct beginning of its answers. `shapes` are
    those of `shapes_for`, given more rows than these, so that several calls share compilations. `worth` is
    how many tokens of padding a compilation must save; `worth_of_shape` says without it. Where the parameters
    lie on a mesh, the rows of a batch are split over it; `batch_tokens` are those of one device. The next
    batch is assembled while the device works on the last one.
    """
    if pairs is None:
        pairs = np.stack([np.arange(len(rows)), np.zeros(len(rows), int)], axis=1)
    found = buckets.group_by_prompt(rows)
    worth = compilation_tokens(params) if worth is None else worth
    # Answers of one prompt go together, so what rows alone fit into may not hold those of several.
    shapes = shapes or ()
    strays = [item for item in found if not any(buckets.shape_fits(shape, item) for shape in shapes)]
    shapes = [
        *shapes,
        *buckets.choose_shapes(strays, worth=worth * len(rows) / max(len(rows), len(pairs), 1)),
    ]
    experts_of: dict[int, list[int]] = {}
    for row, expert in pairs.tolist():
        experts_of.setdefault(row, []).append(expert)
    scores: dict[tuple[int, int], ChoiceScores] = {}
    done, waiting = 0, None
    indexed = stacked and experts is not None
    for batch in _batches(found, experts_of, shapes, worth, batch_tokens, config, params, experts, indexed):
        if waiting is not None:
            done += _collect(*waiting, rows, scores)
            if progress:
                progress(min(done, len(pairs)), len(pairs))
        waiting = batch
    if waiting is not None:
        _collect(*waiting, rows, scores)
    if progress:
        progress(len(pairs), len(pairs))
    return [scores[row, expert] for row, expert in pairs.tolist()]


def score_program(
    config: T5Config,
    base: Any,
    shape: buckets.BucketShape,
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
    integer, boolean = jnp.int32, jnp.bool_
    batch: Any = [
        jax.ShapeDtypeStruct((rows, *widths), kind)
        for widths, kind in (
            ((prompt,), integer),
            ((nodes,), integer),
            ((nodes,), integer),
            ((nodes, nodes), boolean),
            ((nodes,), boolean),
            ((edges,), integer),
            ((edges,), integer),
        )
    ]
    base, experts = shapes_of(base), None if experts is None else shapes_of(experts)
    index = jax.ShapeDtypeStruct((rows,), integer) if stacked and experts is not None else None
    if mesh is not None:
        batch = with_shardings(batch, sharding.batch_shardings(mesh, batch))
        base = with_shardings(base, sharding.shardings(mesh, base))
        # One tree for all rows lies whole on every device.
        lie = sharding.shardings(mesh, experts, experts=True) if stacked and experts else None
        experts = with_shardings(experts, lie) if lie else replicated(mesh, experts)
    run = likelihood.compiled_scorer(config, platform_of(mesh))
    return Program("score", run, (base, *batch, experts, index))


def _batches(
    found: Sequence[buckets.PromptGroup],
    experts_of: dict[int, list[int]],
    shapes: Sequence[buckets.BucketShape],
    worth: float,
    batch_tokens: int,
    config: T5Config,
    params: Params,
    experts: Params | None,
    indexed: bool,
) -> Iterator[Scored]:
    """Yields batches that the device has begun to score, the longest first."""
    mesh = sharding.mesh_of(params)
    apart = 1 if mesh is None else sharding.row_parts(mesh.shape)
    members: dict[buckets.BucketShape, list[int]] = {}
    for number, item in enumerate(found):
        members.setdefault(buckets.find_shape(item, shapes), []).append(number)
    for shape in sorted(members, reverse=True):
        here = [found[number] for number in members[shape]]
        laid = buckets.pack_tries(here, shape)
        units = [
            (place, expert)
            for place, item in enumerate(here)
            for expert in dict.fromkeys(expert for row in item.rows for expert in experts_of.get(row, ()))
        ]
        for chosen, size in buckets.split_batches(units, shape, batch_tokens * apart, worth=worth):
            size = -(-size // apart) * apart
            # What fills a batch repeats its first item.
            place, expert = np.array(chosen + chosen[:1] * (size - len(chosen)), np.int32).T
            index = expert if indexed else None
            *arrays, paths = (array[place] for array in laid)
            if mesh is not None:
                arrays = sharding.place(arrays, sharding.batch_shardings(mesh, arrays))
            run = score_program(config, params, shape, size, experts=experts, stacked=indexed, mesh=mesh)
            pending = run(params, *arrays, experts, index)
            yield [here[number] for number, _ in chosen], expert[: len(chosen)], paths[: len(chosen)], pending


def choose_shapes_for(
    params: Params, rows: Sequence[buckets.PromptWithChoices], *, experts: float = 1.0
) -> list[buckets.BucketShape]:
    """Returns the shapes that it is best to score rows in, each under so many experts on average."""
    return buckets.choose_shapes(
        buckets.group_by_prompt(rows), worth=compilation_tokens(params) / max(experts, 1.0)
    )


def compilation_tokens(params: Params) -> float:
    """Returns how many tokens of padding cost as much as the compilation of one more shape."""
    platform = platform_of(sharding.mesh_of(params))
    cost = COMPILATION_COST["cpu" if platform == "cpu" else "other"]
    return cost / (2 * sum(leaf.size for leaf in jax.tree.leaves(params)))


def _collect(
    found: Sequence[buckets.PromptGroup],
    expert_of_item: Int[np.ndarray, " B"],
    paths: np.ndarray,
    pending: likelihood.EdgeScores,
    rows: Sequence[buckets.PromptWithChoices],
    scores: dict[tuple[int, int], ChoiceScores],
) -> int:
    """Puts a batch's scores where they belong; returns how many rows were begun."""
    count = len(found)
    of_answers = rank.answer_scores(np.asarray(pending.logp)[:count], paths)
    greedy = rank.answers_are_greedy(np.asarray(pending.likeliest)[:count], paths)
    begun = 0
    for place, (item, expert) in enumerate(zip(found, expert_of_item.tolist(), strict=True)):
        for number, (row, choice) in enumerate(item.answers):
            if (row, expert) not in scores:
                choices = len(rows[row].answers)
                scores[row, expert] = ChoiceScores(
                    np.full(choices, np.nan, np.float32), np.zeros(choices, bool)
                )
                begun += 1
            rated = scores[row, expert]
            rated.scores[choice] = of_answers[place, number]
            rated.greedy[choice] = greedy[place, number]
    return begun
