"""Experts: small trees of parameters beside a frozen base, one kind for every way to own some.

A tree has the base's own structure, so whatever acts on a parameter lies at that parameter's path, and the
layers of a stack share one array with a leading axis L. With P the path of a projection (`query`, `key`,
`value`, `out` of an attention, `wi_0`, `wi_1` or `wi`, and `wo` of `mlp`), of I inputs and O outputs:

    kind        leaves                                      shape           acts as
    bottleneck  {stack}/layers/{block}_adapter/down/kernel  [L, D, R]       y = x + up(gelu(down(x))), after
                {stack}/layers/{block}_adapter/down/bias    [L, R]          the block and before its residual
                {stack}/layers/{block}_adapter/up/kernel    [L, R, D]
                {stack}/layers/{block}_adapter/up/bias      [L, D]
                every norm's scale, at its own path         [L, D] or [D]   in place of the base's
    lora        P/lora_a                                    [L, I, R]       y = x kernel + (x lora_a) lora_b
                P/lora_b                                    [L, R, O]
    ia3         P/ia3_out, at every key and value           [L, O]          y = (x kernel) * ia3_out
                P/ia3_in, at every wo                       [L, I]          y = (x * ia3_in) kernel
    full        every parameter of the base                 the base's      in place of the base's

LoRA's factor alpha / r is no part of a tree: a reader of files multiplies `lora_b` by it, a writer gives
alpha = r. Many experts of one kind are stacked into leaves [E, L, ...], and every row names its own; or every
token weighs them, as `gating` tells.

This file tells what a tree does to the rows that pass it; `kinds` has the fresh ones.
"""

import inspect
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from elm_jax.axes import Array, ExpertOfRow, ExpertOfSegment
from elm_jax.errors import UserError
from elm_jax.models import gating, paths, products, sharding
from elm_jax.models.kinds import KINDS
from elm_jax.records import Params


class Layers(NamedTuple):
    """The layers of stacked experts, leaves [E, L, …], and which of the experts every row has."""

    params: Params
    expert_of_row: Any  # [B], or `Segmented`


class Segmented(NamedTuple):
    """Which of the stacked experts every segment of a packed row has, and the segment of every token."""

    expert_of_segment: ExpertOfSegment
    segments: Int[Array, "B N"]  # 1 to G, 0 on padding


class Slotted(NamedTuple):
    """What the experts of G segments own, [B, G, …], for the tokens of packed rows."""

    value: Array
    segments: Any  # [B, N]


class Grouped(NamedTuple):
    """A kernel of every expert, [E, …, I, O], for a product over rows sorted by expert."""

    kernel: Array
    expert_of_row: Any = None  # [B], which `rows_of` adds


def init(kind: str, key: jax.Array, base: Params, **options: Any) -> dict[str, Any]:
    """Returns a fresh expert of a kind by name; an option of None is as good as none.

    Raises a UserError for a kind, or an option of it, that does not exist.
    """
    if kind not in KINDS:
        raise UserError(f"An expert kind is wanted, one of {', '.join(KINDS)}; {kind!r} came.")
    given = {name: value for name, value in options.items() if value is not None}
    known = list(inspect.signature(KINDS[kind]).parameters)[2:]
    for name in given:
        if name not in known:
            has = f"has {' and '.join(known)}" if known else "has none"
            raise UserError(f"An option of {kind!r} experts is wanted, which {has}; {name!r} came.")
    return KINDS[kind](key, base, **given)


def neutral(expert: Params, base: Params) -> dict[str, Any]:
    """Returns the expert of `expert`'s shape that leaves every logit of the base as it is.

    Its adapters and LoRA are zero, its (IA)³ vectors ones, and the rest is the base's; so rows of the base
    alone can share a batch with rows of experts.
    """
    of_base = paths.flatten(base)

    def changing_nothing(path: str, value: Array) -> Array:
        if path in of_base:
            return of_base[path]
        # Not made of its values, which may be no numbers, but an array as they are.
        return (np if isinstance(value, np.ndarray) else jnp).full_like(value, "/ia3_" in path)

    return paths.unflatten({path: changing_nothing(path, v) for path, v in paths.flatten(expert).items()})


def place(kind: str, base: Params, owned: Params | None) -> tuple[Params, Params | None]:
    """Returns what the network takes: its parameters, and the expert that stands beside them."""
    return (owned, None) if kind == "full" and owned is not None else (base, owned)


