"""The command line, `elm`: one verb a function of `elm_jax.runs`.

Nothing heavy is imported before a verb needs it, so that `elm --help` answers at once. A `UserError` is one
sentence and exit code 2; results go to standard output, progress and errors to standard error.
"""

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from elm_jax.errors import UserError

if TYPE_CHECKING:
    from elm_jax.reporting.tables import Table
    from elm_jax.runs.data import Lengths, Source
    from elm_jax.runs.evaluate import Outcome
    from elm_jax.runs.workspace import Run
    from elm_jax.tasks.vocabulary import Vocabulary


class OneSentence(TyperGroup):
    """Ends a user's mistake with one sentence and exit code 2, Ctrl-C with exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(f"elm: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("elm: stopped. Run the same command again to go on where it was.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=OneSentence,
    help="Train experts on a frozen T5, retrieve, merge and score them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tasks_app = typer.Typer(help="What is defined, and what the model will see.", no_args_is_help=True)
prompts_app = typer.Typer(help="PromptSource's templates.", no_args_is_help=True)
experts_app = typer.Typer(help="The experts of a library.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(prompts_app, name="prompts")
app.add_typer(experts_app, name="experts")

Out = Annotated[str, typer.Option("--out", help="Directory to write; a run that was stopped goes on there.")]
RunDir = Annotated[str, typer.Option("--run", help="Directory of a run, as `elm quickstart` makes one.")]
DataDir = Annotated[str | None, typer.Option(help="Directory of datasets.")]
TemplatesDir = Annotated[
    str | None,
    typer.Option(help="Directory of templates, laid out as PromptSource's; the fetched ones without it."),
]
Names = Annotated[list[str] | None, typer.Argument(help="Tasks by id, dataset or group.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
GinFiles = Annotated[list[str] | None, typer.Option("--gin_file", help="A recipe; later ones win.")]
GinBindings = Annotated[
    list[str] | None, typer.Option("--gin_bindings", help="A binding; --gin.NAME=VALUE is short for it.")
]
Limit = Annotated[int | None, typer.Option(help="Take at most so many rows of each task.")]
Cache = Annotated[str | None, typer.Option("--cache", help="Directory of prepared rows; the run's own.")]
VocabularyFile = Annotated[
    str | None, typer.Option("--vocabulary", help="SentencePiece model; that of the run's base without it.")
]
TaskFiles = Annotated[
    list[str] | None, typer.Option("--tasks", help="A file that defines tasks of your own, YAML or Python.")
]
KnownRun = Annotated[str | None, typer.Option("--run", help="A run whose base and data are used.")]
Split = Annotated[str | None, typer.Option(help="Another split than each task's own.")]
ExtraIds = Annotated[int, typer.Option(help="Sentinels on top of --vocabulary.")]
MaxPrompt = Annotated[int | None, typer.Option(help="Tokens of an input, the end included.")]
MaxAnswer = Annotated[int | None, typer.Option(help="Tokens of an answer, the end included.")]
DEFAULT_OUT = "elm_out"


@app.command()
def quickstart(out: Out = DEFAULT_OUT, seed: Seed = 0) -> None:
    """The whole path on the embedded suite, on a CPU, ending in a report."""
    from elm_jax.runs import quickstart as runs

    show_outcome(runs.quickstart(out=out, seed=seed))


@app.command()
def run(gin_file: GinFiles = None, gin_bindings: GinBindings = None) -> None:
    """A whole recipe: train, index, route, merge, evaluate, report."""
    from elm_jax.runs import pipeline, recipes

    if not gin_file:
        raise UserError(
            "A recipe is wanted: elm run --gin_file=gin/recipes/NAME.gin [--gin.MACRO=VALUE ...]."
        )
    show_outcome(recipes.bound(pipeline.run, gin_file, gin_bindings or [])())


@app.command()
def prepare(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    cache: Cache = None,
    vocabulary: VocabularyFile = None,
    extra_ids: ExtraIds = 100,
    split: Split = None,
    max_prompt: MaxPrompt = None,
    max_answer: MaxAnswer = None,
    processes: Annotated[int | None, typer.Option(help="How many at once; one a core without it.")] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    limit: Limit = None,
    module: Annotated[str | None, typer.Option(help="Python module that registers NAMES with SeqIO.")] = None,
    as_json: AsJson = False,
) -> None:
    """Render and tokenise tasks once, so that no run does it again; what is current is left alone."""
    from dataclasses import asdict, replace

    from elm_jax.runs import base, data
    from elm_jax.runs import prepare as runs

    wanted = names or []
    reading = base.reading(run, vocabulary_file=vocabulary, extra_ids=extra_ids)
    given = {"data_dir": data_dir, "templates_dir": templates_dir, "limit": limit, "prepared": cache}
    given["tasks"] = [*reading.source.tasks, *task_files(own_files(names, tasks))]
    source = given_to(reading.source, **given)
    how = {"tasks": wanted, "pieces": reading.pieces}
    how["lengths"] = given_to(reading.lengths, prompt=max_prompt, answer=max_answer)
    if module:
        source = replace(source, splits=dict.fromkeys(wanted, split or "train"))
        made = runs.prepare_seqio(module, source=source, **how)
    else:
        if split:
            source = replace(source, splits={spec.dataset: split for spec in data.choose(wanted, source)})
        made = runs.prepare(source=source, processes=processes or os.cpu_count() or 1, **how)
    if as_json:
        print(json.dumps([asdict(each) for each in made], ensure_ascii=False))
        return
    for each in made:
        print(f"{each.rows:>9,} rows  {each.task} ({each.split}): {runs.remark(each)}")


@app.command()
def train(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    steps: Annotated[int, typer.Option(help="Steps of each expert.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Rows of each expert in a step.")] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate, falling in a line to 0.")] = 1e-4,
    width: Annotated[int | None, typer.Option(help="Bottleneck width; emb_dim // 32 without it.")] = None,
    multitask: Annotated[str | None, typer.Option(help="Train one expert of this name on all tasks.")] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
    limit: Limit = None,
    seed: Seed = 0,
    gin_file: GinFiles = None,
    gin_bindings: GinBindings = None,
) -> None:
    """One expert a task, many in one program; or the multitask baseline."""
    from elm_jax.runs import data, recipes
    from elm_jax.runs import train as runs

    if gin_file:
        trained = recipes.bound(runs.train, gin_file, gin_bindings or [])()
    else:
        opened = open_run(run, data_dir, templates_dir, limit, cache, own_files(names, tasks))
        budget = runs.Budget(steps=steps, batch_size=batch_size, rate=rate, width=width)
        specs = data.choose(names or [], opened.source)
        if multitask:
            trained = [runs.train_multitask(opened, specs, multitask, budget, seed=seed)]
        else:
            trained = runs.train_experts(opened, specs, budget, seed=seed)
    for expert in trained:
        print(expert)


@app.command()
def index(
    run: RunDir = DEFAULT_OUT,
    rebuild: Annotated[bool, typer.Option(help="Embed all keys anew.")] = False,
    size: Annotated[int, typer.Option(help="Training inputs of each expert to embed.")] = 100,
    text_format: Annotated[str, typer.Option(help="How a row is written as a key.")] = "instance_new",
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
) -> None:
    """Embed the keys of experts that lack them, so that routers find them."""
    from elm_jax.runs import index as runs

    opened = open_run(run, data_dir, templates_dir, None, cache, tasks)
    for expert in runs.index(opened, size=size, text_format=text_format, rebuild=rebuild):
        print(expert)


@app.command()
def route(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    router: Annotated[str, typer.Option(help="How experts are chosen.")] = "roe",
    experts: Annotated[int, typer.Option(help="How many of the most voted to take.")] = 1,
    queries: Annotated[int, typer.Option(help="Inputs of the task that vote.")] = 32,
    explain: Annotated[bool, typer.Option(help="Show the votes and the nearest keys.")] = False,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Which experts a task should use, and why."""
    from dataclasses import asdict

    from elm_jax.runs import data
    from elm_jax.runs import route as runs

    opened = open_run(run, data_dir, templates_dir, None, cache, own_files(names, tasks))
    selections = runs.route(
        opened, data.choose(names or [], opened.source), router=router, experts=experts, queries=queries
    )
    if as_json:
        print(json.dumps([asdict(selection) for selection in selections], ensure_ascii=False))
        return
    for selection in selections:
        print(f"{selection.task}: {', '.join(selection.weights)}")
        if explain:
            for line in runs.explain(selection):
                print(f"  {line}")


