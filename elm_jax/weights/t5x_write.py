"""Writing T5X's checkpoints with Orbax, so that T5X trains, evaluates and infers from them.

T5X restores `target`, the step and, to train, the state of its optimizer, Adafactor unless told otherwise.
The step written is 0: Adafactor then takes its first accumulators from the first gradient alone, so that
zeros are the state of a fresh start. TRAIN_STEPS counts from there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.records import Params
from elm_jax.weights import base_model
from elm_jax.weights.base_model import Base
from elm_jax.weights.t5x import STATE, TARGET

DIRECTORY = "checkpoint_0"
MIN_FACTORED_SIZE = 128  # of both axes of a matrix, for Adafactor to keep rows and columns alone


def save(where: storage.PathLike, base: Base, expert: Params | None = None) -> None:
    """Writes a base as `checkpoint_0` in a directory, and an expert among its parameters.

    T5X divides the logits of a tied head by sqrt(emb_dim); where the network does not, its head is written
    apart. A network under T5X has one rank, so LoRAs of lower ranks have zeros added, which change nothing.
    """
    if base.config.relpos_per_layer:
        raise UserError(
            "Expected one table of relative positions for each stack, as T5X's network has it, got one for "
            "each layer. Fix: convert to elm."
        )
    directory = storage.writable_directory(where).resolve()
    flat = base_model.params_by_layer(base)
    if base.config.logits_via_embedding and not base.config.scale_decoder_outputs:
        flat["decoder/logits_dense/kernel"] = np.ascontiguousarray(flat["token_embedder/embedding"].T)
    if expert is not None:
        flat |= paths.unstack_layers(_pad_ranks(paths.flatten(expert)))
    states = {path: _init_adafactor_state(value.shape) for path, value in flat.items()}
    tree = {
        TARGET: paths.unflatten(flat),
        STATE: {"step": np.zeros((), np.int32), "param_states": paths.unflatten(states)},
    }
    _write(directory, tree)


def _pad_ranks(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns an expert's parameters in float32, LoRAs of the largest rank among them."""
    found = {path: np.asarray(value, np.float32) for path, value in flat.items()}
    rank = max((value.shape[-1] for path, value in found.items() if path.endswith("/lora_a")), default=0)
    for path, value in found.items():
        axis = {"lora_a": -1, "lora_b": -2}.get(path.rpartition("/")[2])
        if axis is not None:
            more = [(0, 0)] * value.ndim
            more[axis] = (0, rank - value.shape[axis])
            found[path] = np.pad(value, more)
    return found


def _write(directory: epath.Path, tree: dict[str, Any]) -> None:
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory, options=options) as manager:
        manager.save(0, args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(tree)}))
    # T5X's own have it, and a run that saves its position in the data looks for it.
    (directory / DIRECTORY / "dataset").mkdir()


def _init_adafactor_state(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns Adafactor's state before its first step; what it does not use is a single zero."""
    state: dict[str, np.ndarray] = {name: np.zeros(1, np.float32) for name in ("m", "v", "v_col", "v_row")}
    order = [int(axis) for axis in np.argsort(shape)]
    if len(shape) > 1 and shape[order[-2]] >= MIN_FACTORED_SIZE:
        state["v_row"] = np.zeros(np.delete(shape, order[-1]), np.float32)
        state["v_col"] = np.zeros(np.delete(shape, order[-2]), np.float32)
    else:
        state["v"] = np.zeros(shape, np.float32)
    return state
