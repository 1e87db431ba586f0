"""Methods: ways to use a library on a task, each a router and a merge with their options, as one string.

    [NAME=]ROUTER[:OPTION=VALUE,...][+MERGE[:OPTION=VALUE,...]]

    roe                              the expert with most votes
    roe:experts=3+ties:density=0.2   the three with most votes, merged
    mine=fixed:expert="a/b, c"       one expert by name, called `mine` in tables

ROUTER is one of `elm_jax.routing.table`, or `base` (no expert), `multitask[:name=N]` (an expert that was
trained on many tasks), `best_single` (the expert that is best over all tasks, in hindsight). MERGE is one of
`elm_jax.merging.table`, and makes one expert of several that a router chose for a task; without it this is
"average", or what the router was registered with. In its place `ensemble[:of=log_probabilities]` lets the
experts score a task's choices together (`evaluation.ensembles`), with the weights that the router gives them,
as in `roe:experts=3,weighting=votes`. Or `components[:share=0.4]` lets every token use parts of them
(`routing.components`). Or `finetune[:shots=32,steps=100,rate=0.001]` trains the expert that was chosen on a
few labelled rows of the task (`evaluation.few_shot_training`).
Routers take the options of `evaluation.candidates` too, as `roe:library_size=50,keys=20`, and `seen=true`,
which lets them choose experts that were trained on the task's own dataset. A value is JSON, or else plain
text; text that holds one of `,+"` stands in double quotes.
"""

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.evaluation import candidates
from elm_jax.evaluation.ensembles import ENSEMBLE, ENSEMBLE_OPTIONS
from elm_jax.evaluation.few_shot_training import FINETUNE, FINETUNE_OPTIONS
from elm_jax.experts.compatibility import Shapes, group_by_kind_and_shapes
from elm_jax.merging import table as merging
from elm_jax.merging.method import require_option_value
from elm_jax.merging.plan import require_mergeable
from elm_jax.records import ExpertSpec
from elm_jax.reporting.records import MethodDescription
from elm_jax.routing import table as routing
from elm_jax.routing.components import COMPONENT_OPTIONS, COMPONENTS

HINDSIGHT_ROUTERS = ("best_single", "oracle")
SPECIAL_ROUTERS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "multitask": {"name": ""},
    "own": {"of": "prompt"},
    "best_single": {},
}
"""Ways that are no router's, with their options."""
DEFAULT_SHOTS = 5
_ROUTERS_WITHOUT_MERGE = ("fixed", "oracle", "lorahub")  # one expert, or weights that the router merges by
_NON_MERGE_OPTIONS = {ENSEMBLE: ENSEMBLE_OPTIONS, FINETUNE: FINETUNE_OPTIONS, COMPONENTS: COMPONENT_OPTIONS}
_FORM = "ROUTER[:OPTION=VALUE,...][+MERGE[:OPTION=VALUE,...]]"

DescribedExperts = Sequence[tuple[ExpertSpec, Shapes]]


@dataclass(frozen=True)
class EvaluationMethod:
    """One way to use a library, as it was asked for."""

    name: str  # in tables
    router: str
    options: Mapping[str, Any] = field(default_factory=dict)
    merge: str | None = None
    merge_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """Whether it chooses for a "task", for every "row", or for every "token"."""
        return "task" if self.router in SPECIAL_ROUTERS else routing.find_router(self.router).level

    @property
    def labels(self) -> str:
        """Which labels of the task it has seen: "none", a "few", or all, in "hindsight"."""
        if self.router in HINDSIGHT_ROUTERS:
            return "hindsight"
        router = None if self.router in SPECIAL_ROUTERS else routing.find_router(self.router)
        return "few" if self.merge == FINETUNE or (router is not None and router.few_shot) else "none"


def default_methods(
    merged: int = 3, *, hindsight: bool = False, mixed: bool = False
) -> list[EvaluationMethod]:
    """Returns the methods that are compared where none was named.

    `merged` is how many of the retrieved experts are averaged. With `hindsight` the best single expert and
    the oracle are among them, which need every expert's scores. A library of `mixed` kinds cannot be merged.
    """
    merges = ["uniform_merge=uniform+average"], [f"roe_top{merged}_merge=roe:experts={merged}+average"]
    told = ["base", "multitask", *merges[0][mixed:], "roe_top1=roe", *merges[1][mixed:]]
    return parse_methods([*told, *(HINDSIGHT_ROUTERS if hindsight else ())])


