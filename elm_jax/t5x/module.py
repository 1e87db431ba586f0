"""The module that T5X trains: this package's own network, in the calls and the parameters that T5X expects.

T5X wants a Flax module that takes its features, names its parameters and their axes, and keeps a cache when
it decodes. This one passes the features on to `elm_jax.models.t5.T5`, so that what T5X trains scores here as
it does there because it is the same network; a second network beside T5X's own, with adapters put in, would
have to be kept equal to ours by hand.

Its parameters have T5X's names, one a layer, `encoder/layers_0/attention/query/kernel`: with these a
published checkpoint restores through INITIAL_CHECKPOINT_PATH as it is, and
`weights.t5x_experts.load_t5x_expert` reads what was trained. An expert's stand among them,
`encoder/layers_0/attention_adapter/down/kernel`. In the compiled step the layers are stacked for our scan.
Kernels are converted to the type that the network computes in before they are, so that stacking costs no more
than the conversion, which the products would do anyway.
"""

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata

from elm_jax.models import expert_kinds, paths
from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5, init_params
from elm_jax.weights import t5x_experts

ADDED = re.compile(r".*(_adapter/.*|/lora_[ab]|/ia3_(in|out))")
"""What experts own that no base has."""


class Transformer(nn.Module):
    """A T5 with one expert of a kind, or with `full` all by itself, behind T5X's signature.

    The base beside an expert gets no gradient, so that none is computed; that it also stays as it is under
    whatever an optimizer does to parameters without gradients is `optimizers.adamw`'s to see to.
    """

    config: T5Config
    kind: str = "full"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the kind, see `elm_jax.models.expert_kinds`

    # What T5X asks of a module to know on which axis of a cache the rows are: the second, after the layers.
    scan_layers = True

    @nn.nowrap
    def init(self, rngs: Any, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Returns fresh parameters and their axes; what the network would be called with does not matter."""
        del inputs, options
        of_base, of_expert = jax.random.split(rngs["params"] if isinstance(rngs, Mapping) else rngs)
        fresh = init_params(of_base, self.config)
        flat = paths.flatten(fresh)
        if self.kind != "full":
            flat |= paths.flatten(ex.init_expert(self.kind, of_expert, fresh, self.options))
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

        The decoder's inputs are the targets one place later, as T5X's `EncDecFeatureConverter` makes them,
        and positions are relative, so that neither is looked at.
        """
        del encoder_positions, decoder_positions, max_decode_length
        if decode:
            self._start_cache(*decoder_input_tokens.shape)
            return jnp.zeros((*decoder_input_tokens.shape, self.config.vocab_size))
        answers = jnp.asarray(decoder_target_tokens, jnp.int32)[:, None]
        segments = None if decoder_segment_ids is None else decoder_segment_ids[:, None]
        given = jnp.asarray(encoder_input_tokens, jnp.int32), answers
        shared = {"prompt_segments": encoder_segment_ids, "answer_segments": segments}
        return self._apply(T5.__call__, *given, train=enable_dropout, **shared)[:, 0]

    def encode(
        self, encoder_input_tokens: Any, encoder_segment_ids: Any = None, enable_dropout: bool = True
    ) -> Any:
        """Returns the encoder's output [B, S, D]."""
        shared = {"prompt_segments": encoder_segment_ids}
        return self._apply(T5.encode, encoder_input_tokens, train=enable_dropout, **shared)

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
        """Returns the logits [B, 1, V] of the tokens after these [B, 1], which the cache then has."""
        del decoder_target_tokens, max_decode_length
        if not decode or enable_dropout:
            raise NotImplementedError("T5X decodes token by token, without dropout, or calls the whole.")
        answer = self.get_variable("cache", "cached_key"), self.get_variable("cache", "cached_value")
        cache = self._apply(T5.start_cache, encoded, encoder_input_tokens, answer[0].shape[2])
        cache = cache._replace(answer=answer, position=self.get_variable("cache", "cache_index"))
        logits, cache = self._apply(T5.decode_step, cache, decoder_input_tokens[:, 0])
        keys, values = cache.answer
        self._keep(keys, values, cache.position)
        return logits[:, None]

    def _apply(self, method: Any, *inputs: Any, train: bool = False, **options: Any) -> Any:
        """Calls the network with its parameters and the expert in the shape that it wants them."""
        params, expert = placed(self.variables["params"], self.config, self.kind)
        rngs = {"dropout": self.make_rng("dropout")} if train else None
        network = T5(self.config, train=train, parent=None)
        return network.apply({"params": params}, *inputs, experts=expert, method=method, rngs=rngs, **options)

    def _start_cache(self, rows: int, length: int) -> None:
        config = self.config
        shape = (config.num_decoder_layers, rows, length, config.num_heads, config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        self._keep(empty, empty, jnp.zeros((), jnp.int32))

    def _keep(self, keys: Any, values: Any, position: Any) -> None:
        # T5X spreads what a cache holds over beams, all but what has this last name.
        for name, value in (("cached_key", keys), ("cached_value", values), ("cache_index", position)):
            self.put_variable("cache", name, value)


def placed(params: Mapping[str, Any], config: T5Config, kind: str) -> tuple[Any, Any]:
    """Returns what our network takes, its parameters and the expert beside them, of T5X's parameters."""
    flat = paths.flatten(params)
    ready = {path: value.astype(config.dtype) if _is_kernel(path) else value for path, value in flat.items()}
    found = paths.stack_layers(ready)
    of_base = {path: value for path, value in found.items() if not ADDED.fullmatch(path)}
    if kind == "full":
        return paths.unflatten(of_base), None
    owned = {path: value for path, value in found.items() if t5x_experts.OWNED[kind].fullmatch(path)}
    return jax.lax.stop_gradient(paths.unflatten(of_base)), paths.unflatten(owned)


def _is_kernel(path: str) -> bool:
    return f"/{paths.STACK}_" in path and path.endswith("/kernel")
