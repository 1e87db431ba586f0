"""`elm experts`: the experts of a library."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.help_texts import Command, make_group
from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir
from elm_jax.cli.output import print_json
from elm_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from elm_jax.experts.listing import ExpertSummary

app = make_group("The experts of a library.")


@app.command("list", cls=Command)
def experts_list(
    run: RunDir = DEFAULT_OUT,
    composites: Annotated[
        bool, typer.Option("--composites", help="List merged and multitask experts instead.")
    ] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Print their accuracies in this run too.")] = False,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="With --scores: those scored on a task or dataset alone, the most accurate first."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List a library's experts with sizes, owners and accuracies.

    Example: elm experts list --run elm_out --scores

    Example: elm experts list --scores --task mini_sentiment_hotel
    """
    from elm_jax.cli.output import print_table
    from elm_jax.experts import listing
    from elm_jax.experts.library import Library
    from elm_jax.session.run_directory import Workspace

    workspace = Workspace.open(run)
    ids = Library(workspace.composites).ids() if composites else None
    if task is not None and not scores:
        raise UserError("Expected --scores beside --task, got --task alone. Fix: add --scores.")
    experts = listing.summarize_experts(workspace, ids, scored=scores)
    if task is not None:
        experts = listing.rank_experts(experts, task)
    if as_json:
        told = [asdict(one) if isinstance(one, listing.BadExpert) else _to_json(one) for one in experts]
        print_json(told)
        return
    print_table(listing.summary_table(experts, scored=scores), may_shrink=True)


@app.command("missing", cls=Command)
def experts_missing(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tasks, datasets or groups; default: train.")
    ] = None,
    run: RunDir = DEFAULT_OUT,
    as_: Annotated[
        str, typer.Option("--as", help="One expert for each task (experts) or for each dataset (dataset).")
    ] = "experts",
    as_json: AsJson = False,
) -> None:
    """Print the experts that a library lacks; exit code 1 if any.

    Example: elm experts missing dream --run elm_out
    """
    from elm_jax.cli.inputs import load_task_files, task_files
    from elm_jax.data import task_selection
    from elm_jax.experts.library import Library
    from elm_jax.session.run_directory import Workspace
    from elm_jax.training import expert_configs
    from elm_jax.training.config import ExpertConfig, TrainConfig

    load_task_files(task_files((), names))
    specs = task_selection.select_tasks(names or ["train"])
    wanted = expert_configs.resolve_experts(specs, TrainConfig(expert=ExpertConfig(train_as=as_)))
    library = Library(Workspace.at(run).library)
    trained = library.ids() if library.root.is_dir() else ()
    lacking = [expert.id for expert in wanted if expert.id not in trained]
    if as_json:
        print_json(lacking)
    for expert in () if as_json else lacking:
        print(expert)
    typer.echo(f"{len(wanted) - len(lacking)} of {len(wanted)} experts are trained.", err=True)
    if lacking:
        raise typer.Exit(1)


