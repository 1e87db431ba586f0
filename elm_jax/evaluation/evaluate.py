"""`elm evaluate`: lets every method choose experts for every task, scores what was chosen, compares.

Everything is decided before any weight is read: which methods there are, what each of them chooses, which
experts are made of others for that, and what of all that was scored before. Then each expert is loaded once
for all tasks that need it. Tasks with answer choices are ranked, the others answered in free text.
"""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from etils import epath
from rich.console import Console

from elm_jax import moved, storage
from elm_jax.data import missing_rows, task_selection
from elm_jax.errors import ContaminationError, UserError
from elm_jax.evaluation import (
    cost_estimate,
    derived_experts,
    generation,
    inputs,
    kept_results,
    ranking,
    report_directories,
    report_tracking,
    results_cache,
    scorer_selection,
)
from elm_jax.evaluation import methods as method_module
from elm_jax.evaluation import report as report_module
from elm_jax.evaluation.config import EvaluationConfig, ScoringOptions
from elm_jax.evaluation.cost_estimate import CostEstimate
from elm_jax.evaluation.method_results import MethodResults
from elm_jax.evaluation.methods import HINDSIGHT_ROUTERS, EvaluationMethod
from elm_jax.evaluation.scorer_selection import ScorerSelection
from elm_jax.evaluation.tasks import EvaluationTask, load_available, print_row_summary
from elm_jax.experts import compatibility, lookup
from elm_jax.experts.library import Library
from elm_jax.launch import hosts
from elm_jax.records import TaskSpec
from elm_jax.reporting.records import Report
from elm_jax.reporting.summary import OWN, ReportInputs
from elm_jax.scoring import rank
from elm_jax.session import devices, opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics
from elm_jax.tasks import data_source
from elm_jax.tasks.specs import task_specs
from elm_jax.telemetry import trackers
from elm_jax.telemetry.progress import Stages

OnEstimate = Callable[[CostEstimate], None]
MOVED_PARAMETERS = {field.name: f"config.{field.name}" for field in fields(EvaluationConfig)} | {
    "by": "config.normalization",
    "told": "on_estimate",
}


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """What an evaluation gave.

    Attributes:
        report: every number.
        files: ending -> the path of a page or table.
        seconds: stage -> how long it took.
    """

    report: Report
    files: Mapping[str, epath.Path]
    seconds: Mapping[str, float]

    def to_pandas(self) -> Any:
        """Returns a DataFrame with a line for each method on each prompt."""
        return self.report.to_pandas()

    def __repr__(self) -> str:
        return f"EvaluationResult({self.report!r}, {str(self.files.get('html'))!r})"


