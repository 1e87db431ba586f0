"""Expert layers: what the parameters of an expert do to the activations of the frozen base.

The tree of an expert has the base's structure: what acts on a parameter has that parameter's path, and the
layers of a stack share one array with a leading axis L. With P the path of a projection (`query`, `key`,
`value`, `out` of an attention, `wi_0`, `wi_1` or `wi`, and `wo` of `mlp`), of I inputs and O outputs:

    kind        leaves                                      shape           computes
    bottleneck  {stack}/layers/{block}_adapter/down/kernel  [L, D, R]       y = x + up(gelu(down(x))), after
                {stack}/layers/{block}_adapter/down/bias    [L, R]          the block and before its residual
                {stack}/layers/{block}_adapter/up/kernel    [L, R, D]
                {stack}/layers/{block}_adapter/up/bias      [L, D]
                every norm's scale, at its own path         [L, D] or [D]   in place of the base's
    lora        P/lora_a                                    [L, I, R]       y = x kernel + (x lora_a) lora_b
                P/lora_b                                    [L, R, O]
    gates       P/input_gate, beside LoRA, which is frozen  [L, I]          y = x kernel + σ(x input_gate)
                                                                                (x lora_a) lora_b
    dora        as lora, and P/dora_magnitude               [L, O]          lora's times dora_magnitude / n, n
                                                                            the norms of its whole kernel
    vera        P/lambda_d                                  [L, R]          y = x kernel + (((x vera_a) *
                P/lambda_b                                  [L, O]          lambda_d) vera_b) * lambda_b
                vera/vera_a and vera/vera_b, frozen         [I, R], [R, O]  of the largest I and O
    ia3         P/ia3_out, at every key and value           [L, O]          y = (x kernel) * ia3_out
                P/ia3_in, at every wo                       [L, I]          y = (x * ia3_in) kernel
    prompt      encoder/prompt/prompt/prompt                [P, D]          before the prompt's embeddings
    full        every parameter of the base                 the base's      in place of the base's

LoRA's factor alpha / r is part of `lora_b`: readers of files multiply by it, and writers set alpha = r.
Experts of one kind are stacked into leaves [E, L, ...]. Then every row selects its own, or every
token weighs them (`gating`). Initial values are in `expert_kinds`.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from elm_jax.aot.program import traced_platform
from elm_jax.axes import Array, ExpertOfRow, ExpertOfSegment
from elm_jax.errors import UserError
from elm_jax.models import all_experts, gating, magnitudes, paths, products, sharding
from elm_jax.models.all_experts import PerExpertParams, SegmentExperts
from elm_jax.models.components import ComponentGate, component_delta
from elm_jax.models.expert_kinds import GATES, KINDS, VERA, init_gates
from elm_jax.records import Params

MAX_UNROLLED_SELECTS = 8  # segments of a row whose vectors are selected one after the other


class LayeredExperts(NamedTuple):
    """All layers of stacked experts, and which of the experts every row has.

    Attributes:
        params: Leaves [E, L, …]; None if there is one expert for all rows.
        expert_of_row: [B], or `SegmentExperts`; likewise.
        shared: What all layers share, leaves [E, …] or those of one expert: VeRA's matrices.
    """

    params: Params | None
    expert_of_row: Any
    shared: Params | None = None


class PerSegmentParams(NamedTuple):
    """A parameter of the experts of G segments of packed rows.

    Attributes:
        value: [B, G, …].
        segments: The segment of every token, [B, N].
    """

    value: Array
    segments: Any


class UngatheredLayer(NamedTuple):
    """A layer of stacked experts that are not gathered.

    Attributes:
        layer: Its number.
        joined: Copies of its kernels, as `PerExpertParams` have them; None for other parameters.
    """

    layer: Int[Array, ""]
    joined: Any


class GroupedKernel(NamedTuple):
    """A kernel of stacked experts, for a product over rows sorted by expert.

    Attributes:
        kernel: [E, …, I, O].
        expert_of_row: [B], which `gather_row_experts` adds.
    """

    kernel: Array
    expert_of_row: Any = None


class TransposedKernel(NamedTuple):
    """A kernel of more inputs than outputs, for every row, with the inputs last.

    A TPU fills up the last axis to 128, so that a narrow one there takes twice its bytes and more.

    Attributes:
        value: [B, O, I], of all layers [L, B, O, I].
    """

    value: Array


def init_expert(
    kind: str, key: jax.Array, base: Params, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns a new expert.

    Args:
        kind: The name of a kind in `expert_kinds.KINDS`, or `expert_kinds.GATES`.
        key: The key of JAX that initial values are drawn with.
        base: The base's parameters.
        options: Options of the kind; None as a value means its default.

    Raises:
        UserError: If there is no such kind or option.
    """
    if kind not in (*KINDS, GATES):
        raise UserError(f"Expected a kind of expert, got {kind!r}. Fix: name one of {', '.join(KINDS)}.")
    make = init_gates if kind == GATES else KINDS[kind]
    own = {name: value for name, value in (options or {}).items() if value is not None}
    known = list(inspect.signature(make).parameters)[2:]
    for name in own:
        if name not in known:
            fix = f"name {' or '.join(known)}" if known else "leave it out"
            raise UserError(f"Expected an option of {kind!r} experts, got {name!r}. Fix: {fix}.")
    return make(key, base, **own)


