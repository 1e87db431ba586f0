"""Shots: a handful of labelled rows of a task, and the expert that LoraHub puts together to fit them.

They come from the task's training split where it has one beside the split that is scored. Where it has none
they are rows of that split itself, and these are then left out of the results of every method on the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts import keys
from elm_jax.experts.library import Library
from elm_jax.models import experts as ex
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Params, PromptedExample, TaskSpec
from elm_jax.routing import gates, lorahub
from elm_jax.routing.evidence import Queries
from elm_jax.scoring import scorer as engine
from elm_jax.scoring.buckets import Row
from elm_jax.session.workspace import Run
from elm_jax.tasks import data_source


@dataclass(frozen=True)
class Shots:
    """Labelled rows, and which of those that are scored are among them."""

    examples: tuple[PromptedExample, ...]
    left_out: tuple[str, ...]  # row ids


def shots(run: Run, spec: TaskSpec, count: int) -> Shots:
    """Returns `count` labelled rows of a task, drawn with the run's seed.

    Raises a UserError if there are not as many, or if none would be left to score.
    """
    scored = data_source.split_of(spec, run.source)
    training = task_selection.find(spec.id, run.source).split
    source = run.source
    if training != scored:
        source = replace(source, splits={**source.splits, spec.dataset: training}, limit=None)
    found = task_rows.examples(spec, source)
    if count < 1 or len(found) < count + (training == scored):
        raise UserError(
            f"{count} labelled rows of {spec.id!r} are wanted for LoraHub, and one at least to score, but "
            f"its {training} split has {len(found)} rows. Give lorahub:shots=N another number."
        )
    examples = keys.sample(found, count, source.seed)
    left_out = tuple(example.row_id for example in examples) if training == scored else ()
    return Shots(examples, left_out)


def fit(run: Run, name: str, spec: TaskSpec, experts: Sequence[str], **options: Any) -> Expert:
    """Returns the expert of that name that LoraHub puts together of a library's experts for a task.

    Weighed is what experts own less what changes nothing in the base: of LoRA and adapters the factors, as
    the paper does, of norm scales, (IA)³ vectors and full experts the change. The loss is the mean negative
    log-likelihood, in nats a token, of the targets.
    """
    library = Library.open(run.workspace.library)
    shown = shots(run, spec, options["shots"])
    tokens = task_rows.prepare(shown.examples, run.pieces, run.lengths)
    rows = [Row(prompt, [target]) for prompt, target in zip(tokens.inputs, tokens.targets, strict=True)]
    count = sum(len(row.answers[0]) for row in rows)
    shapes = engine.shapes_for(run.base.params, rows, experts=float(options.get("trials", 40)))
    held: dict[tuple[str, ...], Params] = {}

    def weighed(weights: Mapping[str, float]) -> Params:
        chosen = tuple(weights)
        if chosen not in held:
            held.clear()
            held[chosen] = library.load(chosen, base=run.base.fingerprint)
        numbers = np.fromiter(weights.values(), np.float32, len(weights))
        return _weighed(held[chosen], run.base.params, numbers)

    kind = library.spec(experts[0]).kind

    def loss(weights: Mapping[str, float]) -> float:
        params, owned = ex.place(kind, run.base.params, weighed(weights))
        scores = engine.score_rows(run.base.config, params, rows, owned, shapes=shapes, stacked=False)
        return -float(sum(score[0] for score in scores)) / count

    given = {option: value for option, value in options.items() if option not in ("shots", "seen")}
    index = gates.bare_index(library, experts)
    found = lorahub.lorahub(Queries(spec.id, ()), index, loss=loss, **given)
    specs = [library.spec(expert) for expert in found.weights]
    return Expert(
        ExpertSpec(
            id=name,
            kind=kind,
            base=run.base.fingerprint,
            paths=specs[0].paths,
            datasets=tuple(sorted({dataset for each in specs for dataset in each.datasets})),
            steps=max(each.steps for each in specs),
            recipe={
                "method": "lorahub",
                "merged_from": list(found.weights),
                "weights": list(found.weights.values()),
                "options": dict(options),
                "task": spec.id,
                "shots": [example.row_id for example in shown.examples],
            },
        ),
        jax.tree.map(np.asarray, weighed(found.weights)),
    )


def _weighed(stack: Params, base: Params, weights: np.ndarray) -> Params:
    """Returns what changes nothing, plus the weighted sum of how far each expert is from that."""
    nothing = ex.neutral(jax.tree.map(lambda leaf: np.asarray(leaf[0]), stack), base)
    flat, still = paths.flatten(stack), paths.flatten(nothing)
    return paths.unflatten({path: _sum(flat[path], still[path], weights) for path in flat})


@jax.jit
def _sum(stack: Any, nothing: Any, weights: Any) -> Any:
    """Returns nothing + Σ w (expert - nothing), in float32 and cast once."""
    wide = jnp.asarray(nothing, jnp.float32)
    change = jnp.tensordot(weights, jnp.asarray(stack, jnp.float32) - wide[None], axes=1)
    return (wide + change).astype(stack.dtype)