def child(expert: Params | None, name: str) -> Params | None:
    """Returns the part of an expert below a name, or None where it owns nothing there."""
    return None if expert is None else expert.get(name)


def segmented(
    expert_of_row: ExpertOfRow | ExpertOfSegment | None, segments: Int[Array, "B N"] | None
) -> ExpertOfRow | Segmented | None:
    """Joins the experts of segments with the segments of tokens; experts of whole rows stay as they are."""
    if expert_of_row is None or expert_of_row.ndim == 1:
        return expert_of_row
    if segments is None:
        raise UserError("Experts of segments want rows with segment ids, but none came.")
    return Segmented(expert_of_row, segments)


def of_other_tokens(rows: Any, segments: Int[Array, "B N"] | None) -> Any:
    """Returns what `by_layer` made, for other tokens of the same rows; None where they have no segments."""
    if not isinstance(rows, Layers) or not isinstance(rows.expert_of_row, Segmented):
        return None
    return rows._replace(expert_of_row=rows.expert_of_row._replace(segments=segments))


def by_layer(layers: Params | None, expert_of_row: ExpertOfRow | Segmented | None) -> tuple[Any, Any]:
    """Returns the two values that a layer's `rows_of` takes: one to cut along L, one the same for all layers.

    One expert for all rows is cut itself. Of stacked experts, [E, L, …], numbers of layers are cut instead:
    with L brought to the front a scan would first write a second stack.
    """
    if layers is None or expert_of_row is None:
        return layers, expert_of_row
    return jnp.arange(jax.tree.leaves(layers)[0].shape[1]), Layers(layers, expert_of_row)


def rows_of(params: Any, rows: Layers | Segmented | ExpertOfRow | None) -> Params | None:
    """Gives every row its expert, [E, …] becomes [B, …]; without an index the one expert serves all rows.

    `params` and `rows` are a tree and an index, or what `by_layer` made of them. What is gathered moves, so
    stacks are best kept in the type that the network computes in.
    """
    if params is None or rows is None:
        return params
    tree, index, layer = (
        (rows.params, rows.expert_of_row, (params,)) if isinstance(rows, Layers) else (params, rows, ())
    )

    def of_rows(value: Array | Grouped) -> Array | Grouped | Slotted:
        if isinstance(value, Grouped):
            return Grouped(value.kernel[(slice(None), *layer)], index)
        value = jnp.asarray(value)
        if isinstance(index, Segmented):
            return Slotted(sharding.gathered(value, index.expert_of_segment, *layer), index.segments)
        return value.at[(index, *layer)].get(mode="fill")  # an index too large gives NaN

    return jax.tree.map(of_rows, tree, is_leaf=lambda value: isinstance(value, Grouped))


def grouped(stack: Params) -> dict[str, Any]:
    """Marks the kernels of stacked experts for the grouped product, which is never chosen by itself.

    A kernel [E, L, I, O] can reach the rows in two ways that give the same. Gathered, the rows' own kernels
    [B, I, O] make one batched product: all tokens of a row use one expert, so a row is a group already and
    nothing is sorted. Grouped, the rows are sorted by expert and `jax.lax.ragged_dot` reads each kernel once.

    Gathering is what happens without this mark. Measured on a CPU (benchmarks/mixed_experts.py) it costs a
    few hundredths of a call; the grouped product makes the call last three times as long, for XLA expands it
    there into a product of all rows with all E kernels. For accelerators the choice is by reasoning, and not
    measured. On GPUs JAX 0.10 has kernels of its own for it only behind experimental flags. Where it is
    native, as on TPUs, count the values that a down- and an up-projection, D to R to D, move for B rows of N
    tokens, all of different experts: gathering reads, writes and reads again, 6 B D R; the grouped product
    reads 2 B D R, and sorting rows in and out costs it 4 B N D. So gathering moves less unless rows are
    shorter than the rank, N < R, as short answers are beside a wide bottleneck.
    """

    def mark(value: Array) -> Array | Grouped:
        return Grouped(value) if value.ndim == 4 else value

    return jax.tree.map(mark, dict(stack))


