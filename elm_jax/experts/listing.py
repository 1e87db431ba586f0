"""Listing: what is known of the experts of a run, without reading their parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_jax import names, storage
from elm_jax.experts import atomic_dir
from elm_jax.experts.files import Description
from elm_jax.experts.library import Library, Size
from elm_jax.experts.lookup import homes
from elm_jax.reporting.documents import flatten_values
from elm_jax.reporting.formatting import format_percent
from elm_jax.reporting.tables import Table
from elm_jax.session.workspace import Workspace


@dataclass(frozen=True)
class Listed:
    """An expert as it is listed."""

    about: Description
    size: Size
    keys: bool
    accuracies: Mapping[str, tuple[float, int]]  # task -> accuracy and rows, as last scored in this run


def listed(
    workspace: Workspace, wanted: Sequence[str] | None = None, *, scored: bool = False
) -> list[Listed]:
    """Returns what is known of experts, all of the library without `wanted`; of scores only with `scored`."""
    home_of = homes(workspace)
    found = []
    for expert in Library.open(workspace.library).ids() if wanted is None else wanted:
        library = home_of(expert)
        (size,) = library.sizes([expert]).values()
        accuracies = accuracies_of(workspace, expert) if scored else {}
        found.append(Listed(library.describe(expert), size, library.has_keys(expert), accuracies))
    return found


def accuracies_of(workspace: Workspace, expert: str) -> dict[str, tuple[float, int]]:
    """Returns task -> accuracy and rows of every task that an expert was scored on in this run.

    They are what was last scored, of all rows where these were, else of a limited number; an expert that was
    replaced since has those of the one before.
    """
    found = {}
    name = names.directory_name(expert)
    for dataset in atomic_dir.directories(workspace.scores):
        for prompt in atomic_dir.directories(dataset):
            files = [prompt / f"{name}.jsonl", *sorted(prompt.glob(f"{name}.limit_*.jsonl"))]
            heads = (storage.read_first_line(file) for file in files if file.exists())
            counted = next((head for head in heads if head and head.get("rows")), None)
            if counted:
                task = f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(prompt.name)}"
                found[task] = counted["right"] / counted["rows"], counted["rows"]
    return found


def table(found: Sequence[Listed], *, scored: bool) -> Table:
    """Returns experts as a table, a line each."""
    header = ("expert", "kind", "steps", "owner", "keys", "parameters", "bytes")
    told = []
    for one in found:
        spec = one.about.spec
        keys = "yes" if one.keys else "no"
        size = f"{one.size.parameters:,}", f"{one.size.bytes:,}"
        accuracies = [accuracy for accuracy, _ in one.accuracies.values()]
        mean = (
            f"{format_percent(sum(accuracies) / len(accuracies))} of {len(accuracies)}" if accuracies else ""
        )
        own = (spec.id, spec.kind, str(spec.steps), one.about.owner, keys, *size)
        told.append((*own, mean) if scored else own)
    caption = "Accuracy: the mean in percent over the tasks scored in this run, and how many they are."
    return Table(
        f"{len(found)} experts",
        (*header, "accuracy") if scored else header,
        tuple(told),
        caption if scored else "",
    )


def lines(one: Listed) -> list[tuple[str, str]]:
    """Returns what is known of one expert, field by field."""
    spec = one.about.spec
    told = [
        ("id", spec.id),
        ("kind", spec.kind),
        ("owner", one.about.owner),
        ("base", spec.base),
        ("steps", str(spec.steps)),
        ("datasets", ", ".join(spec.datasets)),
        ("parameters", f"{one.size.parameters:,}"),
        ("bytes", f"{one.size.bytes:,}"),
        ("keys", "yes" if one.keys else "no"),
        ("checksum", one.about.checksum),
    ]
    told += flatten_values({"recipe": dict(spec.recipe)})
    for task, (accuracy, count) in one.accuracies.items():
        seen = ", trained on its dataset" if names.split_id(task)[0] in spec.datasets else ""
        told.append(("accuracy", f"{format_percent(accuracy)} % of {count} rows of {task}{seen}"))
    return told + [("owns", path) for path in spec.paths]
