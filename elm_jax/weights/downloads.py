"""Models on the hub: a model's or an expert's files, from the hub's local cache, or fetched into it."""

from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.weights import hf_config, huggingface, published_models
from elm_jax.weights.published_models import PublishedModel

# Of the ways to keep weights the first that a repository has: each needs more than the one before.
_WEIGHT_PATTERNS = ("model*.safetensors*", "flax_model*.msgpack*", "pytorch_model*.bin*")
# An expert of ours or PEFT's; safetensors alone.
_SPEC_FILES = ("expert.json", "adapter_config.json")
_ADDED_FILES = ("keys.safetensors", "gates.safetensors")
_EXPERT_FILES = (*_SPEC_FILES, *_ADDED_FILES, "params.safetensors", "adapter_model.safetensors")
_SPEC_IN_LIBRARY = "*/*/expert.json"  # where a library has an expert
_OTHER_FILES = (hf_config.CONFIG_FILE, *huggingface.OTHER_FILES)


def fetch_model(model: PublishedModel) -> epath.Path:
    """Returns the directory of a model's files, fetching them if the cache has none.

    Raises:
        UserError: If that cannot be done; it says what to download, from where, and where to put it.
    """
    from huggingface_hub import constants

    why = "offline mode is on"
    formats = _WEIGHT_PATTERNS[:1] if model.safetensors_only else _WEIGHT_PATTERNS
    for weights in (None, *formats):
        patterns = None if weights is None else [*_OTHER_FILES, weights]
        directory, failed = hub.download_snapshot(model.hub, patterns, model.revision)
        if directory is None and weights is not None:
            why = failed
            break
        if directory is None:
            continue
        found = huggingface.find_weights(directory)
        is_read = found is not None and (found.startswith(huggingface.SAFETENSORS) or len(formats) > 1)
        if is_read and (directory / hf_config.CONFIG_FILE).exists():
            return directory
        why = f"its repository has none of {', '.join(formats)}"
    near = [] if model.hub in _list_ids() else names.near_matches(model.hub, _list_ids())
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    bucket = f", or `gcloud storage cp -r {model.bucket} DIR`" if model.bucket else ""
    raise UserError(
        f"Expected the model {model.hub!r} as a directory, in the cache at {constants.HF_HUB_CACHE!r} or on "
        f"the hub, got none ({why[:200]}).{hint} Fix: where there is a network, run `hf download "
        f"{model.hub} --local-dir DIR`, which brings {hf_config.CONFIG_FILE} and weights "
        f"({', '.join(formats)}) "
        f"from https://huggingface.co/{model.hub}{bucket}; then name DIR."
    )


def fetch_expert(src: storage.PathLike, *, required: bool = True) -> epath.Path:
    """Returns the directory of an expert or an adapter: the one given, or fetched where it is on the hub.

    Args:
        src: A directory, or `hf:owner/name` with or without `@revision`.
        required: Whether a repository without an expert is an error; if not, `src` comes back as it is.

    Raises:
        UserError: If the hub or its cache has no such repository, or no adapter in it.
    """
    if not str(src).startswith(hub.HUB_PREFIX):
        return storage.path(src)
    repository, revision = hub.parse_address(str(src))
    directory, failed = hub.download_snapshot(repository, [*_EXPERT_FILES, _SPEC_IN_LIBRARY], revision)
    if directory is not None and any((directory / name).exists() for name in _SPEC_FILES):
        return directory
    inside = [] if directory is None else sorted(directory.glob(_SPEC_IN_LIBRARY))
    if directory is not None and len(inside) == 1:
        own = inside[0].parent.relative_to(directory)
        directory, failed = hub.download_snapshot(
            repository, [f"{own}/{name}" for name in _EXPERT_FILES], revision
        )
        if directory is not None:
            return directory / str(own)
    if inside:
        raise UserError(
            f"Expected one expert or adapter in the repository {repository!r}, got a library of "
            f"{len(inside)}. Fix: run `elm experts pull {repository} --only DATASET/PROMPT`, which puts the "
            "experts that you name into a run."
        )
    if not required:
        return storage.path(src)
    why = failed or f"it has none of {', '.join(_SPEC_FILES)}"
    raise UserError(
        f"Expected an expert or an adapter in the repository {repository!r}, got none ({why:.200}). Fix: "
        f"run `hf download {repository} --local-dir DIR` where there is a network, and name DIR."
    )


def _list_ids() -> list[str]:
    return [model.hub for model in published_models.PUBLISHED.values()]
