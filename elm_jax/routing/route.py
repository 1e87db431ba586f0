"""`elm route`: which experts of the library a task should use, and why."""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts import keys as formats
from elm_jax.experts.library import Library
from elm_jax.records import Params, Selection, TaskSpec
from elm_jax.routing import faithful, gates, key_index, table
from elm_jax.routing.evidence import Index, Queries
from elm_jax.routing.explain import explain
from elm_jax.routing.gate import Gate
from elm_jax.routing.index import embed_texts
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics


@dataclass
class Desk:
    """What routers look at, each read or embedded once for all of them."""

    run: Run
    experts: Sequence[str] | None = None  # of the library, all without it
    size: int = formats.QUERIES_PER_TASK
    _asked: dict[tuple[str, str | None, int | None], Queries] = field(default_factory=dict)
    _stacked: dict[tuple[str, ...], Params] = field(default_factory=dict)

    @cached_property
    def library(self) -> Library:
        """The run's library."""
        return Library.open(self.run.workspace.library)

    @cached_property
    def keyed(self) -> Index:
        """The experts with their keys, but those that have none and can get none."""
        wanted = self.experts or self.library.ids()
        found = [
            one
            for one in wanted
            if self.library.has_keys(one)
            or expert_statistics.may_have_keys(self.library.spec(one), self.run.source)
        ]
        if found:
            expert_statistics.say_passed_over(self.run, [one for one in wanted if one not in found])
        return key_index.build_index(self.library, found or wanted)

    @cached_property
    def bare(self) -> Index:
        """The experts without their keys."""
        return gates.bare_index(self.library, self.experts or self.library.ids())

    @cached_property
    def named(self) -> Index:
        """The experts and the run's composites, without their keys: whatever can be named."""
        composites = Library.open(self.run.workspace.composites, create=True)
        made = gates.bare_index(composites, [one for one in composites.ids() if one not in self.library])
        return replace(
            self.bare,
            experts=(*self.bare.experts, *made.experts),
            datasets=(*self.bare.datasets, *made.datasets),
        )

    def params(self, index: Index) -> Params:
        """Returns the parameters of an index's experts, stacked."""
        if index.experts not in self._stacked:
            self._stacked[index.experts] = self.library.load(index.experts, base=self.run.base.fingerprint)
        return self._stacked[index.experts]

    def index(self, router: table.Router) -> Index:
        """Returns the index that a router compares with."""
        if "expert" in router.reads:
            return self.named
        return self.keyed if _reads_keys(router) else self.bare

    def queries(
        self, spec: TaskSpec, router: table.Router, text_format: str | None = None, *, every: bool = False
    ) -> Queries:
        """Returns a few queries of a task, or one for every row; none where the router reads none."""
        if not _reads_keys(router):
            return Queries(spec.id, ())
        size = None if every else self.size
        key = (spec.id, text_format, size)
        if key not in self._asked:
            self._asked[key] = ask(self.run, spec, self.keyed, size, text_format=text_format)
        return self._asked[key]


def _reads_keys(router: table.Router) -> bool:
    return bool({"vectors", "texts"} & set(router.reads))


def route(
    run: Run | storage.PathLike,
    tasks: task_selection.Tasks,
    *,
    router: str = "roe",
    experts: int = 1,
    queries: int = formats.QUERIES_PER_TASK,
    **options: Any,
) -> list[Selection]:
    """Chooses experts for every task; returns a selection each, whose `weights` are expert -> weight.

    `run` is a run that is open, or its directory, and keeps the selections under the router's `label`.
    `tasks` are specs or names, of tasks, datasets or groups. `router` is one of `elm_jax.routing.table`,
    `experts` how many it takes if it can take several, `queries` how many inputs of a task it looks at (Q of
    Jang et al. 2023, arXiv 2302.03202); further `options` are the router's own. Labels are not looked at, and
    experts trained on the task's own dataset are passed over: they would not be zero-shot there.

    Raises a UserError, before anything is embedded, for a router or an option that does not exist, and for a
    router that needs what no option gave.
    """
    run = opening.opened(run)
    wanted = task_selection.choose(tasks, run.source, evaluation=True)
    return [made for made, _ in explained(run, wanted, router, experts, queries, shown=False, **options)]


