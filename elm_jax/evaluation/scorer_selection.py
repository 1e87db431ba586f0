"""Choices: what every method of an evaluation chose for every task, before anything is scored.

They are kept in the run's directory as `choices.json`, where several hosts that score together read them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.evaluation import derived_experts, few_shot
from elm_jax.evaluation.derived_experts import Composite
from elm_jax.evaluation.methods import DEFAULT_SHOTS, HINDSIGHT_ROUTERS, EvaluationMethod
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE
from elm_jax.records import Selection, TaskSpec
from elm_jax.routing import gates
from elm_jax.routing.gates import Gated
from elm_jax.routing.route import Desk, explained
from elm_jax.session.workspace import Run, Workspace

TaskScorer = str | tuple[str, ...]
"""One scorer for a task, or one for each of its rows."""
_TRIVIAL = ("uniform", "fixed")  # routers that look at nothing, so that nothing is to be told of them


@dataclass(frozen=True)
class ScorerSelection:
    """What every method chose, but those that choose in hindsight, and what has to be made for it."""

    scorers: Mapping[str, Mapping[str, TaskScorer]]  # method -> task -> scorer
    composites: Mapping[str, Composite] = field(default_factory=dict)
    gates: Mapping[str, Gated] = field(default_factory=dict)
    selections: Sequence[Selection] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # task -> rows that were shots


def select_scorers(
    run: Run,
    specs: Sequence[TaskSpec],
    wanted: Sequence[EvaluationMethod],
    experts: Sequence[str],
    queries: int,
    advance: Callable[[int, str], None],
    *,
    seen: bool = False,
) -> ScorerSelection:
    """Lets every method choose among the experts of a library, for every task; nothing is merged yet.

    Experts that were trained on a task's own dataset are passed over, unless a method asks for them; with
    `seen` the one of `fixed` is not. Raises what the routers raise.
    """
    desk = Desk(run, experts, queries)
    scorers: dict[str, dict[str, TaskScorer]] = {}
    made: dict[str, Composite] = {}
    gated: dict[str, Gated] = {}
    told: dict[Any, list[Selection]] = {}
    left_out: dict[str, Sequence[str]] = {}

    def put(composite: Composite) -> str:
        made[composite.id] = composite
        return composite.id

    def selected(method: EvaluationMethod) -> list[Selection]:
        options = {"seen": seen and method.router == "fixed", **method.options}
        key = storage.fingerprint([method.router, options])
        if key not in told:
            found = explained(
                run, specs, method.router, shown=False, desk=desk, every=method.level == "row", **options
            )
            told[key] = [selection for selection, _ in found]
        return told[key]

    for number, method in enumerate(wanted, start=1):
        own: dict[str, TaskScorer] = {}
        if method.router == "base":
            own = {spec.id: BASE for spec in specs}
        elif method.router == "multitask":
            own = dict.fromkeys([spec.id for spec in specs], _multitask(run, method.options.get("name", "")))
        elif method.router == "lorahub":
            options = {"shots": DEFAULT_SHOTS, **method.options}
            for spec in specs:
                may = experts if method.options.get("seen") else _unseen(desk.library, experts, spec)
                own[spec.id] = put(derived_experts.lorahub_composite(run, spec, options, may))
                rows = few_shot.draw_few_shot(run, spec, options["shots"]).left_out
                left_out[spec.id] = tuple(dict.fromkeys([*left_out.get(spec.id, ()), *rows]))
        elif method.level == "token":
            options = {name: value for name, value in method.options.items() if name != "seen"}
            for spec in specs:
                exclude = () if method.options.get("seen") else (spec.dataset,)
                gate = gates.of(desk.library, method.router, options, experts, exclude)
                gated[gate.id], own[spec.id] = gate, gate.id
        elif method.level == "row":
            own = {
                selection.task: tuple(expert for expert, _ in selection.nearest)
                for selection in selected(method)
            }
        elif method.router not in HINDSIGHT_ROUTERS:
            for selection in selected(method):
                single = len(selection.weights) == 1 and method.merge in (None, "average", "concatenate")
                own[selection.task] = (
                    next(iter(selection.weights))
                    if single
                    else put(
                        derived_experts.merged(
                            run, method.merge or "average", method.merge_options, selection.weights
                        )
                    )
                )
        if method.router not in HINDSIGHT_ROUTERS:
            scorers[method.name] = own
        advance(number, method.name)
    by_vote = [
        selection for own in told.values() for selection in own if not selection.router.startswith(_TRIVIAL)
    ]
    return ScorerSelection(scorers, made, gated, by_vote, left_out)


def multitask_experts(run: Run) -> list[str]:
    """Returns the experts of a run that were trained on many tasks."""
    there = Library.open(run.workspace.composites, create=True).ids()
    return [expert for expert in there if expert.startswith("multitask/")]


def save_selection(workspace: Workspace, choices: ScorerSelection) -> None:
    """Writes what was chosen."""
    storage.write_json(
        _file(workspace),
        {
            "methods": choices.scorers,
            "composites": [asdict(composite) for composite in choices.composites.values()],
            "gates": [asdict(gate) for gate in choices.gates.values()],
            "selections": [asdict(selection) for selection in choices.selections],
            "left_out": choices.left_out,
        },
    )


def load_selection(workspace: Workspace) -> ScorerSelection:
    """Returns what was written."""
    told = storage.read_json(_file(workspace), what="What methods chose")

    def plain(value: Any) -> Any:
        return tuple(map(plain, value)) if isinstance(value, list) else value

    def records(kind: Any, name: str) -> list[Any]:
        return [kind(**{key: plain(value) for key, value in row.items()}) for row in told[name]]

    return ScorerSelection(
        {
            method: {task: plain(each) for task, each in own.items()}
            for method, own in told["methods"].items()
        },
        {composite.id: composite for composite in records(Composite, "composites")},
        {gate.id: gate for gate in records(Gated, "gates")},
        records(Selection, "selections"),
        {task: plain(rows) for task, rows in told["left_out"].items()},
    )


def _unseen(library: Library, experts: Sequence[str], spec: TaskSpec) -> list[str]:
    """Returns the experts that were not trained on a task's dataset."""
    found = [expert for expert in experts if spec.dataset not in library.spec(expert).datasets]
    if not found:
        raise UserError(
            f"An expert that was not trained on {spec.dataset!r} is wanted, but all were. Leave the task "
            "out, or let the method choose among all with seen=true."
        )
    return found


def _multitask(run: Run, name: str) -> str:
    there = multitask_experts(run)
    if not there:
        raise UserError(
            "An expert that was trained on many tasks is wanted for method 'multitask', but the run has "
            "none. Train one with `elm train TASK... --multitask NAME`, or leave the method out."
        )
    if not name:
        return there[0]
    return names.resolve(f"multitask/{name}", there, kind="multitask expert", where="the run's composites")


def _file(workspace: Workspace) -> Any:
    return workspace.root / "choices.json"
