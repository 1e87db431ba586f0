"""Embedders: sentence encoders in sentence-transformers' layout, from a directory or from the hub.

    modules.json  config.json  model.safetensors  tokenizer.json  tokenizer_config.json
    sentence_bert_config.json  1_Pooling/config.json  2_Dense/config.json  2_Dense/model.safetensors

The network is that of BERT, RoBERTa or MPNet (`models.bert_encoder`), or the encoder of a T5 (GTR,
sentence-T5).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.bert_encoder import BertConfig
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.weights import (
    base_model,
    bert,
    encoder_steps,
    encoder_tokenizer,
    hf_config,
    hf_fields,
    hf_names,
    huggingface,
)
from elm_jax.weights.bert import get_tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_OWNER = "sentence-transformers"  # whose the names without an owner are
SUGGESTED_ENCODERS = (
    *("all-MiniLM-L6-v2", "all-MiniLM-L12-v2", "all-mpnet-base-v2", "nli-mpnet-base-v2"),
    *("paraphrase-MiniLM-L6-v2", "paraphrase-mpnet-base-v2", "multi-qa-MiniLM-L6-cos-v1"),
    *(f"{family}-{size}" for family in ("gtr-t5", "sentence-t5") for size in ("base", "large", "xl", "xxl")),
)
"""Names to suggest; any other of the hub is looked for too."""
_CONFIG_PATTERNS = (
    encoder_steps.MODULES_FILE,
    encoder_steps.MODEL_FILE,
    encoder_steps.CONFIG_FILE,
    "sentence_*_config.json",
    "tokenizer*.json",
    f"*/{encoder_steps.CONFIG_FILE}",
)
_REQUIRED_FILES = (
    *(
        encoder_steps.MODULES_FILE,
        encoder_steps.CONFIG_FILE,
        huggingface.SAFETENSORS,
        encoder_tokenizer.TOKENIZER_FILE,
        encoder_tokenizer.TOKENIZER_CONFIG,
    ),
    *(encoder_tokenizer.STEP_CONFIGS[0], f"1_Pooling/{encoder_steps.CONFIG_FILE}"),
)
_WEIGHT_PATTERNS = (
    ("model*.safetensors*", "*/model.safetensors"),
    ("pytorch_model.bin", "*/pytorch_model.bin"),
)


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder as it was read, parameters on the host."""

    network: BertConfig | T5Config
    params: Params
    pooling: str  # one of `models.pooling.POOLINGS`
    projections: tuple[Params, ...]  # kernel [in, out] and perhaps bias
    activations: tuple[str, ...]  # what follows each projection
    normalized: bool
    tokenizer: "Tokenizer"
    max_length: int  # tokens of a text that are read, special ones included
    kind: str  # `model_type` of the network
    prompt: str  # what stands before every text
    fingerprint: str  # of all that decides what vector a text gets


def find_encoder(path_or_name: storage.PathLike, *, pooling: str | None = None) -> epath.Path:
    """Returns the directory of a path or a name, fetched from the hub if its cache lacks it.

    Raises:
        UserError: If files are missing; it says which, of which repository, and where to put them.
    """
    text = str(path_or_name)
    where = storage.path(path_or_name)
    if text and where.is_dir():
        return where
    if text.startswith(hub.HUB_PREFIX):
        repository, revision = hub.parse_address(text)
        return fetch_encoder(repository, pooling=pooling, revision=revision)
    if text.startswith(("/", ".", "~")) or "://" in text or not text or text.count("/") > 1:
        raise UserError(
            f"Expected a sentence encoder at {text!r}, got no directory. Fix: name the directory of one, or "
            f"a model of the hub such as {SUGGESTED_ENCODERS[0]!r}."
        )
    return fetch_encoder(text if "/" in text else f"{DEFAULT_OWNER}/{text}", pooling=pooling)


