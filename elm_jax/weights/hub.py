"""Models on the hub: a model's or an expert's files, from the hub's local cache, or fetched into it."""

from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.weights import hf_config, huggingface, known
from elm_jax.weights.known import Known

# Of the ways to keep weights the first that a repository has: each needs more than the one before.
_WEIGHTS = ("model*.safetensors*", "flax_model*.msgpack*", "pytorch_model*.bin*")
# An expert of ours or PEFT's; safetensors alone.
_SPECS = ("expert.json", "adapter_config.json")
_EXPERT = (*_SPECS, "params.safetensors", "keys.safetensors", "adapter_model.safetensors")
_IN_LIBRARY = "*/*/expert.json"  # where a library has an expert
_BESIDE = (hf_config.FILE, *huggingface.BESIDE)


def fetch(model: Known) -> epath.Path:
    """Returns the directory of a model's files, fetching them if the cache has none.

    Raises a UserError that says what to download, from where, and where to put it, if that cannot be done.
    """
    from huggingface_hub import constants

    why = "offline mode is on"
    formats = _WEIGHTS[:1] if model.safetensors_only else _WEIGHTS
    for weights in (None, *formats):
        patterns = None if weights is None else [*_BESIDE, weights]
        directory, failed = hub.snapshot(model.hub, patterns, model.revision)
        if directory is None and weights is not None:
            why = failed
            break
        if directory is None:
            continue
        found = huggingface.weights_in(directory)
        is_read = found is not None and (found.startswith(huggingface.SAFETENSORS) or len(formats) > 1)
        if is_read and (directory / hf_config.FILE).exists():
            return directory
        why = f"its repository has none of {', '.join(formats)}"
    near = [] if model.hub in _ids() else names.near_matches(model.hub, _ids())
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    bucket = f", or `gcloud storage cp -r {model.bucket} DIR`" if model.bucket else ""
    raise UserError(
        f"The model {model.hub!r} is wanted, but no directory has that name, the cache at "
        f"{constants.HF_HUB_CACHE!r} lacks it, and it could not be fetched ({why[:200]}).{hint} Where there "
        f"is a network, run `hf download {model.hub} --local-dir DIR`, which brings {hf_config.FILE} and "
        f"weights ({', '.join(formats)}) from https://huggingface.co/{model.hub}{bucket}; then name DIR."
    )


def expert(src: storage.PathLike, *, required: bool = True) -> epath.Path:
    """Returns the directory of an expert or an adapter: the one given, or fetched where it is on the hub.

    Args:
        src: A directory, or `hf:owner/name` with or without `@revision`.
        required: Whether a repository without an expert is an error; if not, `src` comes back as it is.

    Raises:
        UserError: If the hub or its cache has no such repository, or no adapter in it.
    """
    if not str(src).startswith(hub.HUB):
        return storage.path(src)
    repository, revision = hub.address(str(src))
    directory, failed = hub.snapshot(repository, [*_EXPERT, _IN_LIBRARY], revision)
    if directory is not None and any((directory / name).exists() for name in _SPECS):
        return directory
    inside = [] if directory is None else sorted(directory.glob(_IN_LIBRARY))
    if directory is not None and len(inside) == 1:
        own = inside[0].parent.relative_to(directory)
        directory, failed = hub.snapshot(repository, [f"{own}/{name}" for name in _EXPERT], revision)
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
    why = failed or f"it has none of {', '.join(_SPECS)}"
    raise UserError(
        f"Expected an expert or an adapter in the repository {repository!r}, got none ({why:.200}). Fix: "
        f"run `hf download {repository} --local-dir DIR` where there is a network, and name DIR."
    )


def _ids() -> list[str]:
    return [model.hub for model in known.KNOWN.values()]