def make_neutral_expert(expert: Params, base: Params) -> dict[str, Any]:
    """Returns an expert with the shapes of `expert` that does not change the base's logits.

    Its adapters, LoRA, soft prompts and VeRA's vectors are zero, its (IA)³ vectors are one, its magnitudes
    are the base's norms, and the rest equals the base. With it, rows of the base can share a batch with rows
    of experts.
    """
    of_base = paths.flatten(base)

    def neutral_value(path: str, value: Array) -> Array:
        if path in of_base:
            return of_base[path]
        if path.endswith(magnitudes.MAGNITUDE_LEAF):
            norms = magnitudes.column_norms(of_base[f"{path.rpartition('/')[0]}/kernel"])
            return np.asarray(norms, value.dtype) if isinstance(value, np.ndarray) else norms
        if path.startswith(f"{VERA}/"):
            return value
        # Not computed from its values, which may be NaN.
        return (np if isinstance(value, np.ndarray) else jnp).full_like(value, "/ia3_" in path)

    return paths.unflatten({path: neutral_value(path, v) for path, v in paths.flatten(expert).items()})


def split_base_and_expert(kind: str, base: Params, owned: Params | None) -> tuple[Params, Params | None]:
    """Returns the network's parameters and the expert beside them; a full expert replaces the base."""
    return (owned, None) if kind == "full" and owned is not None else (base, owned)


def prepare_stack(experts: Params | None, base: Params, stack: str) -> Params | None:
    """Returns the part of experts for a stack of the network, with what all its layers need computed once.

    Args:
        experts: One expert, or stacked ones; or what this has returned for both stacks.
        base: The parameters that the experts are beside.
        stack: "encoder" or "decoder".
    """
    part = get_child(experts, stack)
    if experts is None or part is None:
        return None
    part = magnitudes.resolve_magnitudes(part, base.get(stack, {}))
    return {**part, VERA: jax.lax.stop_gradient(experts[VERA])} if VERA in experts else part


def get_child(expert: Params | None, name: str) -> Params | None:
    """Returns the part of an expert below a name, or None if it owns nothing there."""
    return None if expert is None else expert.get(name)


def pair_with_segments(
    expert_of_row: ExpertOfRow | ExpertOfSegment | None, segments: Int[Array, "B N"] | None
) -> ExpertOfRow | SegmentExperts | None:
    """Joins the experts of segments with the segments of tokens; experts of whole rows stay unchanged."""
    if expert_of_row is None or expert_of_row.ndim == 1:
        return expert_of_row
    if segments is None:
        raise UserError(
            "Expected segment ids of rows whose segments have experts, got none. Fix: pass prompt_segments."
        )
    return SegmentExperts(expert_of_row, segments)


def replace_segments(rows: Any, segments: Int[Array, "B N"] | None) -> Any:
    """Returns `rows` of `split_by_layer` for other tokens of the same rows; None without segments."""
    if not isinstance(rows, LayeredExperts) or not isinstance(rows.expert_of_row, SegmentExperts):
        return None
    return rows._replace(expert_of_row=rows.expert_of_row._replace(segments=segments))


def split_by_layer(
    layers: Params | None,
    expert_of_row: ExpertOfRow | SegmentExperts | None,
    shared: Params | None = None,
    dtype: str = "float32",
) -> tuple[Any, Any]:
    """Prepares experts for a scan over layers, in a network that computes in a type.

    Returns:
        What is split along L, and what is the same for all layers: the arguments of `gather_row_experts`. One
        expert for all rows is split itself. Of stacked experts, [E, L, …], the indices of layers are split:
        with L as the first axis a scan would copy the stack. What all layers share is not split.
    """
    if layers is None or (expert_of_row is None and shared is None):
        return layers, expert_of_row
    if expert_of_row is None:
        return layers, LayeredExperts(None, None, shared)
    experts, count = jax.tree.leaves(layers)[0].shape[:2]
    index: Any = jnp.arange(count)
    if isinstance(expert_of_row, SegmentExperts) and all_experts.computes_all_experts(experts, expert_of_row):
        index = UngatheredLayer(index, jax.tree.map(partial(all_experts.join_kernels, dtype=dtype), layers))
    return index, LayeredExperts(layers, expert_of_row, shared)


