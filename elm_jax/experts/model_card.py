"""The model card of a published library, written from what experts, runs and bases say of themselves."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from etils import epath

from elm_jax import names, storage
from elm_jax.experts import atomic_dir, files, hub_layout
from elm_jax.experts.files import Description
from elm_jax.experts.library import Library
from elm_jax.reporting.documents import flatten_values, table_to_markdown
from elm_jax.reporting.formatting import MISSING, format_interval
from elm_jax.reporting.metrics import wilson_interval
from elm_jax.reporting.tables import Table
from elm_jax.session.workspace import Workspace

_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")
_WORDS = {"bottleneck": "adapter", "lora": "lora", "ia3": "ia3", "full": "full fine-tuning"}


@dataclass(frozen=True)
class BaseModel:
    """The base of a library, as its card names it."""

    fingerprint: str
    repository: str | None = None  # on the hub, where it was fetched from there
    revision: str | None = None  # the commit


@dataclass(frozen=True)
class Score:
    """How an expert scored on a task in the run that it was pushed from."""

    task: str
    measure: str
    value: float  # percent, as are the ends of the 95 % interval
    low: float | None
    high: float | None
    rows: int
    seen: bool  # whether the expert was trained on the task's dataset


@dataclass(frozen=True)
class Card:
    """What a card tells."""

    repository: str
    base: BaseModel
    experts: Mapping[str, Description]
    scores: Mapping[str, Sequence[Score]]  # expert -> its scores
    licence: str | None = None


def base_of(directory: str, fingerprint: str) -> BaseModel:
    """Returns the base that lies in a directory, with its repository where that is the hub's cache.

    >>> base_of("hub/models--google--flan-t5-xl/snapshots/" + "7" * 40, "f9aac4c8ee3b0bb1").repository
    'google/flan-t5-xl'
    """
    cached = _CACHED.search(directory)
    return BaseModel(fingerprint, f"{cached[1]}/{cached[2]}", cached[3]) if cached else BaseModel(fingerprint)


def scores_of(workspace: Workspace, library: Library, expert: str) -> list[Score]:
    """Returns an expert's scores on every task that it was scored on in a run, with 95 % intervals.

    They are of all rows where these were scored, else of a limited number. Those that are older than the
    expert are of one that it replaced, and left out.
    """
    place = atomic_dir.place(library.root / hub_layout.where(expert), files.SPEC)
    if place is None:
        return []
    since = _time(place / files.SPEC)
    datasets = library.spec(expert).datasets
    found = []
    for folder in (workspace.scores, workspace.generated):
        for dataset in atomic_dir.directories(folder):
            for prompt in atomic_dir.directories(dataset):
                task = f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(prompt.name)}"
                of_task = _score(prompt, task, expert, since, names.split_id(task)[0] in datasets)
                found += [of_task] if of_task else []
    return found


def read_scores(told: Mapping[str, Any]) -> dict[str, list[Score]]:
    """Returns the scores that `library.json` holds; those of another form are left out."""
    found = {}
    for expert, own in told.items():
        try:
            found[expert] = [
                Score(
                    str(one["task"]),
                    str(one["measure"]),
                    float(one["value"]),
                    None if one["low"] is None else float(one["low"]),
                    None if one["high"] is None else float(one["high"]),
                    int(one["rows"]),
                    bool(one["seen"]),
                )
                for one in own
            ]
        except (KeyError, TypeError, ValueError):
            continue
    return found


def record(card: Card) -> dict[str, Any]:
    """Returns what `library.json` says of a library, so that a later push can write the card anew."""
    return {
        "base": card.base.fingerprint,
        "base_model": card.base.repository,
        "base_revision": card.base.revision,
        "licence": card.licence,
        "scores": {
            expert: [asdict(score) for score in card.scores[expert]]
            for expert in sorted(card.experts)
            if card.scores.get(expert)
        },
    }


def markdown(card: Card) -> str:
    """Returns the card's text: what the hub reads at its head, then experts, scores and recipes as tables."""
    kinds = sorted({str(about.spec.kind) for about in card.experts.values()})
    head: dict[str, Any] = {"library_name": "elm_jax"}
    if card.licence:
        head["license"] = card.licence
    if card.base.repository:
        relation = "finetune" if "full" in kinds else "adapter"
        head |= {"base_model": card.base.repository, "base_model_relation": relation}
    head["tags"] = ["elm_jax", "t5", "safetensors", *(_WORDS.get(kind, kind) for kind in kinds)]
    count = len(card.experts)
    what = "One expert" if count == 1 else f"{count} experts"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {card.repository.partition('/')[2]}\n",
        f"{what} on a frozen T5, trained with elm_jax. To put them into a run that has the same base:\n",
        f"```bash\nelm experts pull {card.repository} --run RUN\n```\n",
        table_to_markdown(Table("Base and licence", ("what", "value"), _about(card))),
        table_to_markdown(_experts(card)),
    ]
    if any(card.scores.get(expert) for expert in card.experts):
        parts.append(table_to_markdown(_scores(card)))
    return "\n".join([*parts, table_to_markdown(_recipes(card))])


