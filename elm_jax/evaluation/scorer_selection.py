"""Scorer selection: what every method of an evaluation chose for every task, before anything is scored.

It is kept in the run's directory as `choices.json`, where several hosts that score together read it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from etils import epath

from elm_jax import names, schema, storage
from elm_jax.errors import UserError
from elm_jax.evaluation import candidates, derived_experts, few_shot
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.derived_experts import LORAHUB, Composite
from elm_jax.evaluation.ensembles import ENSEMBLE, ENSEMBLE_MEANS, Ensemble
from elm_jax.evaluation.few_shot import FewShotExamples, FewShotPool
from elm_jax.evaluation.few_shot_training import FINETUNE, FINETUNE_OPTIONS
from elm_jax.evaluation.methods import DEFAULT_SHOTS, HINDSIGHT_ROUTERS, EvaluationMethod
from elm_jax.evaluation.own_experts import OWN_EXPERT_KINDS, find_own_experts
from elm_jax.evaluation.results_cache import TaskScorer
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE_SCORER
from elm_jax.records import Selection, TaskSpec
from elm_jax.reporting.records import KeyMap
from elm_jax.reporting.summary import OWN
from elm_jax.routing import gate_specs
from elm_jax.routing.components import COMPONENT_OPTIONS, COMPONENTS
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.routing.route import SelectionForm, route_tasks
from elm_jax.routing.run_inputs import RoutingInputs
from elm_jax.session.workspace import Run, Workspace

_TRIVIAL = ("uniform", "fixed")  # routers that look at nothing, so that a report has nothing to say of them


@dataclass(frozen=True, repr=False)
class ScorerSelection:
    """What every method chose, but those that choose in hindsight, and what has to be made for it.

    Attributes:
        scorers: method -> task id -> its scorer.
        composites: merged experts among the scorers, by name.
        gates: gates among the scorers, by name.
        selections: what the routers said.
        left_out: task id -> ids of the rows that a method saw with their labels.
        shots: composite -> the labelled rows that it is fitted to; on the host that selected, and in no file.
        key_map: where the keys and queries lie that routers compared.
    """

    scorers: Mapping[str, Mapping[str, TaskScorer]]
    composites: Mapping[str, Composite] = field(default_factory=dict)
    gates: Mapping[str, GateSpec] = field(default_factory=dict)
    selections: Sequence[Selection] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shots: Mapping[str, FewShotExamples] = field(default_factory=dict)
    key_map: KeyMap | None = None

    def __repr__(self) -> str:
        return f"ScorerSelection({', '.join(self.scorers)})"


def select_scorers(
    run: Run,
    tasks: Mapping[str, EvaluationTask],
    methods: Sequence[EvaluationMethod],
    experts: Sequence[str],
    config: EvaluationConfig,
    advance: Callable[[int, str], None],
    *,
    keep: bool = True,
) -> ScorerSelection:
    """Lets every method choose among the experts of a library, for every task; nothing is merged yet.

    Experts that were trained on a task's own dataset are passed over, unless a method asks for them; with
    `config.seen` the one of `fixed` is not.

    Args:
        run: with the library.
        tasks: task id -> its rows.
        methods: that choose.
        experts: that they choose among.
        config: how many queries routers look at, and whether seen experts may be fixed.
        advance: is called with the number of methods that are done, and the name of the last.
        keep: whether what routers choose is stored in the run.

    Raises:
        UserError: what the routers raise; a task without an expert that was not trained on its dataset.
    """
    selector = _Selector(run, tasks, experts, config, keep=keep)
    scorers: dict[str, Mapping[str, TaskScorer]] = {}
    for number, method in enumerate(methods, start=1):
        if method.router not in HINDSIGHT_ROUTERS:
            scorers[method.name] = selector.select(method)
        advance(number, method.name)
    selections = [
        selection
        for own in selector.routed.values()
        for selection in own
        if not selection.router.startswith(_TRIVIAL)
    ]
    return ScorerSelection(
        scorers,
        selector.composites,
        selector.gates,
        selections,
        selector.left_out,
        selector.shots,
        selector.inputs.draw_map(),
    )


class _Selector:
    """Selects scorers method by method; what several methods read is computed once."""

    def __init__(
        self,
        run: Run,
        tasks: Mapping[str, EvaluationTask],
        experts: Sequence[str],
        config: EvaluationConfig,
        *,
        keep: bool,
    ) -> None:
        self.run, self.tasks, self.experts, self.config = run, tasks, experts, config
        self.specs = [task.spec for task in tasks.values()]
        examples = {name: task.examples for name, task in tasks.items()}
        self.inputs = RoutingInputs(run, experts, config.queries, examples, keep=keep)
        self._inputs_by_options: dict[str, RoutingInputs] = {}
        self.routed: dict[str, list[Selection]] = {}
        self.composites: dict[str, Composite] = {}
        self.gates: dict[str, GateSpec] = {}
        self.left_out: dict[str, Sequence[str]] = {}
        self.shots: dict[str, FewShotExamples] = {}
        self._pools: dict[str, FewShotPool] = {}
        self._merges: dict[str, Composite] = {}

    def select(self, method: EvaluationMethod) -> dict[str, TaskScorer]:
        """Returns a method's scorer of every task."""
        if method.router == "base":
            return dict.fromkeys(self.tasks, BASE_SCORER)
        if method.router == "multitask":
            return dict.fromkeys(self.tasks, find_multitask_expert(self.run, method.options.get("name", "")))
        if method.router == OWN:
            return self._find_own(method.options.get("of", OWN_EXPERT_KINDS[0]))
        if method.router == "lorahub":
            return {task.id: self._fit(task, method) for task in self.tasks.values()}
        if method.level == "token":
            return {spec.id: self._gate(spec, method) for spec in self.specs}
        if method.level == "row":
            return {
                selection.task: tuple(expert for expert, _ in selection.nearest)
                for selection in self._route(method)
            }
        return {selection.task: self._merge(selection, method) for selection in self._route(method)}

    def _route(self, method: EvaluationMethod) -> list[Selection]:
        options = {"seen": self.config.seen and method.router == "fixed", **method.options}
        key = storage.fingerprint([method.router, options])
        if key not in self.routed:
            own, _ = candidates.split_options(options)
            routed = route_tasks(
                self._find_inputs(method),
                self.specs,
                method.router,
                {name: value for name, value in own.items() if name not in ("experts", "seen")},
                experts=options.get("experts", 1),
                all_rows=method.level == "row",
                seen=options["seen"],
            )
            self.routed[key] = [each.selection for each in routed]
        return self.routed[key]

    def _find_inputs(self, method: EvaluationMethod) -> RoutingInputs:
        """Returns what a method's router reads, of the experts and with the keys that the method names."""
        _, named = candidates.split_options(method.options)
        if not named:
            return self.inputs
        key = storage.fingerprint(named)
        if key not in self._inputs_by_options:
            self._inputs_by_options[key] = replace(
                self.inputs,
                experts=self._find_candidates(method),
                keys=candidates.get_key_settings(named),
                options=named,
                _queries={},
                _arguments={},
            )
        return self._inputs_by_options[key]

    def _find_candidates(self, method: EvaluationMethod) -> list[str]:
        """Returns the experts that a method chooses among."""
        _, named = candidates.split_options(method.options)
        if not named:
            return list(self.experts)
        return candidates.choose_candidates(self.inputs.library, self.experts, named, self.run.source.seed)

    def _merge(self, selection: Selection, method: EvaluationMethod) -> str | Ensemble:
        """Returns the chosen expert, the composite that the chosen ones become, or their ensemble."""
        if method.merge == FINETUNE:
            return self._finetune(self.tasks[selection.task], next(iter(selection.weights)), method)
        if method.merge == COMPONENTS:
            return self._use_components(selection, method)
        if len(selection.weights) == 1 and method.merge in (None, "average", "concatenate", ENSEMBLE):
            return next(iter(selection.weights))
        if method.merge == ENSEMBLE:
            if not self.tasks[selection.task].is_ranked:
                raise UserError(
                    f"Expected tasks with answer choices for the ensemble {method.name!r}, got "
                    f"{selection.task!r}, which is answered in free text. Fix: leave out that task, or merge "
                    "the experts."
                )
            of = method.merge_options.get("of", ENSEMBLE_MEANS[0])
            return Ensemble(tuple(selection.weights), tuple(selection.weights.values()), of)
        merge = method.merge or "average"
        key = storage.fingerprint([merge, method.merge_options, list(selection.weights.items())])
        if key not in self._merges:
            self._merges[key] = derived_experts.merge_composite(
                self.run, self.inputs.library, merge, method.merge_options, selection.weights
            )
        composite = self._merges[key]
        self.composites[composite.id] = composite
        return composite.id

    def _find_own(self, of: str) -> dict[str, TaskScorer]:
        """Returns the expert that was trained on each task."""
        if not self.config.seen:
            raise UserError(
                "Expected --seen beside the method own, which answers tasks by experts that were trained on "
                "them. Fix: give --seen, or SEEN = True in a recipe."
            )
        return dict(find_own_experts(self.inputs.library, self.experts, self.specs, of))

    def _fit(self, task: EvaluationTask, method: EvaluationMethod) -> str:
        """Returns the composite that LoraHub makes for a task."""
        own, _ = candidates.split_options(method.options)
        options = {"shots": DEFAULT_SHOTS, **own}
        experts = self._find_candidates(method)
        if not options.get("seen"):
            experts = self._drop_seen(experts, task.spec)
        shots = self._draw(task, options["shots"])
        composite = derived_experts.few_shot_composite(
            self.run, self.inputs.library, LORAHUB, task.id, options, experts, shots
        )
        return self._keep(composite, shots)

    def _finetune(self, task: EvaluationTask, expert: str, method: EvaluationMethod) -> str:
        """Returns the composite that an expert becomes when it is trained on a few rows of a task."""
        defaults = {name: option.default for name, option in FINETUNE_OPTIONS.items()}
        options = {**defaults, **method.merge_options}
        shots = self._draw(task, options["shots"])
        composite = derived_experts.few_shot_composite(
            self.run, self.inputs.library, FINETUNE, task.id, options, [expert], shots
        )
        return self._keep(composite, shots)

    def _draw(self, task: EvaluationTask, count: int) -> FewShotExamples:
        """Returns labelled rows of a task; those that would be scored count for no method."""
        if task.id not in self._pools:
            self._pools[task.id] = few_shot.load_pool(self.run, task)
        shots = self._pools[task.id].draw(count)
        self.left_out[task.id] = tuple(dict.fromkeys([*self.left_out.get(task.id, ()), *shots.left_out]))
        return shots

    def _keep(self, composite: Composite, shots: FewShotExamples) -> str:
        self.composites[composite.id] = composite
        self.shots[composite.id] = shots
        return composite.id

    def _gate(self, spec: TaskSpec, method: EvaluationMethod) -> str:
        own, _ = candidates.split_options(method.options)
        options = {name: value for name, value in own.items() if name != "seen"}
        exclude = () if own.get("seen") else (spec.dataset,)
        experts = self._find_candidates(method)
        gate = gate_specs.make_gate_spec(self.inputs.library, method.router, options, experts, exclude)
        self.gates[gate.id] = gate
        return gate.id

    def _use_components(self, selection: Selection, method: EvaluationMethod) -> str:
        """Returns the gate by which tokens use components of the experts of a selection."""
        share = method.merge_options.get("share", COMPONENT_OPTIONS["share"].default)
        gate = gate_specs.make_component_spec(self.inputs.library, selection.weights, share)
        self.gates[gate.id] = gate
        return gate.id

    def _drop_seen(self, experts: Sequence[str], spec: TaskSpec) -> list[str]:
        """Returns the experts that were not trained on a task's dataset."""
        library = self.inputs.library
        unseen = [expert for expert in experts if spec.dataset not in library.spec(expert).datasets]
        if not unseen:
            raise UserError(
                f"Expected an expert that was not trained on {spec.dataset!r}, got none. Fix: leave the task "
                "out, or let the method choose among all with seen=true."
            )
        return unseen


