"""Program specs: descriptions of programs as plain values, from which the programs are built.

The compiler runs in another process, so a spec goes there as JSON and is built there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elm_jax.aot.program import Program
from elm_jax.models import bert_encoder, flops, gating, meshes, paths, shapes
from elm_jax.models.bert_encoder import BertConfig
from elm_jax.models.flops import AttentionSpans
from elm_jax.models.sizes import T5Config
from elm_jax.routing.embedding import embed_program
from elm_jax.routing.search import search_program
from elm_jax.scoring import buckets
from elm_jax.scoring.generator import generate_program
from elm_jax.scoring.scorer import score_program
from elm_jax.training import config as configs
from elm_jax.training.batches import Shape
from elm_jax.training.programs import GroupPlan, GroupPrograms, Layout, group_programs

BUILD_FUNCTION = "elm_jax.planning.program_specs.build"
MINILM = BertConfig(vocab_size=30522, emb_dim=384, num_heads=12, num_layers=6, mlp_dim=1536, positions=512)
"""The shape of all-MiniLM-L6-v2, the paper's embedder."""


@dataclass(frozen=True)
class TrainingProgramSpec:
    """The programs that train a group of experts, with batches of one shape."""

    type: ClassVar[str] = "training"
    network: T5Config
    plan: GroupPlan
    layout: Layout
    shape: Shape

    def programs(self, mesh: Mesh) -> list[Program]:
        """Returns all that the group runs on a mesh."""
        return self.group(mesh).all()

    def group(self, mesh: Mesh) -> GroupPrograms:
        """Returns the same by name."""
        return group_programs(self.network, self.plan, self.layout, self.shape, mesh=mesh)

    def model_flops(self, program: str) -> float | None:
        """Returns the FLOPs that a program's mathematics needs on all devices; None if it has few products.

        All tokens of the batch count, also padding.
        """
        if program not in ("accumulate", "train_step", "evaluate"):
            return None
        shape, config, kind = self.shape, self.network, self.plan.config.expert.kind
        base = shapes.base_shapes(config)
        expert = shapes.expert_shapes(config, kind, self.plan.config.expert.options)
        seen = AttentionSpans(float(shape.prompt), float(shape.target), float(shape.prompt * shape.folded))
        if program != "evaluate":
            cost = flops.training_flops(config, kind, base, expert, seen)
        else:
            cost = flops.forward_flops(config, base, {} if kind == "full" else expert, seen)
        return cost.total(shape.rows * shape.prompt, shape.rows // shape.folded * shape.target)


@dataclass(frozen=True)
class ScoringProgramSpec:
    """A program that scores a batch.

    Attributes:
        name: the program's name.
        network: the base.
        mode: "stack" for a stack of experts, "full" for a full expert, "gate" for a gated library.
        shape: the shape of the batch's prompts and tries.
        rows: the rows of the batch on all devices.
        kind: the kind of the experts.
        options: the options of that kind.
        experts: how many experts are in the stack or behind the gate.
    """

    type: ClassVar[str] = "scoring"
    name: str
    network: T5Config
    mode: str
    shape: buckets.BucketShape
    rows: int
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)
    experts: int = 1

    def programs(self, mesh: Mesh) -> list[Program]:
        """Returns the program on a mesh."""
        found = score_program(
            self.network,
            shapes.base_shapes(self.network),
            self.shape,
            self.rows,
            experts=expert_shapes_of(self),
            stacked=self.mode == "stack",
            mesh=mesh,
        )
        return [replace(found, name=self.name)]

    def model_flops(self, program: str) -> float | None:
        """Returns the same as that of `TrainingWork`, of a forward pass."""
        config, (prompt, nodes, _) = self.network, self.shape
        own = {} if self.mode == "full" else shapes.expert_shapes(config, self.kind, self.options)
        seen = AttentionSpans(float(prompt), float(nodes), float(prompt))
        cost = flops.forward_flops(config, shapes.base_shapes(config), own, seen)
        return cost.total(self.rows * prompt, self.rows * nodes)


@dataclass(frozen=True)
class GenerationProgramSpec:
    """A program that generates answers token by token; fields as in `ScoringProgramSpec`."""

    type: ClassVar[str] = "generation"
    name: str
    network: T5Config
    mode: str
    rows: int
    prompt: int
    length: int
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)
    experts: int = 1

    def programs(self, mesh: Mesh) -> list[Program]:
        """Returns the program on a mesh: it encodes the prompts, then takes a step for every token."""
        found = generate_program(
            self.network,
            shapes.base_shapes(self.network),
            self.rows,
            self.prompt,
            self.length,
            experts=expert_shapes_of(self),
            stacked=self.mode == "stack",
            mesh=mesh,
        )
        return [replace(found, name=self.name)]

    def model_flops(self, program: str) -> float | None:
        """Returns None: a step of decoding waits for memory, not for products."""
        return None