@app.command("show", cls=Command)
def experts_show(
    name: Annotated[str, typer.Argument(help="An expert's id.")],
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Show one expert: size, owner, base, recipe and accuracies.

    Example: elm experts show dream/baseline --run elm_out
    """
    from elm_jax.experts import listing
    from elm_jax.session.run_directory import Workspace

    (expert,) = listing.summarize_experts(Workspace.open(run), [name], scored=True)
    if isinstance(expert, listing.BadExpert):
        raise UserError(expert.problem)
    if as_json:
        print_json(_to_json(expert))
        return
    for field, value in listing.summary_fields(expert):
        print(f"{field:<24} {value}")


@app.command("verify", cls=Command)
def experts_verify(run: RunDir = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Check checksums, files, vocabulary and rows of experts.

    The exit code is 1 if anything is wrong.

    Example: elm experts verify --run elm_out
    """
    from elm_jax.experts import compatibility, training_rows
    from elm_jax.experts.library import Library
    from elm_jax.records import VOCABULARY
    from elm_jax.session import opening, settings
    from elm_jax.session.run_directory import Workspace
    from elm_jax.weights import load

    workspace = Workspace.open(run)
    library = Library.open(workspace.library)
    fingerprint = load.load_base(settings.base_directory(workspace)).fingerprint
    findings = library.verify(base=fingerprint)
    bad = {finding.expert for finding in findings}
    specs = [library.spec(expert) for expert in library.ids() if expert not in bad]
    problems = [(finding.expert, finding.problem) for finding in findings]
    if any(VOCABULARY in spec.recipe for spec in specs):
        reading = opening.load_data_settings(run)
        others = compatibility.find_other_vocabularies(specs, reading.tokenizer.fingerprint)
        rows = {spec.id: training_rows.describe_changed_rows(spec, reading.source) for spec in specs}
        problems += [(expert, "was trained with another vocabulary than the run's") for expert in others]
        problems += [
            (expert, f"{changes} differ from when it was trained")
            for expert, changes in rows.items()
            if changes
        ]
    if as_json:
        print_json([{"expert": expert, "problem": problem} for expert, problem in problems])
    else:
        for expert, problem in problems:
            print(f"{expert}: {problem}")
    if problems:
        raise typer.Exit(1)
    if not as_json:
        print(f"{len(library.ids())} experts are sound.")


@app.command("remove", cls=Command)
def experts_remove(
    names: Annotated[list[str], typer.Argument(help="Experts by id, or patterns such as 'dream/*'.")],
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Remove experts from the library.

    An expert that the library does not have is removed from the composites.

    Example: elm experts remove dream/baseline 'cosmos_qa/*' --run elm_out
    """
    from elm_jax.experts import lookup
    from elm_jax.session.run_directory import Workspace

    workspace = Workspace.open(run)
    lookup.remove_leftovers(workspace)
    # All are found before one is removed, so that a mistake removes none.
    removed = []
    for name, library in lookup.match_experts(workspace, names).items():
        library.remove(name)
        removed.append({"id": name, "library": str(library.root)})
        if as_json:
            continue
        others = [each for each in lookup.libraries(workspace) if name in each]
        rest = f"; another of that id is still in {others[0].root}" if others else ""
        print(f"{name} was removed from {library.root}{rest}.")
    if as_json:
        print_json(removed)


@dataclass(frozen=True)
class KeyFlags:
    """What an expert's keys are made of, by which routers find it."""

    PANEL: ClassVar[str] = "Keys"
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            help="File with the task of --id, whose inputs become its keys; may be repeated.",
        ),
    ] = None
    keys: Annotated[
        str | None, typer.Option(help="Text file with an input a line, which become its keys.")
    ] = None


@app.command("add", cls=Command)
@flattened
def experts_add(
    src: Annotated[str, typer.Argument(help="A T5X checkpoint, an exported expert, or a PEFT adapter.")],
    id: Annotated[
        str | None, typer.Option("--id", help="DATASET/PROMPT; default: the exported expert's own.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="bottleneck, lora, dora, vera, ia3, prompt or full; default: by the parameters' names."
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset", help="A dataset it was trained on; may be repeated; default: that of --id."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an expert of the same id.")] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of PEFT's configuration that does not change the computation; may be repeated."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base it was trained on, for a new run; default: the one that the run has."),
    ] = None,
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
    *,
    made: KeyFlags,
) -> None:
    """Add an expert that was made elsewhere to the library.

    Routers find it by its keys, which --tasks or --keys makes.

    Example: elm experts add my_lora --id reviews/good --base hf:google/flan-t5-base --run my_run

    Example: elm experts add my_lora --id reviews/good --tasks reviews.yaml --run my_run
    """
    from elm_jax.experts import import_export

    if made.tasks and made.keys is not None:
        raise UserError("Expected --tasks or --keys, got both. Fix: leave one out.")

    if base is not None:
        from elm_jax.session import opening

        opening.set_base(run, base)

    embed = _open_for_keys(run, id or import_export.find_id(src), made) if made != KeyFlags() else None
    spec = import_export.import_expert(
        src, id=id, kind=kind, datasets=dataset or (), run=run, replace=replace, ignore=ignore or ()
    )
    if embed is not None:
        embed(spec.id)
    if as_json:
        print_json({name: getattr(spec, name) for name in ("id", "kind", "base", "steps", "datasets")})
        return
    print(f"{spec.id}: {spec.kind}, {spec.steps} steps, trained on {', '.join(spec.datasets)}.")