def multitask_experts(run: Run) -> list[str]:
    """Returns the experts of a run that were trained on many tasks."""
    ids = Library(run.workspace.composites).ids()
    return [expert for expert in ids if expert.startswith("multitask/")]


@dataclass(frozen=True)
class _CompositeForm(schema.Form):
    id: schema.Text
    method: schema.Text
    options: Mapping[str, Any]
    members: tuple[schema.Text, ...]
    weights: tuple[float, ...] | None = None
    task: schema.Text | None = None


@dataclass(frozen=True)
class _GateForm(schema.Form):
    id: schema.Text
    router: schema.Text
    options: Mapping[str, Any]
    experts: tuple[schema.Text, ...]
    excluded: tuple[schema.Text, ...]


@dataclass(frozen=True)
class _EnsembleForm(schema.Form):
    members: tuple[schema.Text, ...]
    weights: tuple[float, ...]
    of: Literal["probabilities", "log_probabilities"]


@dataclass(frozen=True)
class _ScorerSelectionForm(schema.FileForm):
    methods: Mapping[str, Mapping[schema.Text, schema.Text | tuple[schema.Text, ...] | _EnsembleForm]]
    composites: tuple[_CompositeForm, ...]
    gates: tuple[_GateForm, ...]
    selections: tuple[SelectionForm, ...]
    left_out: Mapping[schema.Text, tuple[str, ...]]
    key: str | None = None
    key_map: KeyMap | None = None


