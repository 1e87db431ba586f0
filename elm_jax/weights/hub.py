"""The hub: a model's files from the local cache of Hugging Face's hub, or fetched into it."""

from collections.abc import Sequence

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.weights import hf_config, huggingface, known
from elm_jax.weights.known import Known

# Of the ways to keep weights the first that a repository has: each needs more than the one before.
_WEIGHTS = ("model*.safetensors*", "flax_model*.msgpack*", "pytorch_model*.bin*")
_BESIDE = (hf_config.FILE, *huggingface.BESIDE)


def fetch(model: Known) -> epath.Path:
    """Returns the directory of a model's files, fetching them if the cache has none.

    Raises a UserError that says what to download, from where, and where to put it, if that cannot be done.
    """
    from huggingface_hub import constants

    why = "offline mode is on"
    for weights in (None, *_WEIGHTS):
        directory, failed = snapshot(model.hub, None if weights is None else [*_BESIDE, weights])
        if directory is None and weights is not None:
            why = failed
            break
        if directory is None:
            continue
        if huggingface.weights_in(directory) and (directory / hf_config.FILE).exists():
            return directory
        why = f"its repository has none of {', '.join(_WEIGHTS)}"
    near = [] if model.hub in _ids() else names.near_matches(model.hub, _ids())
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    bucket = f", or `gcloud storage cp -r {model.bucket} DIR`" if model.bucket else ""
    raise UserError(
        f"The model {model.hub!r} is wanted, but no directory has that name, the cache at "
        f"{constants.HF_HUB_CACHE!r} lacks it, and it could not be fetched ({why[:200]}).{hint} Where there "
        f"is a network, run `hf download {model.hub} --local-dir DIR`, which brings {hf_config.FILE} and "
        f"weights ({', '.join(_WEIGHTS)}) from https://huggingface.co/{model.hub}{bucket}; then name DIR."
    )


def snapshot(repository: str, patterns: Sequence[str] | None) -> tuple[epath.Path | None, str]:
    """Returns the directory of a repository's files that match, fetched where absent, or None and the reason.

    Without patterns nothing is fetched: it is what the cache has.
    """
    import huggingface_hub

    try:
        place = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=None if patterns is None else list(patterns),
            local_files_only=patterns is None,
        )
    except Exception as error:  # the hub's, its client's and the system's, by many names
        return None, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return storage.path(place), ""


def _ids() -> list[str]:
    return [model.hub for model in known.KNOWN.values()]
