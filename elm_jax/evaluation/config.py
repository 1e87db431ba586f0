"""Configuration: how an evaluation is done, and how its cells are scored."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from elm_jax import ranges
from elm_jax.evaluation.expert_stacks import MAX_STACKED_EXPERTS
from elm_jax.experts import key_texts
from elm_jax.records import OnBadRow
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.scoring.scorer import BATCH_TOKENS


@dataclass(frozen=True)
class EvaluationConfig:
    """How methods are compared on tasks.

    Attributes:
        methods: how experts are chosen and how several become one, as `evaluation.methods` reads it: "roe",
            "roe:experts=3+average". The base is always among them. Default: `default_methods`.
        experts: ids; default: all of the library.
        queries: inputs of a task that a router looks at (Q of Jang et al. 2023, arXiv 2302.03202).
        merged: retrieved experts that the default methods average.
        batch_tokens: that a device scores at once.
        normalization: of a choice's score: the "sum" of its tokens' log-probabilities in nats, as rank
            classification of T0 has it, or another that `elm_jax.scoring.rank` lists: "mean", "length:0.5",
            "characters", "bytes", "calibrated", "pmi:PREMISE", "contextual".
        oracle: whether every expert works on every task, and the best in hindsight are among the methods.
        seen: whether experts may be evaluated on datasets that they were trained on; results are then marked.
        strict: whether a group is refused if rows of one of its datasets are missing. Default: those that are
            there are evaluated, and the others named.
        truncate: characters of a value that a template writes; 0 is no limit. Default: as the run has it.
        faithful: the original's ways with data, by name or "all". Default: as the run has it.
        on_bad_row: whether a row that cannot be used is left out, "leave-out", or an error, "refuse".
            Default: as the run has it.
        mesh: axis -> size of a mesh of this process's devices, over which batches are split. Default: each
            accelerator scores rows of its own.
        dtype: of the base, "float32" or "bfloat16". Default: as the run has it.
        name: of the evaluation, whose report then lies in `reports/NAME`. Default: it lies in `report`, and
            an earlier one with other results is kept in `reports` under its time.
        trackers: names of trackers that the accuracies go to, such as "wandb".
        wait: whether to wait while another process evaluates in the run's directory.
    """

    methods: Sequence[str] | None = None
    experts: Sequence[str] | None = None
    queries: int = field(default=key_texts.QUERIES_PER_TASK, metadata=ranges.whole(1))
    merged: int = field(default=3, metadata=ranges.whole(1))
    batch_tokens: int = field(default=BATCH_TOKENS, metadata=ranges.whole(1))
    normalization: str = "sum"
    oracle: bool = False
    seen: bool = False
    strict: bool = False
    truncate: int | None = field(default=None, metadata=ranges.whole(0))
    faithful: str | Sequence[str] | None = None
    on_bad_row: OnBadRow | None = None
    mesh: Mapping[str, int] | None = None
    dtype: str | None = None
    name: str | None = None
    trackers: Sequence[str] = ()
    wait: bool = False

    __post_init__ = ranges.check


@dataclass(frozen=True)
class ScoringOptions:
    """How cells are scored or answered.

    Attributes:
        batch_tokens: that a device works on at once.
        normalization: of a choice's score; see `EvaluationConfig`.
        experts_at_once: experts that are held together, whose rows share batches.
        gates: scorers that are gates, by name.
        composites: scorers that are merged experts, whose names stand for all that they are made of.
    """

    batch_tokens: int = BATCH_TOKENS
    normalization: str = "sum"
    experts_at_once: int = MAX_STACKED_EXPERTS
    gates: Mapping[str, GateSpec] = field(default_factory=dict)
    composites: Collection[str] = ()

    @property
    def content_addressed(self) -> tuple[str, ...]:
        """The scorers whose names stand for all that their scores depend on."""
        return (*self.gates, *self.composites)
