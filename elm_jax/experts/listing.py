"""Listing: descriptions, sizes and accuracies of the experts of a run, without their parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_jax import names
from elm_jax.data import identity
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, result_files
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import ExpertSize, Library
from elm_jax.experts.lookup import library_finder
from elm_jax.reporting.documents import flatten_values
from elm_jax.reporting.formatting import format_percent
from elm_jax.reporting.tables import Table
from elm_jax.session.workspace import Workspace


@dataclass(frozen=True)
class ExpertSummary:
    """An expert of a run as `elm experts list` and `elm experts show` print it.

    Attributes:
        description: Its description.
        size: Its size.
        has_keys: Whether it has keys.
        accuracies: Task -> accuracy in [0, 1] and number of rows, as last scored in the run.
    """

    description: ExpertDescription
    size: ExpertSize
    has_keys: bool
    accuracies: Mapping[str, tuple[float, int]]


@dataclass(frozen=True)
class BadExpert:
    """An expert of a run whose description cannot be read.

    Attributes:
        id: Its id, by its directory.
        problem: What is wrong and how to fix it.
    """

    id: str
    problem: str


def summarize_experts(
    workspace: Workspace, experts: Sequence[str] | None = None, *, scored: bool = False
) -> list[ExpertSummary | BadExpert]:
    """Returns summaries of experts of a run; a bad one disturbs no other.

    Args:
        workspace: The run's directories.
        experts: Ids; default: the whole library.
        scored: Whether accuracies are read.

    Raises:
        UserError: If there is no expert of an id.
    """
    library_of = library_finder(workspace)
    found: list[ExpertSummary | BadExpert] = []
    for expert in Library.open(workspace.library).ids() if experts is None else experts:
        library = library_of(expert)
        try:
            (size,) = library.sizes([expert]).values()
            accuracies = read_accuracies(workspace, expert) if scored else {}
            found.append(ExpertSummary(library.describe(expert), size, library.has_keys(expert), accuracies))
        except (UserError, OSError) as error:
            if expert not in library:
                raise
            found.append(BadExpert(expert, str(error)))
    return found


def read_accuracies(workspace: Workspace, expert: str) -> dict[str, tuple[float, int]]:
    """Returns the accuracy in [0, 1] and the number of rows of every task that an expert was scored on.

    They are the last scores: of all rows if these were scored, else of a limited number. After an expert was
    replaced they are those of the old one, until the new one is scored.
    """
    found = {}
    name = names.directory_name(expert)
    for dataset in atomic_dir.list_directories(workspace.scores):
        for prompt in atomic_dir.list_directories(dataset):
            files = [prompt / f"{name}.jsonl", *sorted(prompt.glob(f"{name}.limit_*.jsonl"))]
            heads = (result_files.read_header(file) for file in files if file.exists())
            counted = next((head for head in heads if head and _is_counted(head)), None)
            if counted:
                task = f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(prompt.name)}"
                found[task] = counted["right"] / counted["rows"], counted["rows"]
    return found


def _is_counted(head: Mapping[str, object]) -> bool:
    """Returns whether the head of a file of scores says how many rows there are, and how many are right."""
    right, rows = head.get("right"), head.get("rows")
    return isinstance(right, int) and isinstance(rows, int) and 0 <= right <= rows and rows > 0


def summary_table(summaries: Sequence[ExpertSummary | BadExpert], *, scored: bool) -> Table:
    """Returns a table with a line for every expert."""
    header = ("expert", "kind", "steps", "owner", "keys", "parameters", "bytes")
    rows = []
    for one in summaries:
        if isinstance(one, BadExpert):
            rows.append((one.id, "bad", *[""] * (len(header) - 2 + scored)))
            continue
        spec = one.description.spec
        keys = "yes" if one.has_keys else "no"
        size = f"{one.size.parameters:,}", f"{one.size.bytes:,}"
        accuracies = [accuracy for accuracy, _ in one.accuracies.values()]
        mean = (
            f"{format_percent(sum(accuracies) / len(accuracies))} of {len(accuracies)}" if accuracies else ""
        )
        own = (spec.id, spec.kind, str(spec.steps), one.description.owner, keys, *size)
        rows.append((*own, mean) if scored else own)
    caption = "Accuracy: the mean in percent over the tasks scored in this run, and how many they are."
    captions = [caption] if scored else []
    if any(isinstance(one, BadExpert) for one in summaries):
        captions.append("`elm experts verify` says what is wrong with bad ones.")
    return Table(
        f"{len(summaries)} experts",
        (*header, "accuracy") if scored else header,
        tuple(rows),
        " ".join(captions),
    )


def summary_fields(one: ExpertSummary) -> list[tuple[str, str]]:
    """Returns the names and values of all fields of one expert, as text."""
    spec = one.description.spec
    fields = [
        ("id", spec.id),
        ("kind", spec.kind),
        ("owner", one.description.owner),
        ("base", spec.base),
        ("steps", str(spec.steps)),
        ("datasets", ", ".join(spec.datasets)),
        ("parameters", f"{one.size.parameters:,}"),
        ("bytes", f"{one.size.bytes:,}"),
        ("keys", "yes" if one.has_keys else "no"),
        ("checksum", one.description.checksum),
    ]
    fields += flatten_values({"recipe": identity.without_identity(spec.recipe)})
    for task, (accuracy, count) in one.accuracies.items():
        seen = ", trained on its dataset" if names.split_id(task)[0] in spec.datasets else ""
        fields.append(("accuracy", f"{format_percent(accuracy)} % of {count} rows of {task}{seen}"))
    return fields + [("owns", path) for path in spec.paths]