def gather_row_experts(
    params: Any, rows: LayeredExperts | SegmentExperts | ExpertOfRow | None
) -> Params | None:
    """Gathers the expert of every row: [E, …] becomes [B, …].

    Keep stacks in the type that the network computes in, since gathering copies them.

    Args:
        params: Stacked experts, or what `split_by_layer` returned first.
        rows: The index of every row, or what `split_by_layer` returned second; None for one expert, which is
            returned unchanged.
    """
    if params is None or rows is None:
        return params
    if isinstance(rows, LayeredExperts) and rows.shared is not None:
        one = rows.expert_of_row is None
        own = params if one else gather_row_experts(params, rows._replace(shared=None))
        return _add_shared(own, gather_row_experts(rows.shared, rows.expert_of_row))
    tree, index, layer = (
        (rows.params, rows.expert_of_row, (params,))
        if isinstance(rows, LayeredExperts)
        else (params, rows, ())
    )

    if isinstance(params, UngatheredLayer):
        of_segments: Any = index

        def take(value: Array, joined: Array | None) -> PerExpertParams:
            whole = None if joined is None else sharding.gather_whole(joined)
            return PerExpertParams(sharding.take_layer(value, params.layer), whole, of_segments)

        return jax.tree.map(take, tree, params.joined)

    def gather(value: Array | GroupedKernel) -> Array | GroupedKernel | PerSegmentParams:
        if isinstance(value, GroupedKernel):
            return GroupedKernel(value.kernel[(slice(None), *layer)], index)
        value = jnp.asarray(value)
        if isinstance(index, SegmentExperts):
            return PerSegmentParams(
                sharding.gather_by_segment(value, index.expert_of_segment, *layer), index.segments
            )
        return value.at[(index, *layer)].get(mode="fill")  # an index too large gives NaN

    return jax.tree.map(gather, tree, is_leaf=lambda value: isinstance(value, GroupedKernel))


def gather_all_layers(part: Params, expert_of_row: ExpertOfRow) -> dict[str, Any]:
    """Gathers the experts of rows for a whole stack of the network: for one that is called many times.

    Args:
        part: The stacked experts' part for the stack, as `prepare_stack` returns it.
        expert_of_row: The index of every row.

    Returns:
        A part as of one expert for all rows: layers [L, B, …] and the rest [B, …].
    """

    def gather(value: Array) -> Array | TransposedKernel:
        layer = jnp.arange(value.shape[1])[:, None]
        own = jnp.asarray(value).at[(expert_of_row, layer)].get(mode="fill")  # an index too large gives NaN
        narrow = own.ndim == 4 and own.shape[2] > own.shape[3]
        return TransposedKernel(own.swapaxes(2, 3)) if narrow else own

    rest = {name: value for name, value in part.items() if name != paths.LAYER_STACK}
    layers = (
        {paths.LAYER_STACK: jax.tree.map(gather, part[paths.LAYER_STACK])}
        if paths.LAYER_STACK in part
        else {}
    )
    return {**(gather_row_experts(rest, expert_of_row) or {}), **layers}


def _add_shared(layer: Any, shared: Any) -> dict[str, Any]:
    """Returns a layer with VeRA's matrices beside each of its vectors."""
    added = shared if "lambda_d" in layer else {}
    inner = {name: _add_shared(v, shared) if isinstance(v, Mapping) else v for name, v in layer.items()}
    return {**inner, **added}


def mark_for_ragged_dot(stack: Params) -> dict[str, Any]:
    """Marks the kernels of stacked experts for the grouped product, which is not the default.

    A kernel [E, L, I, O] can be multiplied in two ways with equal results. By default the kernels of rows are
    gathered, [B, I, O], for one batched product: all tokens of a row use one expert, so nothing is sorted.
    In the grouped product rows are sorted by expert, and `jax.lax.ragged_dot` reads each kernel once.

    Measured on a CPU (benchmarks/mixed_experts.py), gathering costs a few percent of a call. The grouped
    product makes the call three times as long, since XLA expands it into a product of all rows with all E
    kernels. On accelerators this is reasoned, not measured. On GPUs JAX 0.10 has kernels for it only behind
    experimental flags. If it is native, as on TPUs, count the values that a down- and an up-projection, D to
    R to D, move for B rows of N tokens, all of different experts: gathering reads, writes and reads again,
    6 B D R; the grouped product reads 2 B D R, and sorting rows costs 4 B N D. So gathering moves less unless
    rows are shorter than the rank, N < R, as short answers are with a wide bottleneck.
    """

    def mark(value: Array) -> Array | GroupedKernel:
        return GroupedKernel(value) if value.ndim == 4 else value

    return jax.tree.map(mark, dict(stack))