@dataclass(frozen=True)
class EmbeddingProgramSpec:
    """A program that embeds texts with the run's T5 or, if there is no network, with MiniLM."""

    type: ClassVar[str] = "embedding"
    name: str
    network: T5Config | None
    rows: int
    length: int
    dtype: str = "float32"  # of MiniLM's products

    def programs(self, mesh: Mesh) -> list[Program]:
        """Returns the program, on the first device alone, as engines run it."""
        network = self.network or replace(MINILM, dtype=self.dtype)
        if isinstance(network, BertConfig):
            params = bert_encoder.param_shapes(network)
        else:
            params = shapes.base_shapes(network)
        one = meshes.make_mesh(list(mesh.devices.flat)[:1])
        found = embed_program(network, (params, []), self.rows, self.length, mesh=one)
        return [replace(found, name=self.name)]

    def model_flops(self, program: str) -> float | None:
        """Returns the FLOPs of a forward pass of the encoder on its one device."""
        if self.network is None:
            net, length = MINILM, self.length
            layer = 4 * net.emb_dim**2 + 2 * net.emb_dim * net.mlp_dim + 2 * net.emb_dim * length
            return 2.0 * net.num_layers * layer * self.rows * length
        seen = AttentionSpans(float(self.length))
        encoder = {"encoder": shapes.base_shapes(self.network)["encoder"]}
        return flops.forward_flops(self.network, encoder, {}, seen).total(self.rows * self.length, 0)


@dataclass(frozen=True)
class SearchProgramSpec:
    """A program that searches the keys that are nearest to queries."""

    type: ClassVar[str] = "search"
    name: str
    queries: int
    keys: int
    width: int
    k: int = 1

    def programs(self, mesh: Mesh) -> list[Program]:
        """Returns the program, on the first device alone, as engines run it."""
        one = meshes.make_mesh(list(mesh.devices.flat)[:1])
        found = search_program(
            jax.ShapeDtypeStruct((self.queries, self.width), jnp.float32),
            jax.ShapeDtypeStruct((self.keys, self.width), jnp.float32),
            jax.ShapeDtypeStruct((self.keys,), jnp.bool_),
            self.k,
            mesh=one,
        )
        return [replace(found, name=self.name)]

    def model_flops(self, program: str) -> float | None:
        """Returns None: a search waits for memory, not for products."""
        return None


ProgramSpec = (
    TrainingProgramSpec
    | ScoringProgramSpec
    | GenerationProgramSpec
    | EmbeddingProgramSpec
    | SearchProgramSpec
)
SPEC_TYPES: Mapping[str, type[ProgramSpec]] = {
    each.type: each
    for each in (
        TrainingProgramSpec,
        ScoringProgramSpec,
        GenerationProgramSpec,
        EmbeddingProgramSpec,
        SearchProgramSpec,
    )
}
_TUPLES: Mapping[tuple[str, str], Any] = {
    ("training", "layout"): Layout,
    ("training", "shape"): Shape,
    ("scoring", "shape"): buckets.BucketShape,
}


def to_json(work: ProgramSpec) -> dict[str, Any]:
    """Returns a work as JSON has it."""
    return {"type": work.type, **asdict(work)}


def from_json(value: Mapping[str, Any]) -> ProgramSpec:
    """Returns the work that `to_json` was called on."""
    kind = SPEC_TYPES[value["type"]]
    values: dict[str, Any] = {each.name: value[each.name] for each in fields(kind)}
    if values.get("network") is not None:
        values["network"] = _network(values["network"])
    if "plan" in values:
        plan = dict(values["plan"])
        values["plan"] = GroupPlan(configs.from_json(plan.pop("config")), **plan)
    for name in values:
        if (kind.type, name) in _TUPLES:
            values[name] = _TUPLES[kind.type, name](*values[name])
    return kind(**values)


def _network(fields: Mapping[str, Any]) -> T5Config:
    """Returns a network of its fields; JSON has lists for tuples, and a network with a list has no hash."""
    plain: Any = {**fields, "mlp_activations": tuple(fields["mlp_activations"])}
    return T5Config(**plain)


def build(devices: Sequence[Any], sizes: Mapping[str, int], value: Mapping[str, Any]) -> list[Program]:
    """Returns the programs of a work on a mesh of these devices; called in the compiler's process.

    A mesh of fewer devices than there are takes the first of them: a process scores on its own.
    """
    count = 1
    for size in sizes.values():
        count *= size
    mesh = meshes.make_mesh(list(devices)[:count], **({"data": 1} | dict(sizes)))
    return from_json(value).programs(mesh)


def expert_shapes_of(work: ScoringProgramSpec | GenerationProgramSpec) -> Any:
    """Returns the shapes of the experts beside the base; None where a full one stands in its place."""
    if work.mode == "full":
        return None
    if work.mode == "gate":
        return _gate_shapes(work)
    one = shapes.expert_shapes(work.network, work.kind, work.options)
    return shapes.stack_shapes(one, work.experts, kernel_dtype=work.network.dtype)


def _gate_shapes(work: ScoringProgramSpec | GenerationProgramSpec) -> Any:
    """Returns the shapes of a gate over LoRA experts, each known by one direction at every projection."""
    options = work.options if work.kind == "lora" else {}
    stack = shapes.stack_shapes(shapes.expert_shapes(work.network, "lora", options), work.experts)

    def made(stack: Any) -> Any:
        flat = paths.flatten(stack)
        prototypes = {
            path.removesuffix("/lora_a"): leaf[..., :1]
            for path, leaf in flat.items()
            if path.endswith("lora_a")
        }
        return gating.make_gated_tree(stack, prototypes, k=1)

    return jax.eval_shape(made, stack)
