"""`elm evaluate`: lets every method choose experts for every task, scores what was chosen, compares.

Everything is decided before any weight is read: which methods there are, what each of them chooses, which
experts are made of others for that, and what of all that was scored before. Then each expert is loaded once
for all tasks that want it. Tasks with answer choices are ranked, the others answered in free text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from etils import epath
from rich.console import Console

from elm_jax import names, storage
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import ContaminationError, UserError
from elm_jax.evaluation import derived_experts, estimate, generation
from elm_jax.evaluation import methods as ways
from elm_jax.evaluation import ranking as scoring
from elm_jax.evaluation import report as reports
from elm_jax.evaluation import selections as choosing
from elm_jax.evaluation.estimate import Estimate
from elm_jax.evaluation.methods import Method
from elm_jax.evaluation.results import Results
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.selections import Choices
from elm_jax.experts import keys
from elm_jax.experts.library import Library
from elm_jax.launch import hosts
from elm_jax.records import Report, TaskSpec
from elm_jax.scoring import rank
from elm_jax.scoring.scorer import BATCH_TOKENS
from elm_jax.session import devices, opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.tasks import data_source
from elm_jax.tasks.specs import task_specs
from elm_jax.telemetry.progress import Stages

Told = Callable[[Estimate], None]


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave: the report, its files and where the time went."""

    report: Report
    files: Mapping[str, epath.Path]
    seconds: Mapping[str, float]


def evaluate(
    run: Run | storage.PathLike,
    tasks: task_selection.Tasks,
    *,
    experts: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    queries: int = keys.QUERIES_PER_TASK,
    merged: int = 3,
    batch_tokens: int = BATCH_TOKENS,
    by: str = "sum",
    oracle: bool = False,
    seen: bool = False,
    truncate: int | None = None,
    faithful: str | Sequence[str] | None = None,
    mesh: Mapping[str, int] | None = None,
    dtype: str | None = None,
    told: Told | None = None,
    dry_run: bool = False,
    environment: Mapping[str, Any] | None = None,
) -> Outcome | None:
    """Compares methods on tasks, writes the report and returns it; what was scored before is not again.

    `run` is a run that is open, or its directory. `tasks` are specs or names, of tasks, datasets or groups;
    of each the split for evaluation is read. `experts` are ids, all of the library without them.

    A method is how experts are chosen and how several become one, a string as `evaluation.methods` reads it:
    "roe", "roe:experts=3+average"; the base is always among them. Without `methods` they are those of
    `methods.default`, with `merged` retrieved experts averaged. `queries` are how many inputs of a task a
    router looks at. `by` is how choices are scored: "sum" of log-probabilities in nats, as T0's and the
    paper's rank classification, their "mean" by token, or "calibrated". A device scores `batch_tokens` at
    once.

    With `oracle` every expert works on every task, and the best ones in hindsight are among the methods. An
    expert that was trained on one of the tasks' datasets is refused, unless `seen` results are asked for,
    which are then marked. The base alone needs no experts, and none is looked at. `truncate` and `faithful`
    are in place of what the run remembers of its source; a `truncate` of 0 is no limit. `mesh` has the sizes
    of the axes of a mesh of this process's devices, over which batches are split; without it each accelerator
    scores rows of its own. `dtype` is what the base is held and computes in, where `run` is a directory; as
    the run has it by default. `environment` is further told in the report.

    `told` hears how much is to be done and how long it takes; with `dry_run` no more is done. Returns None
    then, and on all of several hosts but the first, which writes the report.

    Raises a UserError, before a row is scored, for what does not exist and for tasks without rows; it is a
    ContaminationError where an expert saw a task's dataset.
    """
    if not isinstance(run, Run):
        check(Workspace.at(run), methods)  # before the base is read
        run = opening.open_run(run, dtype=dtype)
    elif dtype is not None:
        raise UserError(
            f"Expected a run's directory beside dtype, got a run that is open and {dtype!r}. Fix: give dtype "
            "to `open_run`."
        )
    base = replace(run.base, params=devices.spread(run.base.params, mesh))
    run = replace(run, base=base, source=data_source.rendered_as(run.source, truncate, faithful))
    specs = task_selection.choose(tasks, run.source, evaluation=True)
    names.resolve(by, rank.SCORES, kind="score", where="rank classification")
    if not hosts.is_first():
        run = replace(run, stages=Stages(Console(quiet=True)))
    bare = bool(methods) and not oracle and all(each.router == "base" for each in ways.parse_all(methods))
    library = Library.open(run.workspace.library, create=bare)
    experts = [] if bare else list(dict.fromkeys(experts or library.ids()))
    if not (experts or bare):
        raise UserError(
            "An evaluation wants experts, but the library has none. Train some with `elm train`, or ask for "
            "the base alone with --method base."
        )
    described = {expert: library.describe(expert) for expert in experts}
    pairs = [(about.spec, about.shapes) for about in described.values()]
    wanted = _methods(run, methods, merged, oracle, mixed=len(ways.same_shape(pairs)) > 1)
    ways.require(wanted, pairs)
    if not seen:
        refuse_contaminated(library, experts, specs)
    with hosts.together():
        ranked, written = _ways_to_answer(run, specs)
        chosen = _chosen(run, specs, wanted, experts, queries, seen=seen)
        every = any(method.router in ways.HINDSIGHT for method in wanted)
        cells = _cells(specs, chosen, experts if every else ())
        if told or dry_run:
            if told and hosts.is_first():
                told(estimate.ahead(run, cells, ranked, written, chosen, by))
            if dry_run:
                return None
        _make(run, chosen, specs)
        of_ranked, of_written = (
            [cell for cell in cells if cell.task in {spec.id for spec in own}] for own in (ranked, written)
        )
        how: dict[str, Any] = {
            "batch_tokens": batch_tokens,
            "gated": chosen.gates,
            "named": list(chosen.composites),
        }
        scores, answers = scoring.Scores(run, {}, {}), {}
        if ranked:
            scores = scoring.score(run, of_ranked, ranked, by=by, **how)
        if written:
            answers = generation.generate(run, of_written, written, **how)
        outcome = None
        if hosts.is_first():
            found = Results(run, ranked, written, experts, wanted, chosen, scores, answers)
            outcome = _report(
                found, every=every, environment={**_about(by, found, every), **(environment or {})}
            )
        hosts.meet("the report is written")
    return outcome


