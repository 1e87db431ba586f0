"""The flags and arguments that several commands take, described once; those that go together are records."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

DEFAULT_OUT = "elm_out"

Out = Annotated[
    str, typer.Option("--out", help="Directory to write. A run that was stopped continues there.")
]
RunDir = Annotated[str, typer.Option("--run", help="Directory of a run, such as `elm quickstart` makes.")]
OptionalRun = Annotated[str | None, typer.Option("--run", help="A run whose base and data are used.")]
Names = Annotated[list[str] | None, typer.Argument(help="Tasks by id, dataset or group.")]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        help="A file of your own tasks, YAML or Python; Python may register routers and merges too.",
    ),
]
TemplatesDir = Annotated[
    str | None,
    typer.Option(help="Directory of templates, laid out as PromptSource's; default: the fetched ones."),
]
Cache = Annotated[
    str | None, typer.Option("--cache", help="Directory of prepared rows; default: the run's own.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
GinBindings = Annotated[
    list[str] | None, typer.Option("--gin_bindings", help="A binding; --gin.NAME=VALUE is short for it.")
]
Limit = Annotated[
    int | None,
    typer.Option(help="Used rows of each task at most; default: as many as the paper takes."),
]
Split = Annotated[str | None, typer.Option(help="Split to read; default: each task's own.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Type of the base and its computation, float32 or bfloat16; default: as stored."),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait while another process does this in the same directory.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]


@dataclass(frozen=True)
class SourceFlags:
    """Where tasks, their datasets and templates are."""

    PANEL: ClassVar[str] = "Base and data"
    base: Annotated[
        str | None,
        typer.Option(
            help="The run's base, a directory or hf:owner/name; the run is made if there is none; default: "
            "the one that it has."
        ),
    ] = None
    tokenizer: Annotated[
        str | None,
        typer.Option(help="SentencePiece model or tokenizer.json of --base; default: the one beside it."),
    ] = None
    data_dir: Annotated[str | None, typer.Option(help="Directory of datasets.")] = None
    templates_dir: TemplatesDir = None
    tasks: TaskFiles = None
    on_bad_row: Annotated[
        str | None,
        typer.Option(
            help="A row that cannot be used: leave-out, and it is counted, or refuse; default: leave-out."
        ),
    ] = None


@dataclass(frozen=True)
class DataFlags(SourceFlags):
    """Where rows come from, how many are read, and the type that the base computes in."""

    cache: Cache = None
    limit: Limit = None
    dtype: Dtype = None


@dataclass(frozen=True)
class RowFlags:
    """Which rows of a task are read."""

    PANEL: ClassVar[str] = "Base and data"
    split: Split = None
    limit: Limit = None


@dataclass(frozen=True)
class LengthFlags:
    """How many tokens are kept."""

    PANEL: ClassVar[str] = "Tokens"
    max_prompt: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of an input at most, the end included; default: the run's."),
    ] = None
    max_answer: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of an answer at most, the end included; default: the run's."),
    ] = None


@dataclass(frozen=True)
class TokenFlags(LengthFlags):
    """How rows are tokenised."""

    vocabulary: Annotated[
        str | None, typer.Option(help="SentencePiece model or tokenizer.json; default: the base's.")
    ] = None
    extra_ids: Annotated[int, typer.Option(min=0, help="Sentinels on top of --vocabulary.")] = 100


@dataclass(frozen=True)
class RenderFlags:
    """How templates write rows."""

    PANEL: ClassVar[str] = "Rendering"
    truncate: Annotated[
        int | None,
        typer.Option(
            min=0, help="Characters of a value that a template may write; default: 2048; 0 for no limit."
        ),
    ] = None
    faithful: Annotated[
        list[str] | None,
        typer.Option(
            help="A way of the original with data to keep, one of `elm_jax.tasks.original.SWITCHES`, or all."
        ),
    ] = None


@dataclass(frozen=True)
class RecipeFlags:
    """A recipe and what is changed in it."""

    PANEL: ClassVar[str] = "Recipe"
    gin_file: Annotated[
        list[str] | None, typer.Option("--gin_file", help="A recipe; may be repeated, and the last wins.")
    ] = None
    gin_bindings: GinBindings = None
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config", help="A YAML file of a recipe's macros, such as `TRAIN_STEPS: 100`; may be repeated."
        ),
    ] = None

    def files(self, default: str) -> list[str]:
        """Returns the recipes, the last of which wins; none if no recipe was named.

        Args:
            default: The recipe whose macros a YAML file sets, unless a recipe is named too.
        """
        yaml = self.config or []
        return [*(self.gin_file or [default] * bool(yaml)), *yaml]


@dataclass(frozen=True)
class ProcessFlags:
    """One process of a job on several hosts."""

    PANEL: ClassVar[str] = "Several hosts"
    multiprocess: Annotated[
        bool,
        typer.Option(
            "--multiprocess", "--multiprocess_gpu", help="This is one of several processes of a job."
        ),
    ] = False
    coordinator: Annotated[
        str | None,
        typer.Option(
            "--coordinator_address",
            help="Address and port of the job's first process; default: as the cluster says.",
        ),
    ] = None
    process_count: Annotated[
        int | None,
        typer.Option("--process_count", help="Number of processes of the job; default: as the cluster says."),
    ] = None
    process_index: Annotated[
        int | None,
        typer.Option("--process_index", help="Number of this process, from 0; default: as the cluster says."),
    ] = None
