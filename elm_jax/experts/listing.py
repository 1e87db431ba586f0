"""Listing: descriptions, sizes and accuracies of the experts of a run, without their parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, result_files
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import ExpertSize, Library
from elm_jax.experts.lookup import library_finder
from elm_jax.experts.result_files import ScoresHeader
from elm_jax.reporting.documents import flatten_values
from elm_jax.reporting.formatting import format_percent
from elm_jax.reporting.tables import Table
from elm_jax.session.run_directory import Workspace


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
            summary = library.summarize(expert)
            accuracies = read_accuracies(workspace, expert) if scored else {}
            found.append(ExpertSummary(*summary, accuracies))
        except (UserError, OSError) as error:
            if expert not in library:
                raise
            found.append(BadExpert(expert, str(error)))
    return found


def rank_experts(summaries: Sequence[ExpertSummary | BadExpert], task: str) -> list[ExpertSummary]:
    """Returns the experts that were scored on a task or on tasks of a dataset, the most accurate first.

    Args:
        summaries: Of experts with their accuracies.
        task: A task's or a dataset's name.

    Returns:
        Summaries with the accuracies on that task or dataset alone, by their mean. Where experts were scored
        on different prompts, those on more of them come first.

    Raises:
        UserError: If no expert was scored on it.
    """
    scored = [one for one in summaries if isinstance(one, ExpertSummary)]
    tasks = {name for one in scored for name in one.accuracies}
    # Names of datasets and of prompts may have slashes of their own.
    datasets = {name[:end] for name in tasks for end, letter in enumerate(name) if letter == "/"}
    names.resolve(task, tasks | datasets, kind="scored task", where="this run's scores")
    found = []
    for one in scored:
        own = {n: value for n, value in one.accuracies.items() if n == task or n.startswith(f"{task}/")}
        if own:
            found.append(replace(one, accuracies=own))
    return sorted(
        found, key=lambda one: (-len(one.accuracies), -_mean_accuracy(one), one.description.spec.id)
    )


def _mean_accuracy(one: ExpertSummary) -> float:
    return sum(accuracy for accuracy, _ in one.accuracies.values()) / len(one.accuracies)


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
            counted = next((head for head in heads if isinstance(head, ScoresHeader)), None)
            if counted:
                task = f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(prompt.name)}"
                found[task] = counted.right / counted.rows, counted.rows
    return found


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
        mean = f"{format_percent(_mean_accuracy(one))} of {len(one.accuracies)}" if one.accuracies else ""
        own = (spec.id, spec.kind, str(spec.steps), one.description.owner, keys, *size)
        rows.append((*own, mean) if scored else own)
    captions = []
    if scored:
        counts = {
            rows for one in summaries if isinstance(one, ExpertSummary) for _, rows in one.accuracies.values()
        }
        ends = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else ""
        captions = [
            "Accuracy: the mean in percent over the tasks scored in this run, and how many they are"
            f"{f'; each of {ends} rows' if counts else ''}."
        ]
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
    from elm_jax.data import identity  # here, so that a list does not wait for tokenizers

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
    fields += flatten_values({"recipe": identity.drop_identity(spec.recipe)})
    for task, (accuracy, count) in one.accuracies.items():
        seen = ", trained on its dataset" if names.split_id(task)[0] in spec.datasets else ""
        fields.append(("accuracy", f"{format_percent(accuracy)} % of {count} rows of {task}{seen}"))
    return fields + [("owns", path) for path in spec.paths]
