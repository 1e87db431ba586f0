"""Cases of `benchmarks.slices`: fixed work on fixed slices, ours and T5X's, that figures can be compared on.

All are of T5 1.1 XL in bfloat16 with dropout 0.1, and of MiniLM. They change only if what is to be compared
changes: a recipe's own batches follow what memory holds, these do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import t5x_step
from elm_jax.aot.program import Program
from elm_jax.models.sizes import find_config
from elm_jax.planning import program_specs as works
from elm_jax.planning.program_specs import (
    EmbeddingProgramSpec,
    GenerationProgramSpec,
    ProgramSpec,
    ScoringProgramSpec,
    TrainingProgramSpec,
)
from elm_jax.scoring import buckets
from elm_jax.training.batches import Shape
from elm_jax.training.config import TrainConfig, replace_fields
from elm_jax.training.programs import GroupPlan, Layout

T5X_BUILD = "benchmarks.slice_cases.build_t5x"
STEP = ("accumulate", "update")
WHOLE_STEP = ("train_step",)  # of a batch that has all rows of its steps


@dataclass(frozen=True)
class Case:
    """A program, or two that run one after the other, on a slice.

    Attributes:
        name: of the work and the slice, as `full/v4-8`; T5X's ends in `/t5x`.
        what: in words.
        slice: the slice's name.
        mesh: sizes by axis.
        build: what makes the programs in the compiler's process.
        told: what it makes them of.
        programs: by name, in the order in which they run; their seconds add up.
        work: ours, whose mathematics the FLOPs of both sides are.
        tokens: of one call, on all devices together.
    """

    name: str
    what: str
    slice: str
    mesh: Mapping[str, int]
    build: str
    told: Mapping[str, Any]
    programs: tuple[str, ...]
    work: ProgramSpec
    tokens: int

    @property
    def side(self) -> str:
        """Whose program it is."""
        return "T5X" if self.build == T5X_BUILD else "ours"


def cases() -> list[Case]:
    """Returns all cases, T5X's after ours for the same work."""
    found: list[Case] = []
    for slice_name, devices, rows in (
        ("v4-8", 4, 6),
        ("v4-8", 4, 24),
        ("v5p-8", 4, 12),
        ("v5e-16", 16, 3),
    ):
        found += _full(slice_name, devices, rows)
    one = {"fsdp": 1}
    found += [
        _training("alone/v5e-1", "prompt expert alone, 6 x (256 + 40)", "v5e-1", one, 1, (6, 256, 40, 1)),
        _training("group_8/v5e-1", "8 prompt experts, 6 x (256 + 40)", "v5e-1", one, 8, (6, 256, 40, 3)),
        _training(
            "group_32/v4-8", "32 prompt experts, 12 x (512 + 64)", "v4-8", {"expert": 4}, 32, (48, 512, 64, 4)
        ),
    ]
    config, shape = find_config("xl", dtype="bfloat16"), buckets.BucketShape(256, 64, 64)
    what = "scoring, 24 prompts of 256, 4 choices of 16"
    work: ProgramSpec = ScoringProgramSpec("score", config, "stack", shape, 24, experts=38)
    scoring = _case("scoring/v5e-1", f"{what}, 38 experts", "v5e-1", work, 24 * (256 + 64))
    told = {"program": "score_batch", "rows": 24 * 4, "prompt": 256, "target": 16}
    work = GenerationProgramSpec("generate", config, "stack", 32, 256, 64, experts=38)
    return [
        *found,
        scoring,
        _t5x(scoring, f"{what}, no expert", told),
        _case(
            "generation/v5e-1",
            "answers of 64 tokens to 32 prompts of 256, 38 experts",
            "v5e-1",
            work,
            32 * 64,
        ),
        _case(
            "minilm/v5e-1",
            "MiniLM in bfloat16, 256 texts of 256",
            "v5e-1",
            EmbeddingProgramSpec("embed", None, 256, 256, dtype="bfloat16"),
            256 * 256,
        ),
    ]


def build_t5x(devices: Sequence[Any], sizes: Mapping[str, int], told: Mapping[str, Any]) -> list[Program]:
    """Returns a program of T5X's; called in the compiler's process. T5X's partitioner makes the mesh."""
    arguments = dict(told)
    return [getattr(t5x_step, arguments.pop("program"))(devices, **arguments)]


def _full(slice_name: str, devices: int, rows: int) -> list[Case]:
    """Returns the whole step of one batch of a full expert, ours and T5X's."""
    name, what = f"full/{slice_name}/{rows}", f"full, Adafactor, {rows} x (512 + 128) a device"
    ours = _training(
        name,
        what,
        slice_name,
        {"fsdp": devices},
        1,
        (rows * devices, 512, 128, 1),
        kind="full",
        optimizer="adafactor",
        z_loss=1e-4,
    )
    return [ours, _t5x(ours, what, {"program": "train_step", "rows": rows, "prompt": 512, "target": 128})]


def _training(
    name: str,
    what: str,
    slice_name: str,
    mesh: Mapping[str, int],
    slots: int,
    shape: tuple[int, int, int, int],
    **settings: Any,
) -> Case:
    """Returns a step: the gradient of one batch, and the update of the experts.

    One expert has its whole step in the batch. Those of a group have parts of theirs in it.
    """
    rows, batch = mesh.get("fsdp", 1) * mesh.get("expert", 1), Shape(*shape)
    work = TrainingProgramSpec(
        find_config("xl", dtype="bfloat16", dropout_rate=0.1),
        GroupPlan(replace_fields(TrainConfig(), settings), slots),
        Layout(slots, mesh.get("expert", 1), rows),
        batch,
    )
    programs = WHOLE_STEP if slots == 1 else STEP
    return _case(name, what, slice_name, work, batch.tokens, mesh=mesh, programs=programs)


def _case(
    name: str,
    what: str,
    slice_name: str,
    work: ProgramSpec,
    tokens: int,
    *,
    mesh: Mapping[str, int] | None = None,
    programs: tuple[str, ...] = (),
) -> Case:
    chosen = programs or (getattr(work, "name", ""),)
    told = works.to_json(work)
    return Case(name, what, slice_name, mesh or {"fsdp": 1}, works.BUILD_FUNCTION, told, chosen, work, tokens)


def _t5x(ours: Case, what: str, told: Mapping[str, Any]) -> Case:
    """Returns T5X's program for the work of one of ours."""
    names = {"train_step": "T5X's train step", "score_batch": "T5X's score_batch"}
    return Case(
        f"{ours.name}/t5x",
        what,
        ours.slice,
        ours.mesh,
        T5X_BUILD,
        told,
        (names[told["program"]],),
        ours.work,
        ours.tokens,
    )
