"""Model card: the README.md of a published library, with its base, experts, scores and recipes."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from etils import epath

from elm_jax import buckets, hub, names, schema
from elm_jax.data import identity
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, files, result_files
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.experts.result_files import ScoresHeader
from elm_jax.reporting.documents import flatten_values, table_to_markdown
from elm_jax.reporting.formatting import MISSING, format_interval
from elm_jax.reporting.metrics import wilson_interval
from elm_jax.reporting.tables import Table
from elm_jax.session.workspace import Workspace

_KIND_TAGS = {
    "bottleneck": "adapter",
    "lora": "lora",
    "dora": "dora",
    "vera": "vera",
    "ia3": "ia3",
    "prompt": "prompt tuning",
    "full": "full fine-tuning",
}


@dataclass(frozen=True)
class BaseReference:
    """The base of a library, as its card names it.

    Attributes:
        fingerprint: The fingerprint of its parameters.
        repository: Its repository on the hub, if it was fetched from there.
        revision: The commit of that repository.
    """

    fingerprint: str
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class CardScore(schema.Form):
    """The score of an expert on a task, in the run that it was pushed from.

    Attributes:
        task: The task's id.
        measure: What was measured, such as "accuracy".
        value: The score in percent.
        low: The lower end of its 95 % interval.
        high: The upper end.
        rows: How many rows were scored.
        seen: Whether the expert was trained on the task's dataset.
    """

    task: str
    measure: str
    value: float
    low: float | None
    high: float | None
    rows: int
    seen: bool


@dataclass(frozen=True)
class ModelCard:
    """The content of a card.

    Attributes:
        repository: `owner/name`.
        base: The base of all experts.
        experts: Id -> description.
        scores: Id -> scores.
        licence: The licence, as the hub spells it.
    """

    repository: str
    base: BaseReference
    experts: Mapping[str, ExpertDescription]
    scores: Mapping[str, Sequence[CardScore]]
    licence: str | None = None


def identify_base(directory: str, fingerprint: str) -> BaseReference:
    """Returns a reference to the base in a directory, with its repository if that is in the hub's cache.

    >>> identify_base("hub/models--google--flan-t5-xl/snapshots/" + "7" * 40, "f9aac4c8ee3b0bb1").repository
    'google/flan-t5-xl'
    """
    return BaseReference(fingerprint, *(hub.find_repository(directory) or ()))


def collect_scores(workspace: Workspace, library: Library, expert: str) -> list[CardScore]:
    """Returns an expert's scores on all tasks that it was scored on in a run, with 95 % intervals.

    They are of all rows if these were scored, else of a limited number. Scores that are older than the expert
    belong to one that it replaced, and are left out.
    """
    place = atomic_dir.locate(library.root / files.relative_directory(expert), files.SPEC_FILE)
    if place is None:
        return []
    since = _modified_at(place / files.SPEC_FILE)
    datasets = library.spec(expert).datasets
    found = []
    for folder in (workspace.scores, workspace.generated):
        for dataset in atomic_dir.list_directories(folder):
            for prompt in atomic_dir.list_directories(dataset):
                task = f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(prompt.name)}"
                score = _read_score(prompt, task, expert, since, names.split_id(task)[0] in datasets)
                found += [score] if score else []
    return found


def parse_scores(record: Mapping[str, Any]) -> dict[str, list[CardScore]]:
    """Returns the scores in `library.json` by expert; those of another form are left out."""
    found = {}
    for expert, own in record.items():
        with suppress(UserError):
            content = json.dumps(own).encode()
            found[expert] = schema.parse(content, list[CardScore], what="scores", fix="push again")
    return found


def to_record(card: ModelCard) -> dict[str, Any]:
    """Returns the content of `library.json`, from which a later push can write the card again."""
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


def render_card(card: ModelCard) -> str:
    """Returns the card as Markdown: the hub's metadata, then base, experts, scores and recipes as tables."""
    kinds = sorted({str(about.spec.kind) for about in card.experts.values()})
    head: dict[str, Any] = {"library_name": "elm_jax"}
    if card.licence:
        head["license"] = card.licence
    if card.base.repository:
        relation = "finetune" if "full" in kinds else "adapter"
        head |= {"base_model": card.base.repository, "base_model_relation": relation}
    head["tags"] = ["elm_jax", "t5", "safetensors", *(_KIND_TAGS.get(kind, kind) for kind in kinds)]
    count = len(card.experts)
    what = "One expert" if count == 1 else f"{count} experts"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {card.repository.partition('/')[2]}\n",
        f"{what} on a frozen T5, trained with elm_jax. To put them into a run that has the same base:\n",
        f"```bash\nelm experts pull {card.repository} --run RUN\n```\n",
        table_to_markdown(Table("Base and licence", ("what", "value"), _base_rows(card))),
        table_to_markdown(_experts_table(card)),
    ]
    if any(card.scores.get(expert) for expert in card.experts):
        parts.append(table_to_markdown(_scores_table(card)))
    return "\n".join([*parts, table_to_markdown(_recipes_table(card))])


def _base_rows(card: ModelCard) -> tuple[tuple[str, str], ...]:
    base = card.base
    return (
        ("base", base.repository or MISSING),
        ("base's revision", base.revision or MISSING),
        ("base's fingerprint", base.fingerprint),
        ("licence", card.licence or "not stated"),
    )


def _experts_table(card: ModelCard) -> Table:
    rows = []
    for expert, about in sorted(card.experts.items()):
        spec = about.spec
        size = sum(math.prod(shape) for shape in about.shapes.values())
        tasks = spec.recipe.get("tasks") or spec.recipe.get("merged_from") or [expert]
        rows.append(
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
    return Table("Experts", header, tuple(rows), caption)


def _scores_table(card: ModelCard) -> Table:
    rows = [
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
    return Table("Scores", header, tuple(rows), caption)


def _recipes_table(card: ModelCard) -> Table:
    """Returns the recipes: the fields that all share once, then those of each expert."""
    every = {
        expert: dict(flatten_values(identity.drop_identity(about.spec.recipe)))
        for expert, about in sorted(card.experts.items())
    }
    first = next(iter(every.values()), {})
    common = {
        field: value
        for field, value in first.items()
        if all(recipe.get(field) == value for recipe in every.values())
    }
    rows = [("all", field, value) for field, value in common.items()]
    for expert, recipe in every.items():
        rows += [(expert, field, value) for field, value in recipe.items() if field not in common]
    return Table("Recipes", ("expert", "field", "value"), tuple(rows), "How each expert came to be.")


def _read_score(prompt: epath.Path, task: str, expert: str, since: float, seen: bool) -> CardScore | None:
    """Reads the score of an expert from the files of a task: of all rows, else of a limited number."""
    name = names.directory_name(expert)
    for file in (prompt / f"{name}.jsonl", *sorted(prompt.glob(f"{name}.limit_*.jsonl"))):
        head = result_files.read_header(file) if file.exists() and _modified_at(file) >= since else None
        if isinstance(head, ScoresHeader):
            share = head.right / head.rows
            low, high = wilson_interval(share, head.rows)
            return CardScore(task, "accuracy", 100 * share, 100 * low, 100 * high, head.rows, seen)
        if head is not None:
            with file.open("rb") as stream:
                count = sum(1 for _ in stream) - 1
            return CardScore(task, head.measure, head.value, head.low, head.high, count, seen)
    return None


def _modified_at(file: epath.Path) -> float:
    """Returns the time when a file was written; epath's `stat` fails if the owner has no name."""
    return file.stat().mtime if buckets.is_bucket(file) else os.stat(file).st_mtime
