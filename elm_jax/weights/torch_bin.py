"""PyTorch's `.bin` files, which are pickles: read by its own weights-only loader, or not at all."""

import warnings
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
            f"Expected torch, whose weights-only loader reads the pickle {file!r}, got none. Fix: run `pip "
            "install torch`, or get the checkpoint as safetensors."
        ) from None
    state = _loaded(torch, file)
    found = {}
    for name, value in state.items() if isinstance(state, dict) else [("", state)]:
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise UserError(
                f"Expected tensors by name in {file!r}, got {name!r:.50} as {type(value).__name__}. Fix: "
                "name a checkpoint of a T5's weights."
            )
        plain: Any = value.detach()
        if plain.dtype == torch.bfloat16:
            array = plain.contiguous().view(torch.uint16).numpy().view(bfloat16)
        else:
            try:
                array = np.asarray(plain.numpy())
            except (TypeError, RuntimeError):  # of a type or a layout that NumPy has not
                raise UserError(
                    f"Expected {name!r} in {file!r} as plain numbers of 16 bits or more, got {plain.dtype} "
                    f"as {plain.layout}. Fix: convert it first."
                ) from None
        found[name] = tensors.tensor_from_array(name, file, array)
    return found


def _loaded(torch: Any, file: str) -> Any:
    """Returns what the weights-only loader makes of a file; mapped, where the file's age allows it."""
    failure: Exception | None = None
    for mapped in (True, False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch asks to report pickles that its loader may not know
                return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
        except OSError as error:
            raise UserError(
                f"Expected to read {file!r}, got {error.strerror}. Fix: check who may read it."
            ) from None
        except Exception as error:  # torch raises what its parts raise: pickle's, zip's, its own
            failure = error
    raise UserError(
        f"Expected weights of a T5 in {file!r}, got a file that torch's weights-only loader refuses "
        f"({type(failure).__name__}): it is cut short, or a pickle of something else. Fix: download it "
        "again, or get the checkpoint as safetensors."
    )
