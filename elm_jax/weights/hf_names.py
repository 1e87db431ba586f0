"""Names of Hugging Face's T5 for the parameters that T5X, and this package, call otherwise.

PyTorch keeps a projection as [out, in] and the table of relative positions as [buckets, heads]; the network
has both the other way round. The Flax files of transformers 4 have T5X's kernels under PyTorch's names.
"""

import re

_BLOCK_MODULES = {
    "encoder": {"attention": "layer.0.SelfAttention", "mlp": "layer.1.DenseReluDense"},
    "decoder": {
        "self_attention": "layer.0.SelfAttention",
        "encoder_decoder_attention": "layer.1.EncDecAttention",
        "mlp": "layer.2.DenseReluDense",
    },
}
_NORM_MODULES = {
    "encoder": {"pre_attention_layer_norm": "layer.0", "pre_mlp_layer_norm": "layer.1"},
    "decoder": {
        "pre_self_attention_layer_norm": "layer.0",
        "pre_cross_attention_layer_norm": "layer.1",
        "pre_mlp_layer_norm": "layer.2",
    },
}
_PROJECTION_LETTERS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP_PROJECTIONS = ("wi", "wi_0", "wi_1", "wo")
_LAYER_PATH = re.compile(r"(encoder|decoder)/layers_(\d+)/(\w+)/(\w+)(?:/kernel)?")
EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
_NAMES_OUTSIDE_LAYERS = {
    "token_embedder/embedding": EMBEDDING,
    "decoder/logits_dense/kernel": HEAD,
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    **{
        f"{stack}/relpos_bias/rel_embedding": f"{stack}.block.0.layer.0.SelfAttention."
        "relative_attention_bias.weight"
        for stack in _BLOCK_MODULES
    },
}
_POSITION_PATH = re.compile(r"(encoder|decoder)/layers_(\d+)/relpos_bias/rel_embedding")
# What training wraps modules in: torch.compile, DataParallel, FSDP and its checkpointing of activations.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Copies of the table of embeddings, and a table that transformers 3 wrote and nothing reads.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNREAD_TENSOR = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def torch_name(path: str) -> str:
    """Returns PyTorch's name of a parameter of one layer, or of one outside the layers.

    >>> torch_name("decoder/layers_3/encoder_decoder_attention/out/kernel")
    'decoder.block.3.layer.1.EncDecAttention.o.weight'
    """
    if path in _NAMES_OUTSIDE_LAYERS:
        return _NAMES_OUTSIDE_LAYERS[path]
    positions = _POSITION_PATH.fullmatch(path)
    if positions is not None:
        stack, layer = positions.groups()
        return f"{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    found = _LAYER_PATH.fullmatch(path)
    if found is None:
        return path
    stack, layer, block, name = found.groups()
    if block in _NORM_MODULES[stack]:
        return f"{stack}.block.{layer}.{_NORM_MODULES[stack][block]}.layer_norm.weight"
    return f"{module_name(stack, layer, block, name)}.weight"


def strip_wrapper(name: str) -> str:
    """Returns PyTorch's name of a tensor without what training wrapped its modules in.

    >>> strip_wrapper("_orig_mod.module.encoder.block.0._checkpoint_wrapped_module.layer.0.layer_norm.weight")
    'encoder.block.0.layer.0.layer_norm.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def module_name(stack: str, layer: str | int, block: str, name: str) -> str:
    """Returns PyTorch's name of a projection.

    >>> module_name("encoder", 0, "mlp", "wi_0")
    'encoder.block.0.layer.1.DenseReluDense.wi_0'
    """
    module = _BLOCK_MODULES[stack].get(block, block)
    return f"{stack}.block.{layer}.{module}.{_PROJECTION_LETTERS.get(name, name)}"


def parse_projection(module: str) -> tuple[str, int, str, str] | None:
    """The inverse of `module_name`: stack, layer, block and name, or None where it is no projection."""
    found = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.(layer\.\d\.\w+)\.(\w+)", module)
    if found is None:
        return None
    stack, layer, inside, letter = found.groups()
    blocks = {name: block for block, name in _BLOCK_MODULES[stack].items()}
    names = {letter: name for name, letter in _PROJECTION_LETTERS.items()} | {
        name: name for name in _MLP_PROJECTIONS
    }
    if inside not in blocks or letter not in names:
        return None
    return stack, int(layer), blocks[inside], names[letter]


def flax_name(path: str) -> str:
    """Returns the name of a parameter in a Flax file of transformers 4.

    >>> flax_name("encoder/layers_0/mlp/wo/kernel")
    'encoder/block/0/layer/1/DenseReluDense/wo/kernel'
    """
    *modules, last = torch_name(path).split(".")
    if path.endswith("/kernel"):
        last = "kernel"
    elif path.endswith("embedding"):
        last = "embedding"
    return "/".join([*modules, last])


def is_transposed(path: str, *, flax: bool = False) -> bool:
    """Says whether a file has the axes of a parameter the other way round than the network."""
    return path.endswith("rel_embedding") or (path.endswith("/kernel") and not flax)