def save_selection(workspace: Workspace, selection: ScorerSelection, key: str | None = None) -> None:
    """Writes what was chosen, with a key of all that the choices depend on."""
    storage.write_json(
        _file(workspace),
        {
            "key": key,
            "methods": {
                method: {
                    task: vars(scorer) if isinstance(scorer, Ensemble) else scorer
                    for task, scorer in own.items()
                }
                for method, own in selection.scorers.items()
            },
            "composites": [_without_plan(composite) for composite in selection.composites.values()],
            "gates": [asdict(gate) for gate in selection.gates.values()],
            "selections": [asdict(each) for each in selection.selections],
            "left_out": selection.left_out,
            "key_map": selection.key_map and asdict(selection.key_map),
        },
    )


def _without_plan(composite: Composite) -> dict[str, Any]:
    return {name: value for name, value in vars(composite).items() if name != "plan"}


def load_key(workspace: Workspace) -> str | None:
    """Returns the key of what was written; None if it has none, or nothing was written."""
    return _read_scorer_selection(workspace).key if _file(workspace).exists() else None


def load_selection(workspace: Workspace) -> ScorerSelection:
    """Returns what was written; plans of merges are not."""
    told = _read_scorer_selection(workspace)
    composites = [Composite(**vars(each)) for each in told.composites]
    gates = [GateSpec(**vars(each)) for each in told.gates]

    def scorer_of(value: Any) -> TaskScorer:
        return Ensemble(**vars(value)) if isinstance(value, _EnsembleForm) else value

    return ScorerSelection(
        {
            method: {task: scorer_of(each) for task, each in own.items()}
            for method, own in told.methods.items()
        },
        {composite.id: composite for composite in composites},
        {gate.id: gate for gate in gates},
        [Selection(**vars(each)) for each in told.selections],
        told.left_out,
        key_map=told.key_map,
    )


def _read_scorer_selection(workspace: Workspace) -> _ScorerSelectionForm:
    return schema.read(
        _file(workspace), _ScorerSelectionForm, what="What methods chose", fix="evaluate again"
    )


def find_multitask_expert(run: Run, name: str) -> str:
    """Returns the expert of a run that was trained on many tasks, the first if it is not named.

    Raises:
        UserError: If there is none, or none of that name.
    """
    experts = multitask_experts(run)
    if not experts:
        raise UserError(
            "Expected an expert that was trained on many tasks for method 'multitask', got none. Fix: train "
            "one with `elm train TASK... --multitask NAME`, or leave the method out."
        )
    if not name:
        return experts[0]
    return names.resolve(f"multitask/{name}", experts, kind="multitask expert", where="the run's composites")


def _file(workspace: Workspace) -> epath.Path:
    return workspace.root / "choices.json"