def explained(
    run: Run,
    wanted: Sequence[TaskSpec],
    router: str = "roe",
    experts: int = 1,
    queries: int = formats.QUERIES_PER_TASK,
    *,
    shown: bool = True,
    desk: Desk | None = None,
    every: bool = False,
    seen: bool = False,
    **options: Any,
) -> list[tuple[Selection, list[str]]]:
    """As `route`, with the lines that tell why: votes, the margin, the nearest keys; none without `shown`.

    `desk` has what several routers look at. With `every` all rows of a task are its queries, in their order,
    and with `seen` experts may be chosen that were trained on the task's own dataset.
    """
    chosen = table.find(router)
    name = label(router, experts, options)
    known = inspect.signature(chosen.route).parameters
    if "experts" in known:
        options["experts"] = experts
    _require(router, chosen, known, options)
    desk = desk or Desk(run, size=queries)
    index = desk.index(chosen)
    if "params" in chosen.reads:
        options["params"] = desk.params(index)
    bare = "raw_queries" in faithful.chosen(options.get("faithful", False))
    made = []
    for spec in wanted:
        exclude = () if seen else {spec.dataset}
        asked = desk.queries(spec, chosen, faithful.RAW if bare else None, every=every)
        found = chosen.route(asked, index, exclude=exclude, **options)
        if isinstance(found, Gate):
            raise AssertionError(f"{router} is listed as a router of tasks, but gave a gate")
        found = replace(found, router=name, embedder=asked.embedder)
        made.append((found, explain(found, asked, index, exclude=exclude) if shown else []))
    keep(run.workspace, name, [selection for selection, _ in made])
    return made


def _require(name: str, router: table.Router, known: Collection[str], options: Mapping[str, Any]) -> None:
    """Raises what is wrong with a router's options, or says that it is no router of tasks."""
    if router.level == "token":
        raise UserError(
            f"A router that chooses experts for a task is wanted, but {name!r} chooses them for every token, "
            "inside the network. Name one of "
            f"{', '.join(other for other, one in table.ROUTERS.items() if one.level != 'token')}."
        )
    free = [option for option in known if option not in ("queries", "index", "exclude", "params")]
    for option in options:
        names.resolve(option, free, kind="option", where=f"router {name!r}")
    for needed in sorted(set(router.reads) & {"expert", "accuracies", "loss"} - set(options)):
        raise UserError(
            f"Router {name!r} needs the option {needed!r}, but it did not come. Give it as "
            f"--option {needed}=VALUE, or choose another router."
            if needed == "expert"
            else f"Router {name!r} needs {needed!r}, which come from labels of the task, but none came. Give "
            "them to `elm_jax.route`, or choose another router."
        )


def label(router: str, experts: int, options: Mapping[str, Any] | None = None) -> str:
    """Names a router with how many experts it takes and its other options: `roe_top3`, `roe_top1,k=5`."""
    short = (str, int, float, list, tuple)  # what measurements say would make no name
    plain = {name: value for name, value in (options or {}).items() if isinstance(value, short)}
    told = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in plain.items()
    ]
    return ",".join([f"{router}_top{experts}", *sorted(told)])


def ask(
    run: Run, spec: TaskSpec, keys: Index, size: int | None, *, text_format: str | None = None
) -> Queries:
    """Returns a task's queries: a few of its inputs, unlabelled, embedded as the keys were.

    Without `size` they are all, in their order. They are written as the keys were too, unless `text_format`
    is another, as the original's was.
    """
    text_format = text_format or keys.text_format
    examples = task_rows.examples(spec, run.source)
    if size is not None:
        examples = formats.sample(examples, size, run.source.seed)
    texts = formats.texts(examples, text_format, task_selection.choices_expression(spec, run.source))
    embedded = embed_texts(run, texts, text_format)
    return Queries(
        task=spec.id,
        row_ids=tuple(example.row_id for example in examples),
        texts=embedded.texts,
        vectors=embedded.vectors,
        embedder=embedded.embedder,
        text_format=embedded.text_format,
    )


def keep(workspace: Workspace, name: str, selections: Sequence[Selection]) -> None:
    """Writes selections beside those of other tasks by the same router."""
    there = {selection.task: selection for selection in kept(workspace, name)}
    there |= {selection.task: selection for selection in selections}
    rows = [asdict(selection) for selection in there.values()]
    storage.write_json(_file(workspace, name), {"selections": rows})


def kept(workspace: Workspace, name: str) -> list[Selection]:
    """Returns the selections that a router made before; none if it made none."""
    file = _file(workspace, name)
    if not file.exists():
        return []
    return [
        Selection(
            task=row["task"],
            router=row["router"],
            weights=row["weights"],
            votes=row["votes"],
            queries=tuple(row["queries"]),
            nearest=tuple((expert, similarity) for expert, similarity in row["nearest"]),
            embedder=row.get("embedder", ""),
        )
        for row in storage.read_json(file, what="A router's selections")["selections"]
    ]


def _file(workspace: Workspace, name: str) -> epath.Path:
    return workspace.selections / f"{names.directory_name(name)}.json"