def parse_methods(texts: Iterable[str]) -> list[EvaluationMethod]:
    """Returns methods by their strings; raises a UserError if two of them have one name."""
    methods = [parse_method(text) for text in texts]
    check_unique_names(methods)
    return methods


def check_unique_names(methods: Sequence[EvaluationMethod]) -> None:
    """Raises a UserError if two methods have one name."""
    for number, method in enumerate(methods):
        if any(method.name == other.name for other in methods[:number]):
            raise UserError(
                f"Expected methods of different names, got two that are called {method.name!r}. Fix: put "
                "NAME= before one of them."
            )


def parse_method(text: str) -> EvaluationMethod:
    """Returns the method that a string stands for.

    Raises a UserError, with near names, for a router, merge or option that does not exist, a value of another
    type, and a merge of what is one expert already.

    >>> parse_method("mine=roe:experts=3+ties:density=0.2").merge_options
    {'density': 0.2}
    """
    named = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", text, re.DOTALL)
    name, rest = (named[1], named[2]) if named else (text, text)
    router, *merge = _split_unquoted(rest, "+")
    if len(merge) > 1:
        raise UserError(
            f"Expected a method as {_FORM}, got {len(merge)} merges in {text!r}. Fix: put a value that holds "
            "+ in double quotes."
        )
    chosen, options = _parse_options(router, text)
    names.resolve(chosen, [*routing.ROUTERS, *SPECIAL_ROUTERS], kind="router", where="the table of routers")
    made = EvaluationMethod(name, chosen, _router_options(chosen, options))
    if not merge:
        own = routing.find_router(chosen).merge if _takes_several(made) else None
        return EvaluationMethod(name, chosen, made.options, own)
    way, given = _parse_options(merge[0], text)
    alone = chosen in _ROUTERS_WITHOUT_MERGE and (chosen, way) != ("fixed", FINETUNE)
    if chosen in SPECIAL_ROUTERS or alone or made.level != "task":
        raise UserError(
            f"Expected no merge after {chosen!r}, which chooses one expert or merges itself, got {text!r}. "
            "Fix: leave out what follows +."
        )
    if way == FINETUNE and _takes_several(made):
        raise UserError(
            f"Expected a router that chooses one expert before +{FINETUNE}, which trains it further, got "
            f"{text!r}. Fix: let it choose one, as with experts=1, or merge the experts."
        )
    known = _NON_MERGE_OPTIONS[way] if way in _NON_MERGE_OPTIONS else merging.find_merge(way).options
    where = f"the options of {way!r} ({', '.join(known) or 'it has none'})"
    for option, value in given.items():
        require_option_value(option, known[names.resolve(option, known, kind="option", where=where)], value)
    return EvaluationMethod(name, chosen, made.options, way, given)


def require_compatible(wanted: Sequence[EvaluationMethod], library: DescribedExperts) -> None:
    """Raises what a library's kinds of experts do not allow; their parameters are not read."""
    groups = group_by_kind_and_shapes(library)
    for method in wanted:
        reads = () if method.router in SPECIAL_ROUTERS else routing.find_router(method.router).reads
        of_lora = method.level == "token" or method.merge == COMPONENTS
        of_lora |= bool({"params", "parameter_points"} & set(reads))
        if of_lora:
            other = next((spec for spec, _ in library if spec.kind != "lora"), None)
            if other is not None:
                raise UserError(
                    f"Expected LoRA experts for router {method.router!r}, got {other.id!r} of kind "
                    f"{other.kind!r}. Fix: train experts with `--kind lora`, or choose another router."
                )
        alike = method.router in ("uniform", "lorahub") and method.merge not in _NON_MERGE_OPTIONS
        whole = of_lora or alike
        if whole and len(groups) > 1:
            first, second = groups[0][0][0].id, groups[1][0][0].id
            raise UserError(
                f"Expected experts of one kind and shape for method {method.name!r}, which merges them all, "
                f"got {first!r} and {second!r}. Fix: leave out that method, or the experts of another kind."
            )
        if method.merge is not None and method.merge not in _NON_MERGE_OPTIONS:
            _require_merge(method, groups)


def reads_gates(texts: Iterable[str]) -> bool:
    """Says whether one of the methods with these strings wants experts with gates."""
    routers = {method.router for method in parse_methods(texts)} - set(SPECIAL_ROUTERS)
    return any("gates" in routing.find_router(router).reads for router in routers)