@moved.accepts_old_parameters("elm_jax.evaluate", MOVED_PARAMETERS, config=EvaluationConfig)
def evaluate(
    run: Run | storage.PathLike,
    tasks: task_selection.Tasks,
    config: EvaluationConfig | None = None,
    *,
    on_estimate: OnEstimate | None = None,
    dry_run: bool = False,
    environment: Mapping[str, Any] | None = None,
) -> EvaluationResult | None:
    """Compares methods on tasks, and writes the report; what was scored before is not scored again.

    Args:
        run: a run that is open, or its directory.
        tasks: specs or names, of tasks, datasets or groups; of each the split for evaluation is read.
        config: which methods are compared, and how.
        on_estimate: is called with how much is to be done and how long it takes.
        dry_run: whether no more than the estimate is done.
        environment: what the report should say beside versions, devices and times.

    Returns:
        The report with its files; None after a dry run, and on all of several hosts but the first, which
        writes the report.

    Raises:
        UserError: something does not exist, or a task has no rows; before a row is scored. Of a group those
            whose rows are missing are left out and named, unless `config.strict`.
        ContaminationError: an expert was trained on a task's dataset, and `config.seen` is not set.
    """
    config = config or EvaluationConfig()
    run = _open(run, config, dry_run=dry_run)
    report_directories.require_name(config.name)
    trackers.require_trackers(config.trackers)
    specs = task_selection.select_tasks(tasks, run.source, evaluation=True)
    missing = missing_rows.find_missing(specs, run.source)
    specs = inputs.drop_missing_tasks(run, tasks, specs, missing, strict=config.strict)
    rank.parse_normalization(config.normalization)  # raises if it is none
    experts, methods = _experts_and_methods(run, config)
    if not config.seen:
        require_unseen(Library(run.workspace.library), experts, specs)
    with hosts.exit_on_failure(), _lock(run, config, dry_run=dry_run):
        loaded, failed = load_available(run, specs)
        specs, missing = (
            inputs.drop_missing_tasks(run, tasks, specs, failed, strict=config.strict),
            missing | failed,
        )
        identities = {name: task.identity for name, task in loaded.items()}
        if hosts.is_primary():
            print_row_summary(run, loaded.values())
            results_cache.say_changed_tasks(run, identities)
        key = kept_results.selection_cache_key(run, loaded, methods, experts, config)
        selection = _select(run, loaded, methods, experts, config, key, keep=not dry_run)
        every_expert = any(method.router in HINDSIGHT_ROUTERS for method in methods)
        cells = inputs.list_cells(specs, selection, experts if every_expert else ())
        options = ScoringOptions(
            batch_tokens=config.batch_tokens,
            normalization=config.normalization,
            gates=selection.gates,
            composites=list(selection.composites),
        )
        if on_estimate and hosts.is_primary():
            on_estimate(cost_estimate.estimate_remaining(run, cells, loaded, selection, options))
        used = inputs.find_used_experts(cells, selection)
        changed = expert_statistics.check_inputs(run, used)
        if dry_run:
            return None
        _make_composites(run, selection)
        ranked = [cell for cell in cells if loaded[cell.task].is_ranked]
        generated = [cell for cell in cells if not loaded[cell.task].is_ranked]
        scores = (
            ranking.score_cells(run, ranked, loaded, options) if ranked else ranking.ScoreStore(run, {}, {})
        )
        answers = generation.generate_answers(run, generated, loaded, options) if generated else {}
        result = None
        if hosts.is_primary():
            results_cache.save_identities(run, identities)
            results = MethodResults(run, list(loaded.values()), experts, methods, selection, scores, answers)
            about = _environment(results, config.normalization, every_expert=every_expert)
            notes = {"missing": inputs.group_by_dataset(missing), "changed_experts": changed}
            about |= {name: note for name, note in notes.items() if note}
            made_of = inputs.describe_inputs(run, loaded.values(), used)
            about |= environment or {}
            result = _report(results, about, made_of, key, name=config.name, every_expert=every_expert)
            name = config.name or report_directories.LATEST
            report_tracking.track_report(run.workspace, result.report, name, config.trackers)
        hosts.barrier("the report is written")
    return result


def check_methods(workspace: Workspace, methods: Sequence[str] | None) -> None:
    """Raises what is wrong with methods, by themselves and with a workspace's experts; no weight is read."""
    opening.load_task_files(workspace)  # they may register routers and merges
    parsed = method_module.parse_methods(methods or ())
    if parsed and workspace.library.is_dir():
        library = Library.open(workspace.library)
        described = [library.describe(expert) for expert in library.ids()]
        method_module.require_compatible(parsed, [(each.spec, each.shapes) for each in described])


def require_unseen(library: Library, experts: Sequence[str], specs: Sequence[TaskSpec]) -> None:
    """Raises a ContaminationError if an expert was trained on a dataset that it is to be called unseen on."""
    targets = {spec.dataset for spec in specs}
    for expert in experts:
        seen = sorted(targets & set(library.spec(expert).datasets))
        if seen:
            raise ContaminationError(
                f"Expected experts that were not trained on the tasks' datasets, got {expert!r}, which was "
                f"trained on {', '.join(seen)}. Fix: leave out that task or that expert, or ask for "
                "results on seen data, which are marked, with --seen."
            )