def broadcast_to_tokens(value: Array | PerSegmentParams | PerExpertParams, like: Array) -> Array:
    """Broadcasts a vector to the shape of `like`, [B, …, D].

    Args:
        value: [D] for all rows, [B, D] by row, by segment or by expert.
        like: Activations.
    """
    if isinstance(value, PerExpertParams):
        own = sharding.gather_by_segment(value.value, value.rows.expert_of_segment)
        value = PerSegmentParams(own, value.rows.segments)
    if isinstance(value, PerSegmentParams):
        return _pick_by_segment(value, str(like.dtype)).reshape(like.shape)
    missing = like.ndim - value.ndim
    value = value.reshape(value.shape[: value.ndim - 1] + (1,) * missing + value.shape[-1:])
    # Broadcast before the cast, so that its gradient, a sum over tokens, is summed in its own type.
    return jnp.broadcast_to(value, like.shape).astype(like.dtype)


def _pick_by_segment(vectors: PerSegmentParams, dtype: str) -> Float[Array, "B N D"]:
    """Returns the vector of every token, that of its segment."""
    value = vectors.value
    if traced_platform() != "tpu" or value.shape[1] > MAX_UNROLLED_SELECTS:
        # A product that selects: float32 values must pass unrounded, also where products round them.
        with products.precision_context(dtype):
            return products.einsum("bng,bgd->bnd", _segment_mask(vectors).astype(dtype), value)
    picked = value[:, :1]
    for number in range(1, value.shape[1]):
        is_next = (vectors.segments == number + 1)[..., None]
        picked = jnp.where(is_next, value[:, number, None], picked)
    return jnp.broadcast_to(picked, (*vectors.segments.shape, value.shape[2])).astype(dtype)


def _segment_mask(params: PerSegmentParams) -> Bool[Array, "B N G"]:
    """Returns which segment of its row a token belongs to; padding counts to the first."""
    segment = jnp.maximum(params.segments - 1, 0)
    return segment[..., None] == np.arange(params.value.shape[1], dtype=np.int32)[None, None]


def _multiply_per_segment(x: Float[Array, "B N I"], kernel: PerSegmentParams) -> Float[Array, "B N O"]:
    """Multiplies every token by the kernel of its segment's expert.

    The kernels of a row are concatenated on their narrow side, G times as wide, and those of other segments
    are masked there.
    """
    mask, value = _segment_mask(kernel), kernel.value
    rows, segments, inputs, outputs = value.shape
    if inputs < outputs:
        wide = jnp.where(mask[..., None], x[:, :, None], 0).reshape(*x.shape[:2], -1)
        return products.einsum("bni,bio->bno", wide, value.reshape(rows, segments * inputs, outputs))
    all_segments = products.einsum("bni,bgio->bngo", x, value)
    return jnp.where(mask[..., None], all_segments, 0).sum(axis=2)


def multiply(
    x: Float[Array, "B *tokens I"],
    kernel: Array | GroupedKernel | PerSegmentParams | PerExpertParams | TransposedKernel,
) -> Float[Array, "B *tokens O"]:
    """Multiplies by a kernel: [I, O] for all rows, [B, I, O] by row, transposed, by segment, or grouped."""
    inputs, outputs = x.shape[-1], (*x.shape[:-1], -1)
    if isinstance(kernel, GroupedKernel):
        rows, stack = x.reshape(x.shape[0], -1, inputs), jnp.asarray(kernel.kernel, x.dtype)
        order = jnp.argsort(kernel.expert_of_row)
        sizes = jnp.bincount(kernel.expert_of_row, length=stack.shape[0]) * rows.shape[1]
        flat = jax.lax.ragged_dot(rows[order].reshape(-1, inputs), stack, sizes)
        return flat.reshape(*rows.shape[:2], -1)[jnp.argsort(order)].reshape(outputs)
    if isinstance(kernel, PerSegmentParams):
        return _multiply_per_segment(x.reshape(x.shape[0], -1, inputs), kernel).reshape(outputs)
    rows = x.reshape(x.shape[0], -1, inputs)
    if isinstance(kernel, PerExpertParams):
        return all_experts.multiply(rows, kernel).reshape(outputs)
    if isinstance(kernel, TransposedKernel):
        return products.multiply_rows("bni,boi->bno", rows, kernel.value).reshape(outputs)
    if kernel.ndim == 2:
        return products.multiply(x, kernel)
    return products.multiply_rows("bni,bio->bno", rows, kernel).reshape(outputs)