def fetch_encoder(repository: str, *, pooling: str | None = None, revision: str | None = None) -> epath.Path:
    """Returns the directory of a repository's files in the hub's cache, fetching those that it lacks."""
    from huggingface_hub import constants

    lacking, why = [*_REQUIRED_FILES], "offline mode is on"
    for weights in (None, *_WEIGHT_PATTERNS):
        patterns = None if weights is None else [*_CONFIG_PATTERNS, *weights]
        directory, failed = hub.download_snapshot(repository, patterns, revision)
        if directory is None and weights is not None:
            why = failed
            break
        if directory is None:
            continue
        lacking = list_missing_files(directory, pooling=pooling)
        # A plain checkpoint that is whole; `load_encoder` says that its pooling has to be named.
        if not lacking or (weights is not None and lacking == [encoder_steps.MODULES_FILE]):
            return directory
        why = "its repository has no more"
        if weights is not None and not any(file.endswith(huggingface.SAFETENSORS) for file in lacking):
            break  # the weights are there; those of another format would not help
    short = repository.removeprefix(f"{DEFAULT_OWNER}/")
    near = [] if short in SUGGESTED_ENCODERS else names.near_matches(short, SUGGESTED_ENCODERS)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UserError(
        f"Expected {', '.join(lacking)} of the sentence encoder {repository!r} in the cache at "
        f"{constants.HF_HUB_CACHE!r} or on the hub, got none ({why:.200}).{hint} Fix: where there is a "
        f"network, run `hf download {repository} --local-dir DIR`, or put these "
        f"files of https://huggingface.co/{repository} into DIR; then name DIR."
    )


def list_missing_files(root: epath.Path, *, pooling: str | None = None) -> list[str]:
    """Returns the files that a directory lacks to be read, by name."""
    is_pooling_known = pooling is not None or (root / encoder_steps.MODULES_FILE).exists()
    try:
        found = encoder_steps.read_steps(root, pooling if is_pooling_known else "mean")
    except UserError:  # `read` says so again, but for a file that is absent
        pooled = f"1_Pooling/{encoder_steps.CONFIG_FILE}"
        return [] if (root / pooled).exists() else [pooled]
    places = (found.network, *found.projections)
    wanted = [place / encoder_steps.CONFIG_FILE for place in places] + [
        found.network / encoder_tokenizer.TOKENIZER_FILE
    ]
    wanted += [place / huggingface.SAFETENSORS for place in places if not huggingface.find_weights(place)]
    absent = [str(file.relative_to(root)) for file in wanted if not file.exists()]
    return absent if is_pooling_known else [encoder_steps.MODULES_FILE, *absent]


def load_encoder(
    where: storage.PathLike,
    *,
    pooling: str | None = None,
    dtype: str = "float32",
    ignore: Collection[str] = (),
) -> SentenceEncoder:
    """Reads a directory in sentence-transformers' layout, or a plain checkpoint whose pooling is named.

    Args:
        where: The directory.
        pooling: "mean", "cls", "max" or "pooler" (the first token through BERT's own pooler, as supervised
            SimCSE has it), for directories without `modules.json`; nothing is normalised there.
        dtype: The type of the parameters.
        ignore: Fields of the configurations that were looked at and do not change a vector; any other field
            is understood or refused.

    Raises:
        UserError: If something is missing or not understood; it names the file.
    """
    dtype = base_model.dtype_name(dtype) or "float32"
    remedy = f"Name the directory of one, or a model of the hub such as {SUGGESTED_ENCODERS[0]!r}."
    root = storage.existing_directory(where, what="A sentence encoder", remedy=remedy)
    found = encoder_steps.read_steps(root, pooling, ignore=ignore)
    file = found.network / encoder_steps.CONFIG_FILE
    raw = encoder_steps.read_json_object(file)
    kind, families = raw.get("model_type"), (*bert.MODEL_TYPES, *hf_config.ARCHITECTURES)
    if kind not in families:
        raise UserError(
            f"Expected a model of type {', '.join(families)} in {str(file)!r}, got {kind!r:.50}. Fix: use "
            "another encoder."
        )
    held, weights = _read_tensors(found.network)
    if kind in bert.MODEL_TYPES:
        hf_fields.BERT_FIELDS.require_known_fields(raw, where=str(file), ignore=ignore)
        network = bert.parse_network(raw, dtype=dtype, where=str(file))
        flat, longest = bert.convert_params(network, held, kind, where=weights), network.longest
    else:
        raw = hf_config.read_config(found.network, ignore=ignore, table=hf_fields.T5_ENCODER_FIELDS)
        network = hf_config.parse_network(raw, head=False, dtype=dtype, where=str(file))
        flat, longest = _convert_t5_encoder(network, held, where=weights), None
    tokenizer, length = encoder_tokenizer.load_tokenizer(found.network, longest, ignore=ignore)
    projections = [_read_projection(*_read_tensors(place), "linear") for place in found.projections]
    activations = [encoder_steps.read_activation(place, ignore) for place in found.projections]
    if found.pooling == "pooler":
        projections, activations = [_read_projection(held, weights, "pooler.dense")], ["tanh"]
    flat = {path: leaf.astype(base_model.DTYPES[dtype], copy=False) for path, leaf in flat.items()}
    pooled = "cls" if found.pooling == "pooler" else found.pooling
    return SentenceEncoder(
        network=network,
        params=paths.unflatten(flat),
        pooling=pooled,
        projections=tuple(projections),
        activations=tuple(activations),
        normalized=found.normalized,
        tokenizer=tokenizer,
        max_length=length,
        kind=kind,
        prompt=found.prompt,
        fingerprint=storage.fingerprint(
            {
                "network": vars(network),
                "weights": [storage.array_fingerprint(each) for each in (flat, *projections)],
                "steps": [pooled, *activations, found.normalized],
                "tokenizer": [tokenizer.to_str(), length],
                **({"prompt": found.prompt} if found.prompt else {}),
            }
        ),
    )