def _open(run: Run | storage.PathLike, config: EvaluationConfig, *, dry_run: bool) -> Run:
    """Returns the run as the configuration wants its base and its rows."""
    if not isinstance(run, Run):
        check_methods(Workspace.at(run), config.methods)  # before the base is read
        run = opening.open_run(Workspace.at(run, read_only=dry_run), dtype=config.dtype)
    elif config.dtype is not None:
        raise UserError(
            f"Expected a run's directory beside dtype, got a run that is open and {config.dtype!r}. Fix: "
            "give dtype to `open_run`."
        )
    base = replace(run.base, params=devices.place_on_devices(run.base.params, config.mesh))
    source = data_source.override_rendering(run.source, config.truncate, config.faithful, config.on_bad_row)
    stages = run.stages if hosts.is_primary() else Stages(Console(quiet=True))
    return replace(run, base=base, source=source, stages=stages)


def _experts_and_methods(run: Run, config: EvaluationConfig) -> tuple[list[str], list[EvaluationMethod]]:
    """Returns the experts that methods choose among and the methods, after checking that they fit."""
    asked = method_module.parse_methods(config.methods or ())
    only_base = bool(asked) and not config.oracle and all(each.router == "base" for each in asked)
    library = Library(run.workspace.library)  # which may not be there
    experts = [] if only_base else list(dict.fromkeys(config.experts or library.ids()))
    if not (experts or only_base):
        raise UserError(
            "Expected experts in the library, got none. Fix: train some with `elm train`, or ask for the "
            "base alone with --method base."
        )
    described = [library.describe(expert) for expert in experts]
    pairs = [(each.spec, each.shapes) for each in described]
    compatibility.require_vocabulary((spec for spec, _ in pairs), run.tokenizer.fingerprint)
    mixed = len(compatibility.group_by_kind_and_shapes(pairs)) > 1
    methods = _methods(run, asked, config, mixed=mixed)
    method_module.require_compatible(methods, pairs)
    return experts, methods


def _methods(
    run: Run, asked: Sequence[EvaluationMethod], config: EvaluationConfig, *, mixed: bool
) -> list[EvaluationMethod]:
    """Returns the methods, the base among them, and with `config.oracle` those chosen in hindsight."""
    if asked:
        if not any(method.router == "base" for method in asked):
            asked = [*method_module.parse_methods(["base"]), *asked]
        routers = {method.router for method in asked}
        missing = [name for name in HINDSIGHT_ROUTERS if config.oracle and name not in routers]
        methods = [*asked, *method_module.parse_methods(missing)]
        method_module.check_unique_names(methods)
        return methods
    methods = method_module.default_methods(config.merged, hindsight=config.oracle, mixed=mixed)
    has_multitask = scorer_selection.multitask_experts(run)
    return [method for method in methods if has_multitask or method.router != "multitask"]


@contextmanager
def _lock(run: Run, config: EvaluationConfig, *, dry_run: bool) -> Generator[None, None, None]:
    """Keeps what an evaluation writes in a run's directory to this one; a dry run writes nothing."""
    if dry_run or not hosts.is_primary():
        yield
        return
    with run.workspace.lock("evaluate", wait=config.wait):
        lookup.remove_leftovers(run.workspace)
        yield


def _select(
    run: Run,
    tasks: Mapping[str, EvaluationTask],
    methods: Sequence[EvaluationMethod],
    experts: Sequence[str],
    config: EvaluationConfig,
    key: str | None,
    *,
    keep: bool,
) -> ScorerSelection:
    """Returns what the methods choose; one host decides, and the others read what it decided.

    If it is not kept, all hosts decide.
    """
    selection = kept_results.load_selection(run, key) if hosts.is_primary() or not keep else None
    if selection is None and (hosts.is_primary() or not keep):
        with run.stages.stage("route", len(methods)) as advance:
            selection = scorer_selection.select_scorers(
                run, tasks, methods, experts, config, advance, keep=keep
            )
        if keep:
            scorer_selection.save_selection(run.workspace, selection, key)
    hosts.barrier("experts are chosen")
    return selection or scorer_selection.load_selection(run.workspace)


