"""The Flax module that T5X trains: our network, with the calls and the parameter names that T5X expects.

T5X needs a module that takes its features, names its parameters and their axes, and keeps a cache while it
decodes. This one passes the features to `elm_jax.models.t5.T5`, so that T5X trains the very network that
scores here. A second network on top of T5X's own would have to be kept equal to ours by hand.

The parameters have T5X's names, one for each layer, such as `encoder/layers_0/attention/query/kernel`. With
these a published checkpoint restores through INITIAL_CHECKPOINT_PATH as it is, and
`weights.t5x_experts.load_t5x_expert` reads what was trained. An expert's parameters are among them, such as
`encoder/layers_0/attention_adapter/down/kernel`. In the compiled step the layers are stacked for our scan.
Kernels are cast to the compute type before that, so that stacking costs no more than the cast, which the
matrix products need anyway.
"""

from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata

from elm_jax.aot.program import trace_for
from elm_jax.models import expert_kinds, paths
from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5, init_params
from elm_jax.weights import t5x_experts


class Transformer(nn.Module):
    """A T5 with one expert, or a T5 alone if the kind is `full`, behind T5X's signature.

    An expert's base gets no gradient, so that none is computed. `optimizers.adamw` sees to it that nothing
    else changes the base.

    Attributes:
        config: The network's sizes.
        kind: Kind of the expert, see `elm_jax.models.expert_kinds`.
        options: Of the kind, see `elm_jax.models.expert_kinds`.
    """

    config: T5Config
    kind: str = "full"
    options: Mapping[str, Any] = field(default_factory=dict)

    # T5X reads this to learn that the rows are on a cache's second axis, after the layers.
    scan_layers = True

    @nn.nowrap
    def init(self, rngs: Any, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Returns fresh parameters and their axes; the inputs do not matter."""
        del inputs, options
        base_key, expert_key = jax.random.split(rngs["params"] if isinstance(rngs, Mapping) else rngs)
        fresh = init_params(base_key, self.config)
        flat = paths.flatten(fresh)
        if self.kind != "full":
            flat |= paths.flatten(ex.init_expert(self.kind, expert_key, fresh, self.options))
        params, axes = {}, {}
        for path, value in flat.items():
            for name, part in paths.unstack_layers({path: value}).items():
                params[name] = part
                # An array of one layer lacks the first axis of its stack.
                axes[f"{name}_axes"] = AxisMetadata(expert_kinds.logical_axes(path)[name != path :])
        return {"params": paths.unflatten(params), "params_axes": paths.unflatten(axes)}

    def __call__(
        self,
        encoder_input_tokens: Any,
        decoder_input_tokens: Any,
        decoder_target_tokens: Any,
        encoder_segment_ids: Any = None,
        decoder_segment_ids: Any = None,
        encoder_positions: Any = None,
        decoder_positions: Any = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> Any:
        """Returns the logits [B, T, V] of targets [B, T]; with `decode` it only makes an empty cache.

        Decoder inputs and positions are ignored: the inputs are the targets one position later, as T5X's
        `EncDecFeatureConverter` makes them, and positions are relative.
        """
        del encoder_positions, decoder_positions, max_decode_length
        if decode:
            self._start_cache(*decoder_input_tokens.shape)
            return jnp.zeros((*decoder_input_tokens.shape, self.config.vocab_size))
        answers = jnp.asarray(decoder_target_tokens, jnp.int32)[:, None]
        segments = None if decoder_segment_ids is None else decoder_segment_ids[:, None]
        inputs = jnp.asarray(encoder_input_tokens, jnp.int32), answers
        segment_ids = {"prompt_segments": encoder_segment_ids, "answer_segments": segments}
        return self._apply(T5.__call__, *inputs, train=enable_dropout, **segment_ids)[:, 0]

    def encode(
        self, encoder_input_tokens: Any, encoder_segment_ids: Any = None, enable_dropout: bool = True
    ) -> Any:
        """Returns the encoder's output [B, S, D]."""
        segment_ids = {"prompt_segments": encoder_segment_ids}
        return self._apply(T5.encode, encoder_input_tokens, train=enable_dropout, **segment_ids)

    def decode(
        self,
        encoded: Any,
        encoder_input_tokens: Any,
        decoder_input_tokens: Any,
        decoder_target_tokens: Any,
        enable_dropout: bool = False,
        decode: bool = True,
        max_decode_length: int | None = None,
    ) -> Any:
        """Returns the logits [B, 1, V] of the tokens after these [B, 1], and adds these to the cache."""
        del decoder_target_tokens, max_decode_length
        if not decode or enable_dropout:
            raise NotImplementedError("Decoding is token by token, without dropout; else call the module.")
        answer = self.get_variable("cache", "cached_key"), self.get_variable("cache", "cached_value")
        cache = self._apply(T5.start_cache, encoded, encoder_input_tokens, answer[0].shape[2])
        cache = cache._replace(answer=answer, position=self.get_variable("cache", "cache_index"))
        logits, cache = self._apply(T5.decode_step, cache, decoder_input_tokens[:, 0])
        keys, values = cache.answer
        self._put_cache(keys, values, cache.position)
        return logits[:, None]

    def _apply(self, method: Any, *inputs: Any, train: bool = False, **options: Any) -> Any:
        """Calls a method of the network with its parameters and the expert."""
        params, expert = split_params(self.variables["params"], self.config, self.kind)
        rngs = {"dropout": self.make_rng("dropout")} if train else None
        run = partial(T5(self.config, train=train, parent=None).apply, method=method, rngs=rngs, **options)
        with trace_for(jax.default_backend()):
            return run({"params": params}, *inputs, experts=expert)

    def _start_cache(self, rows: int, length: int) -> None:
        config = self.config
        shape = (config.num_decoder_layers, rows, length, config.num_heads * config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        self._put_cache(empty, empty, jnp.zeros((), jnp.int32))

    def _put_cache(self, keys: Any, values: Any, position: Any) -> None:
        # T5X repeats all variables of a cache for each beam, except `cache_index`.
        for name, value in (("cached_key", keys), ("cached_value", values), ("cache_index", position)):
            self.put_variable("cache", name, value)


def split_params(params: Mapping[str, Any], config: T5Config, kind: str) -> tuple[Any, Any]:
    """Splits T5X's parameters into those of our network and those of the expert, layers stacked.

    Args:
        params: A tree with T5X's names, one for each layer.
        config: The network's sizes and compute type.
        kind: Kind of the expert.

    Returns:
        The network's parameters, without gradients if there is an expert; and the expert's, None for `full`.
    """
    flat = paths.flatten(params)
    cast = {path: value.astype(config.dtype) if _is_kernel(path) else value for path, value in flat.items()}
    stacked = paths.stack_layers(cast)
    base = {path: value for path, value in stacked.items() if not t5x_experts.EXPERT_ONLY.fullmatch(path)}
    if kind == "full":
        return paths.unflatten(base), None
    owned = {path: value for path, value in stacked.items() if t5x_experts.OWNED_PARAMS[kind].fullmatch(path)}
    return jax.lax.stop_gradient(paths.unflatten(base)), paths.unflatten(owned)


def _is_kernel(path: str) -> bool:
    return f"/{paths.LAYER_STACK}_" in path and path.endswith("/kernel")
