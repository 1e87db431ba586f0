"""Cost estimate: how much an evaluation has to compute, and about how long that takes here.

Counted are model FLOPs (`models.flops`) of real tokens: every distinct prompt goes through the encoder once
for each scorer, every distinct beginning of its answers through the decoder and the output layer. A batch of
these very rows, scored by the base, shows how fast the machine is. Compilation is not counted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from elm_jax.evaluation import generation, normalization, ranking, results_cache
from elm_jax.evaluation.config import ScoringOptions
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.scorer_selection import ScorerSelection
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.lookup import BASE_SCORER, library_finder
from elm_jax.models import flops
from elm_jax.reporting.formatting import format_duration, format_quantity
from elm_jax.scoring import buckets
from elm_jax.scoring import scorer as engine
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run

BENCHMARK_SECONDS = 0.3  # at least
BENCHMARK_TOKENS = 4096  # of the batch that is measured


@dataclass(frozen=True)
class ScoringCost:
    """What is left to be scored or written.

    Attributes:
        cells: files to be written.
        pairs: rows, counted once for each of their scorers.
        tokens: of distinct prompts, and of distinct beginnings of answers.
        flops: of the model.
    """

    cells: int
    pairs: int
    tokens: int
    flops: float

    def __add__(self, other: "ScoringCost") -> "ScoringCost":
        return ScoringCost(
            *(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True))
        )


@dataclass(frozen=True)
class CostEstimate:
    """The cost of an evaluation, how fast the machine was on a batch of it, and so how long it takes.

    Attributes:
        cost: what is left to be done.
        flops_per_second: measured; None if nothing is left.
        compile_seconds: of the batch that was measured.
    """

    cost: ScoringCost
    flops_per_second: float | None
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """How long it takes at that rate, without compilation."""
        return self.cost.flops / self.flops_per_second if self.flops_per_second else 0.0

    def __str__(self) -> str:
        if self.flops_per_second is None:
            return "Nothing is left to score: all results are there."
        cost, rate = self.cost, format_quantity(self.flops_per_second, "FLOP/s")
        flops, duration = format_quantity(cost.flops, "FLOP"), format_duration(self.seconds)
        return (
            f"To score: {cost.pairs:,} pairs of row and expert in {cost.cells:,} files, {cost.tokens:,} "
            f"tokens, {flops}. At {rate}, measured on one batch, that takes about {duration}; compilation "
            f"comes on top, {self.compile_seconds:.1f} s for that batch."
        )


def estimate_remaining(
    run: Run,
    cells: Sequence[Cell],
    tasks: Mapping[str, EvaluationTask],
    selection: ScorerSelection,
    options: ScoringOptions,
) -> CostEstimate:
    """Returns what is left to be done of the cells of an evaluation, and how long it takes."""
    ranked = [cell for cell in cells if tasks[cell.task].is_ranked]
    bare = normalization.premise_cells(run, ranked, tasks, options.normalization)
    ranked += [each for own in bare for each in own]
    generated = [cell for cell in cells if not tasks[cell.task].is_ranked]
    missing = ranking.missing_cells(run, ranked, tasks, options.content_addressed)
    missing += generation.missing_cells(run, generated, tasks, options.content_addressed)
    home_of = library_finder(run.workspace)
    members = {name: gate.experts for name, gate in selection.gates.items()}
    # What is not merged yet is as large as one of those that it is made of, or nearly so.
    members |= {name: composite.members[:1] for name, composite in selection.composites.items()}
    own = {name: members.get(name, (name,)) for name in {cell.scorer for cell in missing} - {BASE_SCORER}}
    described = {
        expert: home_of(expert).describe(expert)
        for expert in {each for names in own.values() for each in names}
    }
    prompts = {name: task.prompts for name, task in tasks.items()}
    targets = [
        PromptWithChoices(prompt, [target])
        for task in tasks.values()
        for prompt, target in zip(task.tokens.inputs, task.tokens.targets, strict=True)
    ]
    return estimate_time(run, count_cost(run, missing, prompts, described, own), targets)


def count_cost(
    run: Run,
    cells: Sequence[Cell],
    prompts: Mapping[str, Sequence[PromptWithChoices]],
    experts: Mapping[str, ExpertDescription],
    members: Mapping[str, Sequence[str]],
) -> ScoringCost:
    """Returns the cost of cells.

    Args:
        run: with the base, and with the length of an answer in free text, of which the most is counted.
        cells: tasks with their scorers.
        prompts: task id -> its rows; those without choices are answered in free text.
        experts: descriptions of experts by id.
        members: scorer -> the experts whose products it does beside the base's.
    """
    counted: dict[tuple[str, tuple[int, ...], str | None], tuple[np.ndarray, np.ndarray]] = {}
    total = ScoringCost(0, 0, 0, 0.0)
    for cell in cells:
        rows = [prompts[cell.task][row] for row in cell.rows] if cell.rows else prompts[cell.task]
        key = (cell.task, cell.rows, cell.premise)
        if key not in counted:
            counted[key] = _count_tokens(
                results_cache.replace_prompt_by_premise(run, cell, rows), run.lengths.answer
            )
        lengths, nodes = counted[key]
        own = sum(_expert_flops(run, experts[name], lengths, nodes) for name in members.get(cell.scorer, ()))
        tokens = int(lengths.sum() + nodes.sum())
        total += ScoringCost(1, len(rows), tokens, _base_flops(run, lengths, nodes) + own)
    return total


def estimate_time(run: Run, cost: ScoringCost, rows: Sequence[PromptWithChoices]) -> CostEstimate:
    """Returns how long a cost takes at the rate at which the base alone scores a batch of the rows.

    They have answers, and the batch is of those of middling length.
    """
    if not cost.cells:
        return CostEstimate(cost, None, 0.0)
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    middle = ordered[len(ordered) // 2 :]
    batch = middle[: max(1, BENCHMARK_TOKENS // len(middle[0].prompt))]
    # All in one shape, so that it is one batch.
    shapes = buckets.choose_shapes(buckets.group_by_prompt(batch), compile_tokens=1e30)

    def score_batch() -> float:
        began = time.monotonic()
        engine.score_rows(run.base.config, run.base.params, batch, shapes=shapes)
        return time.monotonic() - began

    first, times = score_batch(), [score_batch()]
    while sum(times) < BENCHMARK_SECONDS:
        times.append(score_batch())
    seconds = sum(times) / len(times)
    rate = _base_flops(run, *_count_tokens(batch, 0)) / seconds
    return CostEstimate(cost, rate, max(0.0, first - seconds))


def _count_tokens(rows: Sequence[PromptWithChoices], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of every distinct prompt, and of the beginnings of its answers."""
    ranked = buckets.group_by_prompt([row for row in rows if row.answers])
    generated = {
        np.asarray(row.prompt, np.int32).tobytes(): len(row.prompt) for row in rows if not row.answers
    }
    prompts = [len(group.prompt) for group in ranked] + list(generated.values())
    nodes = [len(group.trie.tokens) for group in ranked] + [longest] * len(generated)
    return np.array(prompts), np.array(nodes)


def _base_flops(run: Run, prompts: np.ndarray, nodes: np.ndarray) -> float:
    """Returns the FLOPs of the network forward, a third of what training all of it costs."""
    attended = flops.AttentionSpans(
        float(prompts @ prompts / max(1, prompts.sum())),
        float(nodes @ nodes / max(1, nodes.sum())),
        float(prompts @ nodes / max(1, nodes.sum())) if len(nodes) else 0.0,
    )
    cost = flops.training_flops(run.base.config, "full", run.base.params, {}, attended)
    return cost.total(int(prompts.sum()), int(nodes.sum())) / 3


def _expert_flops(run: Run, expert: ExpertDescription, prompts: np.ndarray, nodes: np.ndarray) -> float:
    """Returns the FLOPs of an expert's own products forward."""
    if expert.spec.kind == "full":
        return 0.0
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in expert.shapes.items()}
    costs = [
        flops.training_flops(run.base.config, expert.spec.kind, run.base.params, tree)
        for tree in (shapes, {})
    ]
    spent = [cost.total(int(prompts.sum()), int(nodes.sum())) for cost in costs]
    return (spent[0] - spent[1]) / 3