def _make_composites(run: Run, selection: ScorerSelection) -> None:
    """Makes the composites that were chosen and are not there."""
    if hosts.is_primary():
        there = set(Library.open(run.workspace.composites, create=True).ids())
        missing = [composite for name, composite in selection.composites.items() if name not in there]
        with run.stages.stage("merge", len(missing)) as advance:
            for done, composite in enumerate(missing, start=1):
                derived_experts.build_composite(run, composite, selection.shots.get(composite.id))
                advance(done, "")
    hosts.barrier("experts are merged")


def _environment(results: MethodResults, normalization: str, *, every_expert: bool) -> dict[str, Any]:
    """Returns what a report says of how it came about."""
    run = results.run
    about: dict[str, Any] = {"base": run.base.fingerprint, "network": vars(run.base.config)}
    if run.source.limit is not None:
        about["limit"] = run.source.limit
    if every_expert:
        about["best_single"] = results.best_single
    return about if normalization == "sum" else {**about, "score": normalization}


def _report(
    results: MethodResults,
    environment: Mapping[str, Any],
    made_of: Mapping[str, Any],
    key: str | None,
    *,
    name: str | None,
    every_expert: bool,
) -> EvaluationResult:
    """Writes the report: every fair method against the base, retrieval against the multitask baseline too.

    One that was made from the same, which the key of the choices and the environment tell, is read instead.
    """
    run, methods = results.run, results.methods
    told = {**report_module.describe_machine(), **environment, "made_of": made_of}
    key = kept_results.report_key(key, told)
    directory = report_directories.find_directory(run.workspace, name)
    kept = kept_results.load_report(directory, key)
    if kept is not None:
        return EvaluationResult(*kept, dict(run.stages.seconds))
    base = next(method.name for method in methods if method.router == "base")
    multitask = next((method.name for method in methods if method.router == "multitask"), None)
    fair = [method for method in methods if method.router != "base" and method.labels != "hindsight"]
    retrieval = [method for method in fair if method_module.is_retrieval(method)]
    pairs = [(method.name, base) for method in fair]
    own = [method for method in methods if method.router == OWN]
    pairs += [(method.name, multitask) for method in (*retrieval, *own) if multitask]
    pairs += [(first.name, second.name) for first, second in itertools.combinations(own, 2)]
    composites = results.selection.composites.values()
    fitted = [
        derived_experts.lorahub_selection(run, each)
        for each in composites
        if each.method == derived_experts.LORAHUB
    ]
    with run.stages.stage("compare and report", 1):
        reported = ReportInputs(
            results.scores_by_method(),
            [*results.selection.selections, *fitted],
            {**environment, "seconds": report_module.add_seconds(run.workspace, run.stages.seconds)},
            methods=[method_module.describe_method(method) for method in methods],
            generated=results.generated(),
            examples=results.examples(retrieval[0] if retrieval else None),
            equal_choices=results.equal_choices(),
            made_of=made_of,
            task_rows=results.task_rows(),
            expert_counts=results.correct_counts() if every_expert else (),
            families={spec.id: spec.family or spec.dataset for spec in task_specs()},
            key_map=results.selection.key_map,
        )
        # Answers in free text are not compared.
        pairs = pairs if results.ranked_tasks else []
        report, files = report_module.write_run_report(run.workspace, reported, pairs, name=name)
        kept_results.save_report_key(directory, key)
    return EvaluationResult(report, files, dict(run.stages.seconds))
