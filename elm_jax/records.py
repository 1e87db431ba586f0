"""Records: what the rooms hand to each other, as frozen values without behaviour.

Arrays in records are NumPy's or JAX's; `Params` is a nested dictionary of them whose paths are T5X's
parameter names with the layers of a stack kept in one array (`encoder/layers/mlp/wo/kernel` is [L, F, D]).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from elm_jax.axes import Embeddings
from elm_jax.errors import RowReason
from elm_jax.frames import Record, to_frame

Params = Mapping[str, Any]

VOCABULARY = "vocabulary"
"""The key of an expert's recipe that has the fingerprint of the tokenizer."""

OnBadRow = Literal["leave-out", "refuse"]
"""What is done with a row that cannot be used: it is left out and counted, or it is an error."""


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows that were read; `tasks.row_counts` adds and describes them.

    Attributes:
        read: Rows that were read.
        used: Rows that became examples.
        left_out: Reason -> rows that are left out for it.
        cut: Used rows of which the template's limit of characters cut a value.
    """

    read: int
    used: int
    left_out: Mapping[RowReason, int] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True)
class UnusedRow:
    """A row that cannot be used.

    Attributes:
        row_id: Id of the row.
        reason: Why.
        message: What is wrong, as a sentence that names the row.
        column: The column that the row lacks, if that is why.
    """

    row_id: str
    reason: RowReason
    message: str
    column: str | None = None


@dataclass(frozen=True)
class TaskSpec(Record):
    """One task: one (dataset, prompt) pair, and how its rows are read.

    Attributes:
        id: `dataset/prompt`.
        dataset: Name of the dataset.
        prompt: Name of the prompt.
        group: "train", "unseen", "mini-train", "mini-unseen", …, or a group of the user's.
        split: The split that training reads, or evaluation if nothing is trained.
        evaluation_split: The split that evaluation reads; None if it is the same.
        config: Configuration of the hub's dataset.
        family: The paper's category, or the skill of an embedded task.
        metric: Name of the metric. If it is "accuracy", answer choices are ranked; otherwise the answer is
            free text, and choices are words that the template writes with.
        seed: Seed of the choice of rows.
    """

    id: str
    dataset: str
    prompt: str
    group: str
    split: str
    evaluation_split: str | None = None
    config: str | None = None
    family: str | None = None
    metric: str = "accuracy"
    seed: int = 42


@dataclass(frozen=True)
class PromptedExample:
    """One row of a dataset as the model sees it.

    Attributes:
        row_id: Id of the dataset's row, the same for every prompt.
        input: The input.
        target: The target.
        choices: The answer choices; none if the task generates.
        label: Index of the right choice; None if there is none.
        accepted: All accepted answers, the target first, if there is more than one.
    """

    row_id: str
    input: str
    target: str
    choices: tuple[str, ...] = ()
    label: int | None = None
    accepted: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The accepted answers, or the target if it is the only one."""
        return self.accepted or (self.target,)


@dataclass(frozen=True)
class ExpertSpec(Record):
    """Description of an expert: what is needed to load, verify and rebuild it.

    Attributes:
        id: Id of the expert: of the task that it is trained on, or a name.
        kind: One of `models.expert_kinds.KINDS`.
        base: Fingerprint of the base that it was trained on.
        paths: Paths of the parameters that it owns.
        datasets: Datasets that it was trained on, on which it is never zero-shot.
        steps: Steps that it was trained for.
        recipe: How it was trained.
    """

    id: str
    kind: str
    base: str
    paths: tuple[str, ...]
    datasets: tuple[str, ...]
    steps: int
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expert:
    """A trained expert.

    Attributes:
        spec: Its description.
        params: The parameters that it owns.
    """

    spec: ExpertSpec
    params: Params

    def to_pandas(self) -> Any:
        """Returns a DataFrame of one line, the expert's description."""
        return to_frame([self.spec])

    def __repr__(self) -> str:
        return f"Expert({self.spec.id!r}, kind={self.spec.kind!r}, steps={self.spec.steps})"


@dataclass(frozen=True, repr=False)
class Keys:
    """An expert's embedded training inputs, which routers compare queries with.

    Attributes:
        vectors: Embeddings of the texts, [N, D].
        texts: The texts.
        embedder: Name of the embedder, with its fingerprint.
        text_format: What of an example was embedded.
        made_of: The vocabulary, and the rows of every task, by their digests; none if it is not known.
    """

    vectors: Embeddings
    texts: tuple[str, ...]
    embedder: str
    text_format: str
    made_of: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Keys({len(self.texts)} texts, {self.embedder!r}, {self.text_format!r})"


@dataclass(frozen=True)
class Gates:
    """What was trained beside an expert to say which tokens are its own.

    Attributes:
        vectors: Path of a projection -> [L, I].
        checksum: That of the expert's parameters.
        recipe: How they were trained.
    """

    vectors: Mapping[str, Any]
    checksum: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Selection(Record):
    """The experts that a router chose for one task.

    Attributes:
        task: Id of the task.
        router: Name of the router.
        weights: Expert id -> weight; the weights sum to 1.
        votes: Expert id -> number of votes, most first.
        queries: Row ids of the queries that voted.
        nearest: Per query, the expert that won it and its similarity.
        embedder: What embedded queries and keys, with its type; empty if none did.
        rows: Digest of the queries' texts, and of the vocabulary; empty if the router reads none.
    """

    task: str
    router: str
    weights: Mapping[str, float]
    votes: Mapping[str, int]
    queries: tuple[str, ...]
    nearest: tuple[tuple[str, float], ...] = ()
    embedder: str = ""
    rows: str = ""

    def __repr__(self) -> str:
        weights = {expert: round(weight, 4) for expert, weight in self.weights.items()}
        return f"Selection({self.task!r}, {self.router!r}, {weights})"


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task's rows with one method.

    Attributes:
        task: Id of the task.
        method: "base", "multitask", "roe", …, or an expert's id.
        row_ids: Ids of the rows.
        scores: Per row, the log-likelihoods of the choices in nats.
        predictions: Per row, the index of the best choice, the first of equals.
        labels: Per row, the index of the right choice.
        seen: Whether the method was trained on this dataset, so that the scores are not zero-shot.
        tied: Per row, how many choices share the best score, where `scores` are not kept; default: one.
    """

    task: str
    method: str
    row_ids: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    predictions: tuple[int, ...]
    labels: tuple[int, ...]
    seen: bool = False
    tied: tuple[int, ...] = ()