def _about(card: Card) -> tuple[tuple[str, str], ...]:
    base = card.base
    return (
        ("base", base.repository or MISSING),
        ("base's revision", base.revision or MISSING),
        ("base's fingerprint", base.fingerprint),
        ("licence", card.licence or "not stated"),
    )


def _experts(card: Card) -> Table:
    told = []
    for expert, about in sorted(card.experts.items()):
        spec = about.spec
        size = sum(_product(shape) for shape in about.shapes.values())
        tasks = spec.recipe.get("tasks") or spec.recipe.get("merged_from") or [expert]
        told.append(
            (
                expert,
                str(spec.kind),
                ", ".join(map(str, tasks)),
                ", ".join(map(str, spec.datasets)),
                str(spec.steps),
                f"{size:,}",
                str(about.owner),
            )
        )
    header = ("expert", "kind", "tasks", "trained on", "steps", "parameters", "owner")
    caption = "An expert is zero-shot on every dataset but those that it was trained on."
    return Table("Experts", header, tuple(told), caption)


def _scores(card: Card) -> Table:
    told = [
        (
            expert,
            score.task,
            score.measure,
            f"{score.value:.1f}",
            format_interval(score.low, score.high, show=lambda end: f"{end:.1f}"),
            str(score.rows),
            "yes" if score.seen else "no",
        )
        for expert in sorted(card.experts)
        for score in card.scores.get(expert, ())
    ]
    header = ("expert", "task", "measure", "value", "95 % interval", "rows", "trained on its dataset")
    caption = "Percent, as last scored in the run that the expert was pushed from."
    return Table("Scores", header, tuple(told), caption)


def _recipes(card: Card) -> Table:
    """Returns the recipes: what all have in common once, then what each has of its own."""
    every = {
        expert: dict(flatten_values(dict(about.spec.recipe)))
        for expert, about in sorted(card.experts.items())
    }
    first = next(iter(every.values()), {})
    common = {
        field: value
        for field, value in first.items()
        if all(recipe.get(field) == value for recipe in every.values())
    }
    told = [("all", field, value) for field, value in common.items()]
    for expert, recipe in every.items():
        told += [(expert, field, value) for field, value in recipe.items() if field not in common]
    return Table("Recipes", ("expert", "field", "value"), tuple(told), "How each expert came to be.")


def _score(prompt: epath.Path, task: str, expert: str, since: float, seen: bool) -> Score | None:
    """Returns what the files of a task say of an expert, of all rows before those of a limited number."""
    name = names.directory_name(expert)
    for file in (prompt / f"{name}.jsonl", *sorted(prompt.glob(f"{name}.limit_*.jsonl"))):
        head = storage.read_first_line(file) if file.exists() and _time(file) >= since else None
        if head and head.get("rows"):
            share = head["right"] / head["rows"]
            low, high = wilson_interval(share, head["rows"])
            return Score(task, "accuracy", 100 * share, 100 * low, 100 * high, head["rows"], seen)
        if head and "measure" in head:
            with file.open() as stream:
                count = sum(1 for _ in stream) - 1
            return Score(task, head["measure"], head["value"], head["low"], head["high"], count, seen)
    return None


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= int(size)
    return product


def _time(file: epath.Path) -> float:
    """Returns when a file was written; epath's `stat` fails where the owner has no name."""
    return os.stat(file).st_mtime