def spread(value: Array | Slotted, like: Array) -> Array:
    """Shapes a vector, [D] for all rows or [B, D] row by row, so that it meets `like` [B, …, D].

    One that is slotted becomes [B, …, D], every token's own.
    """
    if isinstance(value, Slotted):
        # A product that picks: what is float32 passes whole, also where products of such are rounded.
        with products.precision_of(str(like.dtype)):
            own = products.einsum("bng,bgd->bnd", _chosen(value).astype(like.dtype), value.value)
        return own.reshape(like.shape)
    between = like.ndim - value.ndim
    value = value.reshape(value.shape[: value.ndim - 1] + (1,) * between + value.shape[-1:])
    # Spread before it is narrowed, so that its gradient, a sum over tokens, is summed in its own type.
    return jnp.broadcast_to(value, like.shape).astype(like.dtype)


def _chosen(slotted: Slotted) -> Bool[Array, "B N G"]:
    """Returns which of the experts of its row a token has; padding has the first."""
    slot = jnp.maximum(slotted.segments - 1, 0)
    return slot[..., None] == np.arange(slotted.value.shape[1], dtype=np.int32)[None, None]


def _slotted_product(x: Float[Array, "B N I"], kernel: Slotted) -> Float[Array, "B N O"]:
    """Multiplies every token by the kernel of its own segment's expert, among those of its row.

    The kernels of a row stand side by side in one, G times as wide on its narrow side, and what is not a
    token's own is masked there.
    """
    chosen, value = _chosen(kernel), kernel.value
    rows, places, inputs, outputs = value.shape
    if inputs < outputs:
        wide = jnp.where(chosen[..., None], x[:, :, None], 0).reshape(*x.shape[:2], -1)
        return products.einsum("bni,bio->bno", wide, value.reshape(rows, places * inputs, outputs))
    found = products.einsum("bni,bgio->bngo", x, value)
    return jnp.where(chosen[..., None], found, 0).sum(axis=2)


def product(
    x: Float[Array, "B *between I"], kernel: Array | Grouped | Slotted
) -> Float[Array, "B *between O"]:
    """Multiplies by a kernel [I, O] for all rows, [B, I, O] row by row, or one that is to be grouped."""
    inputs, outputs = x.shape[-1], (*x.shape[:-1], -1)
    if isinstance(kernel, Grouped):
        rows, stack = x.reshape(x.shape[0], -1, inputs), jnp.asarray(kernel.kernel, x.dtype)
        order = jnp.argsort(kernel.expert_of_row)
        sizes = jnp.bincount(kernel.expert_of_row, length=stack.shape[0]) * rows.shape[1]
        flat = jax.lax.ragged_dot(rows[order].reshape(-1, inputs), stack, sizes)
        return flat.reshape(*rows.shape[:2], -1)[jnp.argsort(order)].reshape(outputs)
    if isinstance(kernel, Slotted):
        return _slotted_product(x.reshape(x.shape[0], -1, inputs), kernel).reshape(outputs)
    if kernel.ndim == 2:
        return products.einsum("ni,io->no", x.reshape(-1, inputs), kernel).reshape(outputs)
    return products.einsum("bni,bio->bno", x.reshape(x.shape[0], -1, inputs), kernel).reshape(outputs)


def bottleneck(x: Float[Array, "B *between D"], adapter: Params | None) -> Float[Array, "B *between D"]:
    """Applies an adapter: `x + up(gelu(down(x)))`, with the tanh form of gelu."""
    if adapter is None:
        return x

    def dense(x: Array, params: Params) -> Array:
        y = product(x, params["kernel"])
        return y + spread(params["bias"], y)

    return x + dense(jax.nn.gelu(dense(x, adapter["down"]), approximate=True), adapter["up"])


@partial(jax.checkpoint, prevent_cse=False)  # else every token's own vector would be kept for the gradient
def _scaled(x: Float[Array, "B *between I"], vector: Any) -> Float[Array, "B *between I"]:
    return x * spread(vector, x)


def taken(x: Float[Array, "B *between I"], expert: Params | None) -> Float[Array, "B *between I"]:
    """Returns what a projection takes in the place of x."""
    if expert is None or "ia3_in" not in expert:
        return x
    return _scaled(x, expert["ia3_in"])


def given(
    x: Float[Array, "B *between I"], y: Float[Array, "B *between O"], expert: Params | None
) -> Float[Array, "B *between O"]:
    """Returns what a projection gives in the place of y, which it made of x."""
    if expert is not None and "gate" in expert:
        y = y + gating.change(x, expert)
    elif expert is not None and "lora_a" in expert:
        y = y + product(product(x, expert["lora_a"]), expert["lora_b"])
    if expert is not None and "ia3_out" in expert:
        y = _scaled(y, expert["ia3_out"])
    return y