def apply_bottleneck(x: Float[Array, "B *tokens D"], adapter: Params | None) -> Float[Array, "B *tokens D"]:
    """Applies an adapter: `x + up(gelu(down(x)))`, with the tanh form of gelu; None changes nothing."""
    if adapter is None:
        return x

    down, up = adapter["down"], adapter["up"]

    def activate(inner: Array, bias: Array) -> Array:
        return jax.nn.gelu(inner + bias, approximate=True)

    if all_experts.is_per_expert_low_rank(down["kernel"], up["kernel"]):

        def between(inner: Array) -> Array:
            return activate(inner, all_experts.join_columns(down["bias"], inner))

        y = all_experts.multiply_low_rank_pair(x, down["kernel"], up["kernel"], between)
    else:
        inner = multiply(x, down["kernel"])
        y = multiply(activate(inner, broadcast_to_tokens(down["bias"], inner)), up["kernel"])
    return x + (y + broadcast_to_tokens(up["bias"], y))


@partial(jax.checkpoint, prevent_cse=False)  # else the vectors of all tokens would be stored for the gradient
def _scale(x: Float[Array, "B *tokens I"], vector: Any) -> Float[Array, "B *tokens I"]:
    return x * broadcast_to_tokens(vector, x)


def scale_inputs(x: Float[Array, "B *tokens I"], expert: Params | None) -> Float[Array, "B *tokens I"]:
    """Returns the inputs of a projection, scaled by (IA)³ if the expert has it."""
    if expert is None or "ia3_in" not in expert:
        return x
    return _scale(x, expert["ia3_in"])


def _open_gate(x: Float[Array, "B *tokens I"], gate: Any) -> Float[Array, "B *tokens 1"]:
    """Returns how much of a LoRA's change every token gets while its gate is trained: σ(x · gate)."""
    segments = isinstance(gate, PerSegmentParams | PerExpertParams)
    kernel = gate._replace(value=gate.value[..., None]) if segments else gate[..., None]
    return jax.nn.sigmoid(multiply(x, kernel))


def _slice_vera_matrix(kernel: Any, axis: int, size: int) -> Any:
    """Returns as much of VeRA's matrix as a projection uses."""
    if isinstance(kernel, PerSegmentParams):
        return kernel._replace(value=_slice_vera_matrix(kernel.value, axis, size))
    return jax.lax.slice_in_dim(jnp.asarray(kernel), 0, size, axis=axis % kernel.ndim)


def _multiply_lora(x: Float[Array, "B *tokens I"], a: Any, b: Any) -> Float[Array, "B *tokens O"]:
    if all_experts.is_per_expert_low_rank(a, b):
        return all_experts.multiply_low_rank_pair(x, a, b, lambda inner: inner)
    return multiply(multiply(x, a), b)


def apply_delta(
    x: Float[Array, "B *tokens I"], y: Float[Array, "B *tokens O"], expert: Params | None
) -> Float[Array, "B *tokens O"]:
    """Returns the outputs y of a projection of x, changed by LoRA, VeRA or (IA)³ if the expert has it."""
    if expert is not None and "gate" in expert:
        by_component = isinstance(expert["gate"], ComponentGate)
        y = y + (component_delta(x, expert) if by_component else gating.gated_delta(x, expert))
    elif expert is not None and "lora_a" in expert:
        delta = _multiply_lora(x, expert["lora_a"], expert["lora_b"])
        y = y + (_open_gate(x, expert["input_gate"]) * delta if "input_gate" in expert else delta)
    elif expert is not None and "lambda_d" in expert:
        inner = multiply(x, _slice_vera_matrix(expert["vera_a"], -2, x.shape[-1]))
        outer = multiply(
            _scale(inner, expert["lambda_d"]), _slice_vera_matrix(expert["vera_b"], -1, y.shape[-1])
        )
        y = y + _scale(outer, expert["lambda_b"])
    if expert is not None and "ia3_out" in expert:
        y = _scale(y, expert["ia3_out"])
    return y