def is_retrieval(method: EvaluationMethod) -> bool:
    """Says whether a method finds experts for a task by what they are, without any labels."""
    return method.labels == "none" and method.router not in (*SPECIAL_ROUTERS, "uniform", "fixed")


def describe_method(method: EvaluationMethod) -> MethodDescription:
    """Returns what a report says of a method."""
    notes = {
        "row": "every row is answered by an expert of its own",
        "token": "every token is shared out among experts, in every layer",
    }
    note = notes.get(method.level, "")
    if method.router == "lorahub":
        shots = method.options.get("shots", DEFAULT_SHOTS)
        note = f"weights fitted to {shots} labelled rows of the task, which count for no method"
    if method.merge == ENSEMBLE:
        note = "the chosen experts score every choice together"
    if method.merge == COMPONENTS:
        note = "every token uses rank-one components of the chosen experts, in every layer"
    if method.merge == FINETUNE:
        shots = method.merge_options.get("shots", FINETUNE_OPTIONS["shots"].default)
        note = f"the chosen expert is trained on {shots} labelled rows of the task, which count for no method"
    merge = None if method.merge is None else ":".join([method.merge, *_format_options(method.merge_options)])
    router = ":".join([method.router, *_format_options(method.options)])
    return MethodDescription(method.name, router, merge, method.labels, note)


def _format_options(options: Mapping[str, Any]) -> list[str]:
    """Returns options as they are written after a name, none if there are none."""
    each = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()
    ]
    return [",".join(each)] if each else []


def _takes_several(method: EvaluationMethod) -> bool:
    """Says whether a router may choose several experts for a task, which are then merged."""
    if method.level != "task" or method.router in (*SPECIAL_ROUTERS, *_ROUTERS_WITHOUT_MERGE):
        return False
    takes = routing.find_router(method.router).options
    return "experts" not in takes or method.options.get("experts", 1) > 1


def _require_merge(method: EvaluationMethod, groups: Sequence[DescribedExperts]) -> None:
    refused = None
    for group in groups:
        try:
            require_mergeable(str(method.merge), group[0][0], method.merge_options)
        except UserError as error:
            refused = refused or error
        else:
            return
    if refused is not None:
        raise refused


def _router_options(router: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a router's options, which are those of its function beside what an evaluation gives itself."""
    if router in SPECIAL_ROUTERS:
        known = dict(SPECIAL_ROUTERS[router])
    else:
        known = dict(routing.find_router(router).options)
        known |= {"seen": False} if router != "oracle" else {}
        known |= candidates.list_candidate_options(router, routing.find_router(router))
    where = f"the options of {router!r} ({', '.join(known) or 'it has none'})"
    for name, value in given.items():
        default = known[names.resolve(name, known, kind="option", where=where)]
        wanted = str if default is inspect.Parameter.empty else type(default)
        fits = type(value) is wanted or (wanted is float and type(value) is int) or name == "faithful"
        if not fits:
            raise UserError(
                f"Expected option {name!r} of {router!r} of type {wanted.__name__}, got {value!r}."
            )
    lacking = [
        name for name, value in known.items() if value is inspect.Parameter.empty and name not in given
    ]
    if lacking:
        raise UserError(
            f"Expected the option {lacking[0]!r} of router {router!r}, got none. Fix: "
            f"{router}:{lacking[0]}=VALUE."
        )
    return dict(given)


def _parse_options(part: str, text: str) -> tuple[str, dict[str, Any]]:
    """Splits NAME:OPTION=VALUE,… of a method's string."""
    name, colon, rest = part.partition(":")
    options: dict[str, Any] = {}
    for each in _split_unquoted(rest, ",") if colon else ():
        option, equals, value = each.partition("=")
        if not equals or not option.isidentifier() or option in options:
            raise UserError(
                f"Expected options as k=3,weighting=votes after {name!r}, each once, got {each!r} in "
                f"{text!r}. Fix: put a value that holds a comma in double quotes."
            )
        try:
            options[option] = json.loads(value)
        except ValueError:
            options[option] = value
    return name, options


def _split_unquoted(text: str, mark: str) -> list[str]:
    """Splits a text at a mark, but not within double quotes or brackets."""
    parts, depth, quoted = [""], 0, False
    for before, letter in zip(" " + text, text, strict=False):
        quoted ^= letter == '"' and before != "\\"
        depth += 0 if quoted else (letter in "[{") - (letter in "]}")
        if letter == mark and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
