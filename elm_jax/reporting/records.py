"""Records of a report: one frozen class for each kind of row in `report.json`.

The fields are the keys of the file, in its order. `task` is a dataset and `prompt` one of its templates.
Accuracies, means and differences are fractions; `low` and `high` are the ends of 95 % intervals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar

from elm_jax.frames import to_frame
from elm_jax.schema import Form


class ReportForm(Form):
    """How records of a report are read: strictly, and no field is unknown."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {**Form.__pydantic_config__, "extra": "forbid"}


@dataclass(frozen=True)
class PromptResult(ReportForm):
    """One method on one prompt of a dataset.

    Attributes:
        method: its name.
        task: the dataset.
        prompt: the template.
        n: rows.
        accuracy: the share of right rows.
        low: the lower end of Wilson's interval.
        high: the upper end.
        chance: the accuracy of guessing.
        seen: whether the method was trained on this dataset, so that the result is not zero-shot.
        tied: rows whose best choices score the same, which count 1 / number of them.
        left_out: rows of the task that could not be used; `TaskRows` has the reasons.
    """

    method: str
    task: str
    prompt: str
    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    seen: bool
    tied: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class TaskRows(ReportForm):
    """What became of the rows of one prompt.

    Attributes:
        task: the dataset.
        prompt: the template.
        read: rows that were read.
        used: those that are scored or answered.
        left_out: reason -> rows that are left out for it.
        cut: used rows with a value that the template's limit of characters cut.
    """

    task: str
    prompt: str
    read: int
    used: int
    left_out: Mapping[str, int]
    cut: int


@dataclass(frozen=True)
class EqualChoices(ReportForm):
    """Rows of one prompt whose choices the model cannot tell apart, or cannot choose between.

    Attributes:
        task: the dataset.
        prompt: the template.
        n: rows.
        equal: rows of which two choices have the same tokens, so that they tie whatever scores them.
        example: two such choices.
        single: rows with one choice, which are left out.
    """

    task: str
    prompt: str
    n: int
    equal: int
    example: tuple[str, ...]
    single: int


@dataclass(frozen=True)
class DatasetResult(ReportForm):
    """One method on one dataset, over all of its prompts.

    Attributes:
        method: its name.
        task: the dataset.
        n: distinct rows.
        accuracy: the mean over prompts.
        low: the lower end of its interval, at the effective number of rows.
        high: the upper end.
        chance: the mean accuracy of guessing.
        prompts: how many there are.
        lowest: the accuracy of the worst prompt.
        median: the median over prompts.
        highest: the accuracy of the best prompt.
        deviation: the standard deviation over prompts; 0 for a single one.
        seen: whether the method was trained on this dataset.
    """

    method: str
    task: str
    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    prompts: int
    lowest: float
    median: float
    highest: float
    deviation: float
    seen: bool