@app.command()
def evaluate(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    merged: Annotated[int, typer.Option(help="Retrieved experts to merge.")] = 3,
    queries: Annotated[int, typer.Option(help="Inputs of each task that vote.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Rows scored at once.")] = 64,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
    limit: Limit = None,
    gin_file: GinFiles = None,
    gin_bindings: GinBindings = None,
) -> None:
    """Route, merge, score and compare on unseen tasks; what is scored already is kept."""
    from elm_jax.runs import data, recipes
    from elm_jax.runs import evaluate as runs

    if gin_file:
        show_outcome(recipes.bound(runs.evaluate, gin_file, gin_bindings or [])())
        return
    opened = open_run(run, data_dir, templates_dir, limit, cache, own_files(names, tasks))
    specs = data.choose(names or [], opened.source)
    show_outcome(runs.compare(opened, specs, merged=merged, queries=queries, batch_size=batch_size))


@app.command()
def report(run: RunDir = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Tables, intervals, paired tests and the page of a run that was evaluated."""
    from elm_jax.reporting import tables
    from elm_jax.runs import report as runs
    from elm_jax.runs.workspace import Workspace

    made, files = runs.again(Workspace.open(run))
    if as_json:
        print(files["json"].read_text())
        return
    show(tables.methods_table(made), may_shrink=True)
    show(tables.comparisons_table(made))
    show(tables.selections_table(made))
    print(files["html"])


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Devices, versions, what is missing and the command that mends it."""
    from elm_jax.reporting import tables
    from elm_jax.runs import doctor as runs

    found = runs.doctor()
    if as_json:
        print(json.dumps(found))
        return
    for name, value in tables.flat({name: value for name, value in found.items() if name != "mend"}):
        print(f"{name:<32}{'missing' if value == 'None' else value}")
    for command in found["mend"]:
        print(f"to mend: {command}")


@tasks_app.command("list")
def tasks_list(
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """Every task: one entry a dataset-prompt pair."""
    from elm_jax.tasks import specs

    task_files(tasks)
    found = specs.task_specs(group)
    if as_json:
        entries = [
            {
                "id": spec.id,
                "group": group or spec.group,  # "mini" is the embedded suite, of two groups
                **{name: getattr(spec, name) for name in ("dataset", "config", "prompt", "metric")},
            }
            for spec in found
        ]
        print(json.dumps(entries, ensure_ascii=False))
        return
    for spec in found:
        print(f"{spec.group:<12} {spec.metric:<11} {spec.id}")


@tasks_app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
) -> None:
    """One task: where it comes from, and its template where that is at hand."""
    from dataclasses import asdict

    from elm_jax.tasks import specs

    task_files(tasks)
    spec = specs.find_task(name)
    for field, value in asdict(spec).items():
        print(f"{field:<16} {value}")
    if templates_dir or specs.has_template(spec):
        template = specs.template_for(spec, templates_dir)
        print(f"choices          {template.answer_choices}\n\n{template.jinja}")


@tasks_app.command("preview")
def tasks_preview(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    rows: Annotated[int, typer.Option(help="How many rows.")] = 3,
    split: Split = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    run: KnownRun = None,
    vocabulary: VocabularyFile = None,
    extra_ids: ExtraIds = 100,
    max_prompt: MaxPrompt = None,
    max_answer: MaxAnswer = None,
) -> None:
    """Rows as the model will see them: input, choices, target; tokens too with --run or --vocabulary."""
    from elm_jax.runs import data
    from elm_jax.runs import preview as runs
    from elm_jax.tasks import specs

    task_files(tasks)
    source, pieces, lengths = read_as(run, vocabulary, extra_ids, max_prompt, max_answer)
    spec = specs.find_task(name)
    source = given_to(source, data_dir=data_dir, templates_dir=templates_dir)
    if split:
        source = given_to(source, splits={spec.dataset: split})
    shown, count = runs.preview(spec, source, rows=rows, pieces=pieces, lengths=lengths)
    console = Console(highlight=False, soft_wrap=True)
    for row in shown:
        console.rule(row.example.row_id)
        for line in row.lines:
            console.print(line)
    console.print(f"{len(shown)} of {count} rows of the {data.split_of(spec, source)} split.")


@tasks_app.command("check")
def tasks_check(
    name: Annotated[
        str, typer.Argument(help="A task's id, a dataset, a group, or a file that defines tasks.")
    ],
    split: Split = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A kind of finding that is no reason to fail.")
    ] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    run: KnownRun = None,
    vocabulary: VocabularyFile = None,
    extra_ids: ExtraIds = 100,
    max_prompt: MaxPrompt = None,
    max_answer: MaxAnswer = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with tasks, before anything is trained on them; exit code 1 if anything is."""
    from dataclasses import asdict

    from elm_jax.runs import check as runs
    from elm_jax.runs import data

    task_files(tasks)
    source, pieces, lengths = read_as(run, vocabulary, extra_ids, max_prompt, max_answer)
    source = given_to(source, data_dir=data_dir, templates_dir=templates_dir, limit=limit)
    allowed, chosen = runs.kinds(allow or ()), data.choose([name], source)
    if split:
        source = given_to(source, splits={spec.dataset: split for spec in chosen})
    checked = runs.check(chosen, source, pieces=pieces, lengths=lengths)
    refused = runs.without(checked, allowed)
    if as_json:
        print(json.dumps([asdict(each) for each in checked], ensure_ascii=False))
    else:
        for each in checked:
            print(f"{each.task} ({each.split}): applies to {each.applies:,} of {each.rows:,} rows.")
            for finding in each.findings:
                print(f"  {finding.kind}: {finding.says}")
    if any(each.findings for each in refused):
        raise typer.Exit(1)


@prompts_app.command("fetch")
def prompts_fetch(
    cache: Annotated[str | None, typer.Option(help="Directory to keep them in.")] = None,
    index: Annotated[str | None, typer.Option(help="Package index; pip's own without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring PromptSource's templates from the package index into the cache; nothing is installed."""
    from elm_jax.runs import prompts

    fetched = prompts.fetch(cache=cache, index=index)
    if as_json:
        print(json.dumps({"directory": str(fetched.directory), "new": fetched.new}))
        return
    print(f"Templates of {fetched.datasets} datasets {'are now' if fetched.new else 'were already'} at")
    print(fetched.directory)


@prompts_app.command("list")
def prompts_list(
    dataset: Annotated[str | None, typer.Argument(help="A dataset's folder: its templates by name.")] = None,
    templates_dir: TemplatesDir = None,
    as_json: AsJson = False,
) -> None:
    """The datasets that have templates, or one dataset's templates."""
    from elm_jax.runs import prompts

    if dataset:
        found = {
            name: each.answer_choices for name, each in prompts.templates(dataset, templates_dir).items()
        }
    else:
        found = prompts.listing(templates_dir)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for name, told in found.items():
        print(name if told is None else f"{name:<40} {told}")


@experts_app.command("list")
def experts_list(run: RunDir = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """All experts of a run's library, with their sizes."""
    from dataclasses import asdict

    from elm_jax.library.store import Library
    from elm_jax.runs.workspace import Workspace

    library = Library.open(Workspace.open(run).library)
    sizes = library.sizes()
    if as_json:
        print(json.dumps([{"id": expert, **asdict(size)} for expert, size in sizes.items()]))
        return
    for expert, size in sizes.items():
        keys = "keys" if library.has_keys(expert) else "no keys"
        print(f"{size.parameters:>12,} parameters {size.bytes:>12,} bytes  {keys:<8} {expert}")


@experts_app.command("show")
def experts_show(
    name: Annotated[str, typer.Argument(help="An expert's id.")], run: RunDir = DEFAULT_OUT
) -> None:
    """One expert's spec: base, recipe, and the parameters it owns."""
    from elm_jax.library.store import Library
    from elm_jax.reporting import tables
    from elm_jax.runs.workspace import Workspace

    spec = Library.open(Workspace.open(run).library).spec(name)
    told = {"id": spec.id, "kind": spec.kind, "base": spec.base, "steps": spec.steps}
    for field, value in tables.flat(
        {**told, "datasets": ", ".join(spec.datasets), "recipe": dict(spec.recipe)}
    ):
        print(f"{field:<20} {value}")
    for path in spec.paths:
        print(f"owns                 {path}")


@experts_app.command("verify")
def experts_verify(run: RunDir = DEFAULT_OUT) -> None:
    """Checksums, base, missing files; exit code 1 if anything is wrong."""
    from elm_jax.library.store import Library
    from elm_jax.runs.workspace import Workspace
    from elm_jax.weights import elm

    workspace = Workspace.open(run)
    library = Library.open(workspace.library)
    findings = library.verify(base=elm.load(workspace.base).fingerprint)
    for finding in findings:
        print(f"{finding.expert}: {finding.problem}")
    if findings:
        raise typer.Exit(1)
    print(f"{len(library.ids())} experts are sound.")


@experts_app.command("remove")
def experts_remove(
    name: Annotated[str, typer.Argument(help="An expert's id.")], run: RunDir = DEFAULT_OUT
) -> None:
    """Take one expert out of the library."""
    from elm_jax.library.store import Library
    from elm_jax.runs.workspace import Workspace

    Library.open(Workspace.open(run).library).remove(name)


def open_run(
    run: str,
    data_dir: str | None,
    templates_dir: str | None,
    limit: int | None,
    cache: str | None = None,
    tasks: list[str] | None = None,
) -> "Run":
    """Opens a run's directory with its base; flags win over what the run remembers."""
    from dataclasses import replace

    from elm_jax.runs import base

    files = task_files(tasks)
    opened = base.open_run(run)
    base.remember_tasks(opened.workspace, files)
    given = {"data_dir": data_dir, "templates_dir": templates_dir, "limit": limit, "prepared": cache}
    given["tasks"] = [*opened.source.tasks, *files]
    return replace(opened, source=given_to(opened.source, **given))


def own_files(names: list[str] | None, tasks: list[str] | None) -> list[str]:
    """Returns the files that define tasks, be they given as such or among the names."""
    from elm_jax.runs import data

    return [*(tasks or []), *filter(data.is_task_file, names or [])]


def task_files(files: list[str] | None) -> list[str]:
    """Reads files that define tasks, and returns where they are."""
    from elm_jax.tasks import own

    for file in files or []:
        own.load(file)
    return [os.path.abspath(file) for file in files or []]


def read_as(
    run: str | None, vocabulary: str | None, extra_ids: int, max_prompt: int | None, max_answer: int | None
) -> "tuple[Source, Vocabulary | None, Lengths]":
    """Returns how rows are read and tokenised where a run or a vocabulary was given; else no vocabulary."""
    if run or vocabulary:
        from elm_jax.runs import base

        found = base.reading(run or DEFAULT_OUT, vocabulary_file=vocabulary, extra_ids=extra_ids)
        source, pieces, lengths = found.source, found.pieces, found.lengths
    else:
        from elm_jax.runs import data

        source, pieces, lengths = data.Source(), None, data.Lengths()
    return source, pieces, given_to(lengths, prompt=max_prompt, answer=max_answer)


def given_to(record: Any, **flags: Any) -> Any:
    """Returns the record with the flags that were given."""
    from dataclasses import replace

    return replace(record, **{name: value for name, value in flags.items() if value is not None})


def show_outcome(outcome: "Outcome") -> None:
    """Prints the one table, where the time went, and the path of the report."""
    from elm_jax.reporting import tables

    show(tables.methods_table(outcome.report), may_shrink=True)
    spent = ", ".join(
        f"{title} {seconds:.1f}" for title, seconds in outcome.seconds.items() if seconds >= 0.05
    )
    print(f"Seconds: {spent}; in all {sum(outcome.seconds.values()):.1f}.")
    print(f"Report: {outcome.files['html']}")


def show(table: "Table", *, may_shrink: bool = False) -> None:
    """Prints a table: drawn on a terminal, wide enough for every cell elsewhere.

    With `may_shrink` a terminal too narrow for all columns shows the first and the last two.
    """
    from dataclasses import replace

    from rich.table import Table as Drawn

    width = Console().width if sys.stdout.isatty() else 200
    cells = zip(table.header, *table.rows, strict=True)
    if may_shrink and sum(max(map(len, column)) + 3 for column in cells) >= width:
        kept = [0, len(table.header) - 2, len(table.header) - 1]
        table = replace(
            table,
            header=tuple(table.header[column] for column in kept),
            rows=tuple(tuple(row[column] for column in kept) for row in table.rows),
            caption=f"{table.caption} The report shows the columns that do not fit here.",
        )
    drawn = Drawn(title=table.title, caption=table.caption or None)
    for number, name in enumerate(table.header):
        drawn.add_column(name, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*row)
    Console(width=width, highlight=False).print(drawn, markup=False)


def spelled_out(arguments: list[str]) -> list[str]:
    """Turns T5X's `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

    >>> spelled_out(["run", "--gin.TRAIN_STEPS=5"])
    ['run', '--gin_bindings=TRAIN_STEPS = 5']
    """
    return [
        re.sub(r"^--gin\.([^=]+)=(.*)$", r"--gin_bindings=\1 = \2", word, flags=re.DOTALL)
        for word in arguments
    ]


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return app(spelled_out(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
