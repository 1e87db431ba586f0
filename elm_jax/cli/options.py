"""Options: the flags and arguments that several verbs take, described once."""

from typing import Annotated

import typer

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
    str | None,
    typer.Option("--vocabulary", help="SentencePiece model or tokenizer.json; default: the base's."),
]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        help="A file of your own tasks, YAML or Python; Python may register routers and merges too.",
    ),
]
KnownRun = Annotated[str | None, typer.Option("--run", help="A run whose base and data are used.")]
Split = Annotated[str | None, typer.Option(help="Another split than each task's own.")]
ExtraIds = Annotated[int, typer.Option(help="Sentinels on top of --vocabulary.")]
Dtype = Annotated[
    str | None, typer.Option(help="What the base is held and computes in, float32 or bfloat16; as stored.")
]
MaxPrompt = Annotated[int | None, typer.Option(help="Tokens of an input, the end included.")]
MaxAnswer = Annotated[int | None, typer.Option(help="Tokens of an answer, the end included.")]
Truncate = Annotated[
    int | None,
    typer.Option(help="Characters of a value that a template may write, 2048 without it; 0 for no limit."),
]
Faithful = Annotated[
    list[str] | None,
    typer.Option(help="One of the original's ways with data, see `elm_jax.tasks.specs.SWITCHES`, or all."),
]
Multiprocess = Annotated[
    bool,
    typer.Option("--multiprocess", "--multiprocess_gpu", help="This is one of several processes of a job."),
]
Coordinator = Annotated[
    str | None, typer.Option("--coordinator_address", help="Address and port of the job's first process.")
]
ProcessCount = Annotated[int | None, typer.Option("--process_count", help="How many processes the job has.")]
ProcessIndex = Annotated[int | None, typer.Option("--process_index", help="Which of them this is, from 0.")]
DEFAULT_OUT = "elm_out"