def check(workspace: Workspace, methods: Sequence[str] | None) -> None:
    """Raises what is wrong with methods, by themselves and with a workspace's experts; no weight is read."""
    wanted = ways.parse_all(methods or ())
    if wanted and workspace.library.is_dir():
        library = Library.open(workspace.library)
        described = [library.describe(expert) for expert in library.ids()]
        ways.require(wanted, [(about.spec, about.shapes) for about in described])


def refuse_contaminated(library: Library, experts: Sequence[str], specs: Sequence[TaskSpec]) -> None:
    """Raises if an expert was trained on a dataset that it is to be called unseen on."""
    targets = {spec.dataset for spec in specs}
    for expert in experts:
        seen = sorted(targets & set(library.spec(expert).datasets))
        if seen:
            raise ContaminationError(
                f"Zero-shot evaluation wants datasets that no expert was trained on, but {expert!r} was "
                f"trained on {', '.join(seen)}. Leave out that task or that expert, or ask for results on "
                "seen data, which are marked, with --seen."
            )


def _methods(
    run: Run, asked: Sequence[str] | None, merged: int, oracle: bool, *, mixed: bool
) -> list[Method]:
    """Returns the methods, the base among them, and with `oracle` those that are chosen in hindsight."""
    if asked:
        wanted = ways.parse_all(asked)
        if not any(method.router == "base" for method in wanted):
            wanted = [*ways.parse_all(["base"]), *wanted]
        lacking = [name for name in ways.HINDSIGHT if oracle and all(name != each.router for each in wanted)]
        return ways.unlike([*wanted, *ways.parse_all(lacking)])
    wanted = ways.default(merged, hindsight=oracle, mixed=mixed)
    there = choosing.multitask_experts(run)
    return [method for method in wanted if there or method.router != "multitask"]


