"""What the tests of weights stand on: small models of every shape, and writers of other people's formats.

The writers are written out here by name, without this package's tables, so that a wrong table cannot agree
with itself.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.weights import base_model

SMALL = find_config(
    "tiny",
    vocab_size=24,
    emb_dim=8,
    num_heads=2,
    head_dim=5,
    mlp_dim=14,
    num_decoder_layers=3,
    dropout_rate=0.1,  # what a checkpoint without configuration is taken to have
)
CONFIGS = {
    "1.1": SMALL,
    "1.0": replace(SMALL, mlp_activations=("relu",), logits_via_embedding=True),
}


def random_base(config, seed=0, dtype=np.float32):
    """Returns a base with random parameters, no two of which are alike."""
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.normal(0, 0.4, shape).astype(dtype)
        for path, shape in base_model.param_shapes(config).items()
    }
    return base_model.make_base(config, paths.unflatten(flat))


@pytest.fixture(scope="session")
def make_base():
    return random_base


@pytest.fixture(scope="session", params=CONFIGS)
def model(request):
    """A T5 1.1 with a head of its own and a T5 1.0 with none."""
    return random_base(CONFIGS[request.param])


@pytest.fixture(scope="session")
def t5_1_1():
    return random_base(CONFIGS["1.1"])


def leaves_equal(found, wanted):
    """Says whether two trees have the same paths, types and bytes."""
    found, wanted = paths.flatten(found), paths.flatten(wanted)
    return found.keys() == wanted.keys() and all(
        np.asarray(found[path]).dtype == np.asarray(wanted[path]).dtype
        and np.asarray(found[path]).tobytes() == np.asarray(wanted[path]).tobytes()
        for path in wanted
    )


@pytest.fixture(scope="session")
def same():
    return leaves_equal


def hf_arrays(base, *, flax=False):
    """Returns a base's parameters as PyTorch's T5 names them, or as the Flax T5 of transformers 4 did."""
    turn = (lambda kernel: kernel) if flax else np.transpose
    kernel, table = ("kernel", "embedding") if flax else ("weight", "weight")
    params = jax.tree.map(np.asarray, base.params)
    named = {f"shared.{table}": params["token_embedder"]["embedding"]}
    if "logits_dense" in params["decoder"]:
        named[f"lm_head.{kernel}"] = turn(params["decoder"]["logits_dense"]["kernel"])
    letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
    parts = {
        "encoder": [("attention", "SelfAttention", "pre_attention_layer_norm")],
        "decoder": [
            ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
            ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
        ],
    }
    for stack, attentions in parts.items():
        own = params[stack]
        named[f"{stack}.final_layer_norm.weight"] = own[f"{stack}_norm"]["scale"]
        # [heads, buckets] in T5X, [buckets, heads] in both of transformers' networks.
        named[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.{table}"] = own["relpos_bias"][
            "rel_embedding"
        ].T
        layers = own["layers"]
        for layer in range(layers["pre_mlp_layer_norm"]["scale"].shape[0]):
            for place, (block, called, norm) in enumerate(attentions):
                at = f"{stack}.block.{layer}.layer.{place}"
                named[f"{at}.layer_norm.weight"] = layers[norm]["scale"][layer]
                for name, letter in letters.items():
                    named[f"{at}.{called}.{letter}.{kernel}"] = turn(layers[block][name]["kernel"][layer])
            at = f"{stack}.block.{layer}.layer.{len(attentions)}"
            named[f"{at}.layer_norm.weight"] = layers["pre_mlp_layer_norm"]["scale"][layer]
            for name, owner in layers["mlp"].items():
                named[f"{at}.DenseReluDense.{name}.{kernel}"] = turn(owner["kernel"][layer])
    return {name: np.ascontiguousarray(value) for name, value in named.items()}


def hf_config(config, **changes):
    """Returns a `config.json` as transformers 4 wrote it."""
    gated = len(config.mlp_activations) == 2
    return {
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relpos_buckets,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": config.logits_via_embedding,
        **changes,
    }


def write_hf(where, base, *, weights="safetensors", shards=1, arrays=None, **changes):
    """Writes a directory as the hub has them; `changes` are to its configuration."""
    where = Path(where)
    where.mkdir(parents=True, exist_ok=True)
    (where / "config.json").write_text(json.dumps(hf_config(base.config, **changes)))
    if weights == "flax":
        tree = paths.unflatten(
            {name.replace(".", "/"): value for name, value in hf_arrays(base, flax=True).items()}
        )
        (where / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
        return where
    named = hf_arrays(base) if arrays is None else arrays
    if shards == 1:
        save_file(named, where / "model.safetensors", {"format": "pt"})
        return where
    placed = {}
    for number in range(shards):
        part = dict(list(named.items())[number::shards])
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file(part, where / name, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (where / "model.safetensors.index.json").write_text(json.dumps(index))
    return where


def t5x_tree(params, *, scanned=False):
    """Returns parameters as T5X has them.

    Either layers are apart, or they are together on axis 1, with heads apart and a table in every layer.
    """
    flat = {path: np.asarray(value) for path, value in paths.flatten(params).items()}
    heads = flat["encoder/relpos_bias/rel_embedding"].shape[0]
    named = {}
    for path, value in flat.items():
        stack, _, rest = path.partition("/layers/")
        if rest and scanned:
            if rest.endswith(("query/kernel", "key/kernel", "value/kernel")):
                value = value.reshape(*value.shape[:2], heads, -1)
            elif rest.endswith("out/kernel"):
                value = value.reshape(value.shape[0], heads, -1, value.shape[2])
            named[f"{stack}/{stack}/{rest}"] = np.ascontiguousarray(np.moveaxis(value, 0, 1))
        elif rest:
            named |= {f"{stack}/layers_{layer}/{rest}": each for layer, each in enumerate(value)}
        elif scanned and path.endswith("relpos_bias/rel_embedding"):
            stack, _, rest = path.partition("/")
            layers = flat[f"{stack}/layers/pre_mlp_layer_norm/scale"].shape[0]
            named[f"{stack}/{stack}/{rest}"] = np.repeat(value[:, None], layers, axis=1)
        else:
            named[path] = value
    return paths.unflatten(named)


def write_orbax(where, tree, *, ocdbt=True, step=7):
    """Writes `checkpoint_7/state` as T5X's Orbax does."""
    import orbax.checkpoint as ocp

    directory = Path(where) / f"checkpoint_{step}"
    state = {"step": np.int32(step), "param_states": {"v": np.zeros(3, np.float32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as writer:
        writer.save(directory.resolve() / "state", args=ocp.args.PyTreeSave({"target": tree, "state": state}))
    return directory


def write_legacy(where, tree, *, step=7):
    """Writes `checkpoint_7` as T5X did before Orbax: large arrays as zarr, small ones in the index."""
    directory = Path(where) / f"checkpoint_{step}"
    directory.mkdir(parents=True)
    index, writing = {}, []
    for path, value in paths.flatten(tree).items():
        if value.size < 10:
            index[path] = value
            continue
        name = f"target.{path.replace('/', '.')}"
        spec = {
            "driver": "zarr",
            "dtype": str(value.dtype),
            "kvstore": {"driver": "file", "path": f"{directory / name}/"},
            "metadata": {
                "shape": list(value.shape),
                "chunks": [max(1, -(-length // 2)) for length in value.shape],
                "compressor": {"id": "gzip", "level": 1},
            },
        }
        writing.append(ts.open(spec, create=True, open=True).result().write(value))
        index[path] = {**spec, "kvstore": {"driver": "file", "path": f"{name}/"}}
    for each in writing:
        each.result()
    content = {"version": 3, "optimizer": {"target": paths.unflatten(index), "state": {"step": step}}}
    (directory / "checkpoint").write_bytes(msgpack_serialize(content))
    return directory


@pytest.fixture(scope="session")
def writers():
    """The writers of other formats, by name."""
    return {
        "hf": write_hf,
        "hf_arrays": hf_arrays,
        "orbax": write_orbax,
        "legacy": write_legacy,
        "tree": t5x_tree,
    }