@app.command("export", cls=Command)
def experts_export(
    name: Annotated[str, typer.Argument(help="An expert's id.")],
    dst: Annotated[str, typer.Argument(help="New directory.")],
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Copy an expert out of the library.

    `elm experts add` takes it elsewhere.

    Example: elm experts export dream/baseline exported --run elm_out
    """
    from elm_jax.experts import import_export

    exported = str(import_export.export_expert(name, dst, run=run))
    if as_json:
        print_json({"id": name, "directory": exported})
    else:
        print(exported)


@app.command("push", cls=Command)
def experts_push(
    repository: Annotated[
        str, typer.Argument(help="owner/name or owner/name@branch; created if it is absent.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="Experts by id; default: the whole library.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="The model card's licence, such as apache-2.0; default: unchanged.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an expert of the same id.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Upload experts, with a model card, to the Hugging Face hub.

    All go in one commit.

    Example: elm experts push me/my-experts --run my_run --licence apache-2.0
    """
    from elm_jax.experts import push_pull

    done = push_pull.push(repository, names or (), run=run, licence=licence, replace=replace, private=private)
    if as_json:
        print_json(asdict(done))
        return
    print(
        f"{len(done.experts)} experts pushed, of which {len(done.unchanged)} were there already; "
        f"hf:{done.repository}@{done.commit} has {len(done.every)}."
    )


@app.command("pull", cls=Command)
def experts_pull(
    repository: Annotated[str, typer.Argument(help="owner/name or owner/name@revision.")],
    only: Annotated[
        str | None, typer.Option(help="An id, or a pattern such as 'dream/*'; default: all.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an expert of the same id.")] = False,
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Download experts of the Hugging Face hub into the library.

    Example: elm experts pull me/my-experts --only 'dream/*' --run my_run
    """
    from elm_jax.experts import push_pull

    done = push_pull.pull(repository, only=only, run=run, replace=replace)
    if as_json:
        print_json(asdict(done))
        return
    print(
        f"{len(done.experts)} experts of hf:{done.repository}@{done.commit} are in the library, "
        f"of which {len(done.unchanged)} were there already."
    )


def _open_for_keys(run: str, id: str | None, made: KeyFlags) -> "Callable[[str], object]":
    """Returns what embeds an expert's keys once it is added; raises now what would be wrong then."""
    from elm_jax.data import task_selection
    from elm_jax.routing import index as indexing
    from elm_jax.session import opening

    texts = None if made.keys is None else indexing.read_text_lines(made.keys)
    opened = opening.open_run(run, task_files=made.tasks or ())
    if texts is not None:
        return lambda expert: indexing.index_texts(opened, expert, texts)
    if id is not None:  # else that it lacks an id is said when it is added
        try:
            task_selection.resolve_task(id, opened.source)
        except UserError as error:
            raise UserError(
                f"{error} Fix: give --id as DATASET/PROMPT of a task in --tasks, or inputs with --keys FILE."
            ) from None
    return lambda expert: indexing.index(opened, experts=[expert], rebuild=True)


def _to_json(one: "ExpertSummary") -> dict[str, Any]:
    """Returns what `--json` prints of an expert."""
    about, size, spec = one.description, one.size, one.description.spec
    return {
        "id": spec.id,
        "kind": spec.kind,
        "owner": about.owner,
        "base": spec.base,
        "steps": spec.steps,
        "datasets": list(spec.datasets),
        "parameters": size.parameters,
        "bytes": size.bytes,
        "keys": one.has_keys,
        "checksum": about.checksum,
        "recipe": dict(spec.recipe),
        "accuracies": {
            task: {"accuracy": share, "rows": rows} for task, (share, rows) in one.accuracies.items()
        },
        "owns": list(spec.paths),
    }