def _ways_to_answer(run: Run, specs: Sequence[TaskSpec]) -> tuple[list[TaskSpec], list[TaskSpec]]:
    """Returns the tasks that are ranked and those that are answered in free text: no row has choices."""
    ranked, written = [], []
    for spec in specs:
        examples = task_rows.examples(spec, run.source)
        if not len(examples):
            raise UserError(
                f"Rows of {spec.id!r} are wanted to evaluate, but there are none. Look at its split."
            )
        (ranked if any(example.choices for example in examples) else written).append(spec)
    return ranked, written


def _chosen(
    run: Run,
    specs: Sequence[TaskSpec],
    wanted: Sequence[Method],
    experts: Sequence[str],
    queries: int,
    *,
    seen: bool,
) -> Choices:
    """Returns what the methods choose; one host decides, and the others read what it decided."""
    if hosts.is_first():
        with run.stages.stage("route", len(wanted)) as advance:
            chosen = choosing.choose(run, specs, wanted, experts, queries, advance, seen=seen)
        choosing.keep(run.workspace, chosen)
    hosts.meet("experts are chosen")
    return choosing.kept(run.workspace)


def _make(run: Run, chosen: Choices, specs: Sequence[TaskSpec]) -> None:
    """Makes what was chosen and is not there."""
    if hosts.is_first():
        by_id = {spec.id: spec for spec in specs}
        with run.stages.stage("merge", len(chosen.composites)) as advance:
            for done, composite in enumerate(chosen.composites.values(), start=1):
                derived_experts.make(run, composite, by_id)
                advance(done, "")
    hosts.meet("experts are merged")


def _cells(specs: Sequence[TaskSpec], chosen: Choices, experts: Sequence[str]) -> list[Cell]:
    """Returns what has to be scored: all that any method chose, and the experts on every task."""
    cells: dict[Cell, None] = {}
    for spec in specs:
        cells |= dict.fromkeys(
            cell for own in chosen.scorers.values() for cell in scoring.cells_of(spec.id, own[spec.id])
        )
        cells |= dict.fromkeys(Cell(spec.id, expert) for expert in experts)
    # Where all rows are wanted anyway, those of some rows are among them.
    return [cell for cell in cells if not cell.rows or Cell(cell.task, cell.scorer) not in cells]


def _about(by: str, found: Results, every: bool) -> dict[str, Any]:
    """Returns what a report says of how it came about."""
    run = found.run
    told: dict[str, Any] = {"base": run.base.fingerprint, "network": vars(run.base.config)}
    if every:
        told["best_single"] = found.best_single
    return told | ({} if by == "sum" else {"score": by})


def _report(found: Results, *, every: bool, environment: Mapping[str, Any]) -> Outcome:
    """Writes the report: every fair method against the base, retrieval against the multitask baseline too."""
    run, wanted = found.run, found.wanted
    base = next(method.name for method in wanted if method.router == "base")
    multitask = next((method.name for method in wanted if method.router == "multitask"), None)
    fair = [method for method in wanted if method.router != "base" and method.labels != "hindsight"]
    retrieval = [method for method in fair if ways.is_retrieval(method)]
    pairs = [(method.name, base) for method in fair]
    pairs += [(method.name, multitask) for method in retrieval if multitask]
    pairs = pairs if found.ranked else []  # what is written is not compared
    fitted = [derived_experts.selection(run, each) for each in found.choices.composites.values() if each.task]
    with run.stages.stage("compare and report", 1):
        made, files = reports.report(
            found.by_method(),
            pairs,
            [*found.choices.selections, *fitted],
            found.matrix() if every else (),
            workspace=run.workspace,
            environment={
                **environment,
                "seconds": reports.store_seconds(run.workspace, run.stages.seconds),
            },
            families={spec.id: spec.family or spec.dataset for spec in task_specs()},
            methods=[ways.told(method) for method in wanted],
            generated=found.written_by_method(),
            examples=found.examples(retrieval[0] if retrieval else None),
        )
    return Outcome(made, files, dict(run.stages.seconds))
