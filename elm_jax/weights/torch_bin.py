"""PyTorch's `.bin` files, which are pickles: read by its own weights-only loader, or not at all."""

from typing import Any

import numpy as np
from etils import epath
from ml_dtypes import bfloat16

from elm_jax.errors import UserError
from elm_jax.weights import tensors
from elm_jax.weights.tensors import Tensor


def list_tensors(where: epath.Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name; a UserError if torch is absent or refuses the file."""
    file = str(where)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file!r} is a pickle, which may run any program and is therefore left to torch's weights-only "
            "loader, but torch is not installed. `pip install torch`, or get the checkpoint as safetensors."
        ) from None
    state = _loaded(torch, file)
    found = {}
    for name, value in state.items() if isinstance(state, dict) else [("", state)]:
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise UserError(
                f"{file!r} should hold tensors by name, but holds {name!r:.50} as {type(value).__name__}. "
                "Name a checkpoint of a T5's weights."
            )
        plain: Any = value.detach()
        if plain.dtype == torch.bfloat16:
            array = plain.contiguous().view(torch.uint16).numpy().view(bfloat16)
        else:
            array = np.asarray(plain.numpy())
        found[name] = tensors.tensor_from_array(name, file, array)
    return found


def _loaded(torch: Any, file: str) -> Any:
    """Returns what the weights-only loader makes of a file; mapped, where the file's age allows it."""
    failure: Exception | None = None
    for mapped in (True, False):
        try:
            return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
        except OSError as error:
            raise UserError(f"{file!r} was to be read, but the system refused ({error.strerror}).") from None
        except Exception as error:  # torch raises what its parts raise: pickle's, zip's, its own
            failure = error
    raise UserError(
        f"{file!r} should hold a T5's weights, but torch's weights-only loader refuses it "
        f"({type(failure).__name__}): it is cut short, or a pickle of something else. Nothing was unpickled; "
        "download it again, or get the checkpoint as safetensors."
    )
