"""An estimate: how much an evaluation has to compute, and about how long that takes here.

Counted are model FLOPs (`models.flops`) of real tokens: every distinct prompt goes through the encoder once
for each scorer, every distinct beginning of its answers through the decoder and the output layer. A batch of
these very rows, scored by the base, shows how fast the machine is. Compilation is not counted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from elm_jax.data import task_rows
from elm_jax.evaluation import generation, ranking
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.scorer_selection import ScorerSelection
from elm_jax.experts.files import Description
from elm_jax.experts.lookup import BASE, homes
from elm_jax.models import flops
from elm_jax.records import TaskSpec
from elm_jax.scoring import buckets
from elm_jax.scoring import scorer as engine
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run

BENCHMARK_SECONDS = 0.3  # seconds at least
BENCHMARK_TOKENS = 4096  # of the batch that is measured


@dataclass(frozen=True)
class ScoringCost:
    """What lies ahead."""

    cells: int  # tasks with what works on them: files to be written
    pairs: int  # rows, counted once for each of their scorers
    tokens: int  # of distinct prompts, and of distinct beginnings of answers
    flops: float

    def __add__(self, other: "ScoringCost") -> "ScoringCost":
        return ScoringCost(
            *(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True))
        )


@dataclass(frozen=True)
class CostEstimate:
    """The work, how fast the machine was on a batch of it, and so how long it takes."""

    cost: ScoringCost
    rate: float | None  # FLOP/s; None where nothing is left to do
    compiling: float  # seconds that the measured batch took to compile

    @property
    def seconds(self) -> float:
        """Returns how long the work takes at that rate, compilation aside."""
        return self.cost.flops / self.rate if self.rate else 0.0

    def __str__(self) -> str:
        if self.rate is None:
            return "Nothing is left to score: all of it is kept from before."
        cost, rate = self.cost, f"{_short(self.rate)}FLOP/s"
        return (
            f"To score: {cost.pairs:,} pairs of row and expert in {cost.cells:,} files, {cost.tokens:,} "
            f"tokens, {_short(cost.flops)}FLOP. At {rate}, measured on one batch, that takes about "
            f"{_time(self.seconds)}; compilation comes on top, {self.compiling:.1f} s for that batch."
        )


def estimate_remaining(
    run: Run,
    cells: Sequence[Cell],
    ranked: Sequence[TaskSpec],
    written: Sequence[TaskSpec],
    chosen: ScorerSelection,
    by: str = "sum",
) -> CostEstimate:
    """Returns what is left to be done of cells of both ways to answer, and how long it takes."""
    tasks = {spec.id for spec in ranked}
    of_ranked = [cell for cell in cells if cell.task in tasks]
    bare = [cell._replace(prompted=False) for cell in of_ranked] if by == "calibrated" else []
    of_written = [cell for cell in cells if cell.task not in tasks]
    named = [*chosen.gates, *chosen.composites]
    lacking = ranking.missing_cells(run, [*of_ranked, *bare], ranked, named)
    lacking += generation.missing_cells(run, of_written, written, named)
    rows: dict[str, Sequence[PromptWithChoices]] = {}
    targets: list[PromptWithChoices] = []
    for spec in (*ranked, *written):
        made = task_rows.prepare(task_rows.examples(spec, run.source), run.pieces, run.lengths)
        targets += [
            PromptWithChoices(prompt, [target])
            for prompt, target in zip(made.inputs, made.targets, strict=True)
        ]
        rows[spec.id] = [PromptWithChoices(prompt, ()) for prompt in made.inputs]
    rows |= ranking.ranked_rows(run, {spec.id: task_rows.examples(spec, run.source) for spec in ranked})
    home_of = homes(run.workspace)
    members = {name: gate.experts for name, gate in chosen.gates.items()}
    # What is not merged yet is as large as one of those that it is made of, or nearly so.
    members |= {name: composite.members[:1] for name, composite in chosen.composites.items()}
    own = {name: members.get(name, (name,)) for name in {cell.scorer for cell in lacking} - {BASE}}
    described = {
        member: home_of(member).describe(member) for member in {each for of in own.values() for each in of}
    }
    return estimate_time(run, count_cost(run, lacking, rows, described, own), targets)


def count_cost(
    run: Run,
    cells: Sequence[Cell],
    rows: Mapping[str, Sequence[PromptWithChoices]],
    experts: Mapping[str, Description],
    members: Mapping[str, Sequence[str]],
) -> ScoringCost:
    """Returns the work of cells.

    `members` are the experts whose products a scorer does beside the base's, and `experts` describes them.
    Rows without answers are to be answered: with as many tokens as the run's lengths say, which is the most.
    """
    counted: dict[tuple[str, tuple[int, ...], bool], tuple[np.ndarray, np.ndarray]] = {}
    total = ScoringCost(0, 0, 0, 0.0)
    for cell in cells:
        chosen = [rows[cell.task][row] for row in cell.rows] if cell.rows else rows[cell.task]
        key = (cell.task, cell.rows, cell.prompted)
        if key not in counted:
            bare = (
                chosen
                if cell.prompted
                else [PromptWithChoices([run.pieces.eos], row.answers) for row in chosen]
            )
            counted[key] = _tokens(bare, run.lengths.answer)
        prompts, nodes = counted[key]
        of_experts = [experts[name] for name in members.get(cell.scorer, ())]
        spent = sum(_own(run, expert, prompts, nodes) for expert in of_experts)
        total += ScoringCost(
            1, len(chosen), int(prompts.sum() + nodes.sum()), _of_base(run, prompts, nodes) + spent
        )
    return total


def estimate_time(run: Run, ahead: ScoringCost, rows: Sequence[PromptWithChoices]) -> CostEstimate:
    """Returns how long the work takes at the rate at which the base alone scores a batch of the rows.

    They have answers, and the batch is of those of middling length.
    """
    if not ahead.cells:
        return CostEstimate(ahead, None, 0.0)
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    middle = ordered[len(ordered) // 2 :]
    batch = middle[: max(1, BENCHMARK_TOKENS // len(middle[0].prompt))]
    found = buckets.group_by_prompt(batch)
    # All in one shape, so that one batch it is.
    shapes = buckets.choose_shapes(found, worth=1e30)

    def once() -> float:
        began = time.monotonic()
        engine.score_rows(run.base.config, run.base.params, batch, shapes=shapes)
        return time.monotonic() - began

    first, times = once(), [once()]
    while sum(times) < BENCHMARK_SECONDS:
        times.append(once())
    seconds = sum(times) / len(times)
    return CostEstimate(ahead, _of_base(run, *_tokens(batch, 0)) / seconds, max(0.0, first - seconds))


def _tokens(rows: Sequence[PromptWithChoices], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of every distinct prompt, and of the beginnings of its answers."""
    ranked = [row for row in rows if row.answers]
    found = buckets.group_by_prompt(ranked)
    distinct = {
        np.asarray(row.prompt, np.int32).tobytes(): len(row.prompt) for row in rows if not row.answers
    }
    prompts = [len(item.prompt) for item in found] + list(distinct.values())
    nodes = [len(item.trie.tokens) for item in found] + [longest] * len(distinct)
    return np.array(prompts), np.array(nodes)


def _of_base(run: Run, prompts: np.ndarray, nodes: np.ndarray) -> float:
    """Returns the FLOPs of the network forward, a third of what training all of it costs."""
    seen = flops.Attended(
        float(prompts @ prompts / max(1, prompts.sum())),
        float(nodes @ nodes / max(1, nodes.sum())),
        float(prompts @ nodes / max(1, nodes.sum())) if len(nodes) else 0.0,
    )
    cost = flops.cost(run.base.config, "full", run.base.params, {}, seen)
    return cost.of(int(prompts.sum()), int(nodes.sum())) / 3


def _own(run: Run, expert: Description, prompts: np.ndarray, nodes: np.ndarray) -> float:
    """Returns the FLOPs of an expert's own products forward."""
    if expert.spec.kind == "full":
        return 0.0
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in expert.shapes.items()}
    costs = [flops.cost(run.base.config, expert.spec.kind, run.base.params, tree) for tree in (shapes, {})]
    spent = [cost.of(int(prompts.sum()), int(nodes.sum())) for cost in costs]
    return (spent[0] - spent[1]) / 3


def _short(number: float) -> str:
    for size, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:.0f} "


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
