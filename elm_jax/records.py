"""Records: what travels from room to room, as plain frozen values without behaviour.

Arrays in records are NumPy's or JAX's; `Params` is a nested dictionary of them whose paths are T5X's
parameter names with the layers of a stack kept in one array (`encoder/layers/mlp/wo/kernel` is [L, F, D]).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from elm_jax.axes import Embeddings

Params = Mapping[str, Any]


@dataclass(frozen=True)
class TaskSpec:
    """One task: one (dataset, prompt) pair, and where its rows come from."""

    id: str  # dataset/prompt
    dataset: str
    prompt: str
    group: str  # "train", "unseen", "mini-train", "mini-unseen", …
    split: str  # the split that training or evaluation reads by default
    evaluation_split: str | None = None  # what evaluation reads, where that is another one
    config: str | None = None
    family: str | None = None  # the paper's category, or the skill of an embedded task
    metric: str = "accuracy"
    seed: int = 42


@dataclass(frozen=True)
class PromptedExample:
    """One row of a dataset as the model sees it."""

    row_id: str  # names the dataset's row, the same for every prompt over it
    input: str
    target: str
    choices: tuple[str, ...] = ()  # empty for a task that generates
    label: int | None = None  # index of the right choice


@dataclass(frozen=True)
class ExpertSpec:
    """What an expert is: enough to load, verify and rebuild it."""

    id: str
    kind: str  # "bottleneck", "full", …
    base: str  # fingerprint of the base it was trained on
    paths: tuple[str, ...]  # the parameter paths it owns
    datasets: tuple[str, ...]  # what it was trained on; never zero-shot there
    steps: int
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expert:
    """A spec with the parameters it owns."""

    spec: ExpertSpec
    params: Params


@dataclass(frozen=True)
class Keys:
    """An expert's embedded training inputs: what the router compares queries with."""

    vectors: Embeddings
    texts: tuple[str, ...]
    embedder: str
    text_format: str


@dataclass(frozen=True)
class Selection:
    """The experts a router chose for one task, and why."""

    task: str
    router: str
    weights: Mapping[str, float]  # expert id -> weight; the weights sum to 1
    votes: Mapping[str, int]  # expert id -> votes, most first
    queries: tuple[str, ...]  # row ids of the queries that voted
    nearest: tuple[tuple[str, float], ...] = ()  # per query: the winning expert and its similarity
    embedder: str = ""  # what embedded queries and keys, its type included; none where none did


@dataclass(frozen=True)
class TaskScores:
    """What scoring one task with one method gave, row by row."""

    task: str
    method: str  # "base", "multitask", "roe", …, or an expert's id
    row_ids: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]  # nats, one a choice
    predictions: tuple[int, ...]
    labels: tuple[int, ...]
    seen: bool = False  # what scored was trained on this very dataset, so it is not zero-shot


@dataclass(frozen=True)
class Report:
    """Everything a reader of results needs; `report.json` is this record, field by field."""

    rows: tuple[Mapping[str, Any], ...]  # method, task, prompt, n, accuracy, low, high, chance, seen
    means: tuple[Mapping[str, Any], ...]  # method, macro, micro
    comparisons: tuple[Mapping[str, Any], ...]  # a, b, difference, low, high, p, p_holm, comparisons
    selections: tuple[Mapping[str, Any], ...]  # task, prompt, expert, votes
    environment: Mapping[str, Any]
    tasks: tuple[Mapping[str, Any], ...] = ()  # method, task over its prompts: accuracy, low, high, spread
    matrix: tuple[Mapping[str, Any], ...] = ()  # expert, family, task, prompt, n, accuracy, seen
    methods: tuple[Mapping[str, Any], ...] = ()  # method, router, merge, labels (none, few, hindsight), note
    # Of tasks that are answered in free text: method, task, prompt, n, measure, value, low, high, seen
    generated: tuple[Mapping[str, Any], ...] = ()
    # Rows to look at: task, prompt, row, input, choices, target, answers (method -> prediction, scores)
    examples: tuple[Mapping[str, Any], ...] = ()
