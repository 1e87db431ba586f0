"""Few-shot examples: labelled rows of a task, and the expert that LoraHub puts together to fit them.

They come from the task's training split if it has one beside the split that is scored. If it has none they
are rows of that split itself, which are then left out of the results of every method on the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.data import identity, task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts import key_texts
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.records import VOCABULARY, Expert, ExpertSpec, Params, PromptedExample
from elm_jax.routing import key_index, lorahub
from elm_jax.routing.inputs import Queries
from elm_jax.scoring import scorer as engine
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run
from elm_jax.tasks import data_source


@dataclass(frozen=True, repr=False)
class FewShotExamples:
    """Labelled rows of a task.

    Attributes:
        examples: the rows.
        left_out: ids of those among them that would be scored.
    """

    examples: tuple[PromptedExample, ...]
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        return f"FewShotExamples({len(self.examples)} rows, {len(self.left_out)} left out)"


@dataclass(frozen=True, repr=False)
class FewShotPool:
    """The rows that a task's few-shot examples are drawn from, rendered once.

    Attributes:
        task: its id.
        split: where they are from.
        examples: all of them.
        is_scored: whether they are those that are scored too.
        seed: of the draw.
    """

    task: str
    split: str
    examples: Sequence[PromptedExample]
    is_scored: bool
    seed: int

    def draw(self, count: int) -> FewShotExamples:
        """Returns `count` rows; raises a UserError if there are not as many, or if none is left to score."""
        if count < 1 or len(self.examples) < count + self.is_scored:
            rest = " and one to score" if self.is_scored else ""
            raise UserError(
                f"Expected {count} labelled rows of {self.task!r}{rest}, got {len(self.examples)} in its "
                f"{self.split} split. Fix: give shots=N another number."
            )
        examples = key_texts.sample_examples(self.examples, count, self.seed)
        return FewShotExamples(
            examples, tuple(example.row_id for example in examples) if self.is_scored else ()
        )


def load_pool(run: Run, task: EvaluationTask) -> FewShotPool:
    """Returns the rows of a task's training split, or those that are scored if it has no other."""
    scored = data_source.get_split(task.spec, run.source)
    training = task_selection.resolve_task(task.id, run.source).split
    if training == scored:
        return FewShotPool(task.id, scored, task.examples, True, run.source.seed)
    splits = {**run.source.splits, task.spec.dataset: training}
    examples = task_rows.load_examples(task.spec, replace(run.source, splits=splits, limit=None))
    return FewShotPool(task.id, training, examples, False, run.source.seed)


def fit_lorahub(
    run: Run,
    name: str,
    task: str,
    experts: Sequence[str],
    shots: FewShotExamples,
    options: Mapping[str, Any],
) -> Expert:
    """Returns the expert that LoraHub puts together of a library's experts for a task.

    Weighed is what experts own less what changes nothing in the base: of LoRA and adapters the factors, as
    the paper does (Huang et al. 2023, arXiv 2307.13269), of norm scales, (IA)³ vectors and full experts the
    change. The loss is the mean negative log-likelihood, in nats a token, of the targets.

    Args:
        run: with the base and the library.
        name: of the new expert.
        task: its id.
        experts: that are weighed.
        shots: the labelled rows to fit.
        options: of the router, as methods give them.
    """
    library = Library.open(run.workspace.library)
    tokens = task_rows.tokenize_task(shots.examples, run.tokenizer, run.lengths)
    rows = [
        PromptWithChoices(prompt, [target])
        for prompt, target in zip(tokens.inputs, tokens.targets, strict=True)
    ]
    count = sum(len(row.answers[0]) for row in rows)
    shapes = engine.choose_shapes_for(run.base.params, rows, experts=float(options.get("trials", 40)))
    loaded: dict[tuple[str, ...], Params] = {}

    def weighted_sum(weights: Mapping[str, float]) -> Params:
        chosen = tuple(weights)
        if chosen not in loaded:
            loaded.clear()
            loaded[chosen] = library.load_stack(chosen, base=run.base.fingerprint)
        numbers = np.fromiter(weights.values(), np.float32, len(weights))
        return sum_weighted_experts(loaded[chosen], run.base.params, numbers)

    kind = library.spec(experts[0]).kind

    def loss(weights: Mapping[str, float]) -> float:
        params, owned = ex.split_base_and_expert(kind, run.base.params, weighted_sum(weights))
        scores = engine.score_rows(run.base.config, params, rows, owned, shapes=shapes, stacked=False)
        return -float(sum(score[0] for score in scores)) / count

    own = {option: value for option, value in options.items() if option != "seen"}
    index = key_index.build_keyless_index(library, experts)
    found = lorahub.lorahub(Queries(task, ()), index, loss=loss, **own)
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
                VOCABULARY: run.tokenizer.fingerprint,
                "merged_from": list(found.weights),
                "weights": list(found.weights.values()),
                "options": dict(options),
                "task": task,
                "shots": [example.row_id for example in shots.examples],
                **identity.merge_identities([spec.recipe for spec in specs]),
            },
        ),
        jax.tree.map(np.asarray, weighted_sum(found.weights)),
    )


def sum_weighted_experts(stack: Params, base: Params, weights: np.ndarray) -> Params:
    """Returns the neutral expert plus the weighted sum of how far each expert is from it.

    Of LoRA experts these are both factors, as LoraHub has it (get_final_weights of sail-sg/lorahub).
    """
    neutral = ex.make_neutral_expert(jax.tree.map(lambda leaf: np.asarray(leaf[0]), stack), base)
    flat, flat_neutral = paths.flatten(stack), paths.flatten(neutral)
    return paths.unflatten({path: _add_changes(flat[path], flat_neutral[path], weights) for path in flat})


@jax.jit
def _add_changes(stack: Any, neutral: Any, weights: Any) -> Any:
    """Returns neutral + Σ w (expert - neutral), in float32 and cast once."""
    wide = jnp.asarray(neutral, jnp.float32)
    change = jnp.tensordot(weights, jnp.asarray(stack, jnp.float32) - wide[None], axes=1)
    return (wide + change).astype(stack.dtype)