@dataclass(frozen=True)
class MethodMean(ReportForm):
    """One method over all datasets that it did not see; its means are None if it saw all of them.

    Attributes:
        method: its name.
        labels: which labels of the tasks it saw: "none", those of training ("seen"), a "few", or all, in
            "hindsight".
        macro: the mean over datasets of the mean over prompts.
        low: the lower end of the macro mean's interval.
        high: the upper end.
        n: distinct rows.
        micro: the mean over all prompts.
        micro_low: the lower end of the micro mean's interval.
        micro_high: the upper end.
        gap_share: the share of the way from the baseline to the oracle.
        gap_low: the lower end of its bootstrap interval.
        gap_high: the upper end.
        left_out: the datasets that it saw, which the means are without.
    """

    method: str
    labels: str
    macro: float | None
    low: float | None
    high: float | None
    n: int
    micro: float | None
    micro_low: float | None
    micro_high: float | None
    gap_share: float | None
    gap_low: float | None
    gap_high: float | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Comparison(ReportForm):
    """Two methods on the same rows: a paired bootstrap of macro means, and McNemar's exact test.

    Attributes:
        a: the one method.
        b: the other.
        difference: the macro mean of `a` minus that of `b`.
        low: the lower end of the bootstrap's interval.
        high: the upper end.
        p: the bootstrap's two-sided p.
        better_a: rows that `a` gets right under more prompts.
        better_b: rows that `b` gets right under more prompts.
        p_mcnemar: the two-sided p of McNemar's test.
        tasks: datasets that neither method saw.
        labels: the most that either method saw of the labels; see `MethodMean`.
        p_holm: `p`, corrected for all comparisons of the report (Holm 1979).
        p_mcnemar_holm: `p_mcnemar`, corrected alike.
        comparisons: how many the report has.
        over: "rows" if the difference is to hold for these very prompts, "prompts" if for prompts like them.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    better_a: int
    better_b: int
    p_mcnemar: float
    tasks: int
    labels: str
    p_holm: float
    p_mcnemar_holm: float
    comparisons: int
    over: str = field(default="rows", kw_only=True)


@dataclass(frozen=True)
class ChosenExperts(ReportForm):
    """What one router chose for one prompt of a dataset.

    Attributes:
        task: the dataset.
        prompt: the template.
        router: its name.
        expert: the expert with the largest weight.
        votes: the queries that voted for it.
        queries: how many there were.
        weights: the weight of every chosen expert; they sum to 1.
        voters: the votes for every expert, chosen or not.
        similarity: the mean similarity of the queries that voted for `expert` to their nearest key.
        rank: its place among all experts on these very rows, in hindsight; None if it was not scored.
        ranked: how many experts were scored.
    """

    task: str
    prompt: str
    router: str
    expert: str
    votes: int
    queries: int
    weights: Mapping[str, float]
    voters: Mapping[str, int]
    similarity: float | None
    rank: int | None
    ranked: int


@dataclass(frozen=True)
class ExpertResult(ReportForm):
    """One expert alone on one prompt of a dataset.

    Attributes:
        expert: its id.
        family: of the expert or of its dataset; None if neither has one.
        task: the dataset.
        prompt: the template.
        n: rows.
        accuracy: the share of right rows.
        low: the lower end of Wilson's interval.
        high: the upper end.
        seen: whether the expert was trained on this dataset.
    """

    expert: str
    family: str | None
    task: str
    prompt: str
    n: int
    accuracy: float
    low: float
    high: float
    seen: bool


@dataclass(frozen=True)
class MethodDescription(ReportForm):
    """What a method is.

    Attributes:
        method: its name in tables.
        router: with its options; None if that is not known.
        merge: with its options; None if the method merges nothing.
        labels: which labels of the tasks it saw; see `MethodMean`.
        note: one sentence for readers, or nothing.
    """

    method: str
    router: str | None = None
    merge: str | None = None
    labels: str = ""
    note: str = ""

    @property
    def router_name(self) -> str:
        """The router without its options; "" if there is none."""
        return (self.router or "").partition(":")[0]


@dataclass(frozen=True)
class GeneratedResult(ReportForm):
    """One method on one prompt that is answered in free text.

    Attributes:
        method: its name.
        task: the dataset.
        prompt: the template.
        n: rows.
        measure: the metric with its tokeniser.
        value: in percent, as are its ends.
        low: the lower end of a bootstrap's interval; None if the metric has none.
        high: the upper end.
        seen: whether the method was trained on this dataset.
    """

    method: str
    task: str
    prompt: str
    n: int
    measure: str
    value: float
    low: float | None
    high: float | None
    seen: bool


@dataclass(frozen=True)
class MethodAnswer(ReportForm):
    """A method's answer to one row.

    Attributes:
        prediction: the choice with the highest score, or what was written.
        right: whether that is the target, and no other choice scores as high.
        scores: of every choice, in nats; None for free text.
    """

    prediction: str
    right: bool
    scores: tuple[float, ...] | None


@dataclass(frozen=True)
class RowExample(ReportForm):
    """One row to look at.

    Attributes:
        task: the dataset.
        prompt: the template.
        row: its id.
        input: the prompt as the model reads it.
        choices: the answer choices; none for free text.
        target: the right answer.
        answers: method -> its answer.
    """

    task: str
    prompt: str
    row: str
    input: str
    choices: tuple[str, ...]
    target: str
    answers: Mapping[str, MethodAnswer]


@dataclass(frozen=True)
class MapPoints(ReportForm):
    """Points of the map that belong together.

    Attributes:
        name: of the expert whose keys they are, or of the dataset whose queries they are.
        x: places along the first axis.
        y: places along the second, one for each of `x`.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.y) or not all(map(isfinite, (*self.x, *self.y))):
            raise ValueError("points, each of two finite numbers,")


@dataclass(frozen=True)
class KeyMap(ReportForm):
    """Keys of experts and queries of tasks, in the plane of the two main components of the keys.

    Attributes:
        embedder: what embedded both.
        shares: of the variance of the keys that are drawn, for each of the two axes.
        keys: of every expert, or a sample of them.
        queries: of every dataset, or a sample of them.
        key_count: how many keys there are, drawn or not.
        query_count: how many queries there are.
    """

    embedder: str
    shares: tuple[float, ...]
    keys: tuple[MapPoints, ...]
    queries: tuple[MapPoints, ...]
    key_count: int
    query_count: int


@dataclass(frozen=True, repr=False)
class Report(ReportForm):
    """Everything a reader of results needs; `report.json` is this record, field by field.

    Attributes:
        rows: every method on every prompt.
        means: every method over all datasets.
        comparisons: pairs of methods.
        selections: what routers chose for each prompt.
        environment: versions, devices, seeds and times, JSON-like.
        tasks: every method on every dataset.
        matrix: every expert on every prompt; empty if not all were scored.
        methods: what each method is.
        generated: every method on prompts that are answered in free text.
        examples: some rows with what the methods answered.
        equal_choices: prompts with choices that no scorer can tell apart.
        task_rows: what became of the rows of every prompt.
        tied_with_best: methods that a paired test does not tell apart from the one of the highest macro mean,
            among those that saw no labels.
        key_map: where keys and queries lie; None where no router read any.
    """

    rows: tuple[PromptResult, ...]
    means: tuple[MethodMean, ...]
    comparisons: tuple[Comparison, ...]
    selections: tuple[ChosenExperts, ...]
    environment: Mapping[str, Any]
    tasks: tuple[DatasetResult, ...] = ()
    matrix: tuple[ExpertResult, ...] = ()
    methods: tuple[MethodDescription, ...] = ()
    generated: tuple[GeneratedResult, ...] = ()
    examples: tuple[RowExample, ...] = ()
    equal_choices: tuple[EqualChoices, ...] = ()
    task_rows: tuple[TaskRows, ...] = ()
    tied_with_best: tuple[str, ...] = ()
    key_map: KeyMap | None = None

    def to_pandas(self, table: str = "rows") -> Any:
        """Returns a DataFrame of one of the tables, such as "rows", "means", "comparisons" or "generated"."""
        return to_frame(getattr(self, table))

    def __repr__(self) -> str:
        datasets = {row.task for row in (*self.rows, *self.generated)}
        return f"Report({len(self.methods)} methods on {len(datasets)} datasets, {len(self.rows)} results)"