def _read_tensors(directory: epath.Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns the tensors of a directory by name, and the file that tells them."""
    name = huggingface.find_weights(directory) or ""
    if not name.startswith((huggingface.SAFETENSORS, huggingface.TORCH)):
        raise UserError(
            f"Expected {huggingface.SAFETENSORS} or {huggingface.TORCH} in {str(directory)!r}, got neither. "
            "Fix: download one of them."
        )
    found = huggingface.strip_wrappers(huggingface.list_tensors(directory, name))
    return {key: tensor.read() for key, tensor in found.items()}, str(directory / name)


def _read_projection(found: Mapping[str, np.ndarray], where: str, name: str) -> dict[str, np.ndarray]:
    kernel = get_tensor(found, f"{name}.weight", (None, None), where=where).T
    if f"{name}.bias" not in found:
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": get_tensor(found, f"{name}.bias", (kernel.shape[1],), where=where)}


def _convert_t5_encoder(
    config: T5Config, found: dict[str, np.ndarray], *, where: str
) -> dict[str, np.ndarray]:
    """Returns the parameters of a T5's encoder alone, by path."""
    copies = [found[name] for name in hf_names.EMBEDDING_COPIES if name in found]
    found = {hf_names.EMBEDDING: copies[0], **found} if copies else found
    for copy in copies:
        if not np.array_equal(copy, found[hf_names.EMBEDDING]):
            raise UserError(
                f"Expected {' and '.join(hf_names.EMBEDDING_COPIES)} in {where!r} to equal "
                f"{hf_names.EMBEDDING!r}, got other values. Fix: use a checkpoint whose tables of "
                "embeddings are tied."
            )
    made = {}
    for path, shape in base_model.param_shapes(config).items():
        if not path.startswith(("token_embedder/", "encoder/")):
            continue
        before, stack, after = path.partition(f"/{paths.LAYER_STACK}/")
        apart = (
            [f"{before}/{paths.LAYER_STACK}_{layer}/{after}" for layer in range(shape[0])]
            if stack
            else [path]
        )
        order = -1 if hf_names.is_transposed(path) else 1
        wanted = (shape[1:] if stack else shape)[::order]
        leaves = [get_tensor(found, hf_names.torch_name(name), wanted, where=where) for name in apart]
        leaves = [leaf.T if order < 0 else leaf for leaf in leaves]
        made[path] = np.stack(leaves) if stack else leaves[0]
    return made
