"""Checkpoints under T5X: the network that fits one, and how a training starts from it or goes on.

T5X restores whatever parameters match, and leaves the others as they were drawn. So the network is made from
the checkpoint here, and one that does not fit is refused before T5X restores anything. Other hooks change
what happens with INITIAL_CHECKPOINT_PATH alone: a run that goes on restores everything that it saved.
"""

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.models import paths, sizes
from elm_jax.models.sizes import T5Config
from elm_jax.t5x.module import Transformer
from elm_jax.weights import t5x, t5x_experts, t5x_gin
from elm_jax.weights.tensors import Tensor

OPTIMIZER_STATE = (r"state/param_states/.*", r"state/step")


def make_module(
    checkpoint: storage.PathLike | None,
    *,
    model_dir: storage.PathLike | None = None,
    size: str | None = None,
    vocab_size: int | None = None,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    dropout_rate: float = 0.0,
    dtype: str = "float32",
    vocabulary: Any = None,
) -> Transformer:
    """Returns the network for T5X, of the shape that the checkpoint has, with its expert.

    Args:
        checkpoint: Where the parameters come from; None draws them.
        model_dir: The run's directory, for a training; it goes on from the last checkpoint there. A training
            may add an expert to a checkpoint that has none.
        size: A size of `elm_jax.models.sizes`; default: what the checkpoint has.
        vocab_size: Rows of the table of embeddings; default: what the checkpoint has.
        kind: Kind of the expert; default: what the checkpoint has.
        options: Of the kind; default: what the checkpoint has, or the kind's defaults.
        dropout_rate: Of a training.
        dtype: What matrix products compute in.
        vocabulary: SeqIO's, which must not have more ids than the table of embeddings has rows.

    Raises:
        UserError: If the checkpoint has other parameters than the network, or is not there; if there is no
            such type; or if the vocabulary has more ids.
    """
    names.resolve(dtype, ("float32", "bfloat16"), kind="type", where="DTYPE")
    resumed = None if model_dir is None else find_last_checkpoint(model_dir)
    start = resumed or checkpoint
    found = t5x.list_parameters(start) if start else {}
    if size is not None:
        config = sizes.find_config(size)
        if "token_embedder/embedding" in found:
            config = replace(config, vocab_size=found["token_embedder/embedding"].shape[0])
    elif start:
        config = t5x.open_checkpoint(start).config
    else:
        raise UserError(
            "Expected a size for a network that starts from nothing, got none. Fix: give "
            "--gin.INITIAL_CHECKPOINT_PATH, or --gin.SIZE."
        )
    rows = vocab_size or config.vocab_size
    config = replace(config, dropout_rate=dropout_rate, dtype=dtype, vocab_size=rows)
    if vocabulary is not None:
        require_embedding_rows(config, vocabulary.vocab_size)
    there, told = t5x_experts.infer_expert({path: tensor.shape for path, tensor in found.items()})
    kind = names.resolve(kind or there, t5x_experts.OWNED_PARAMS, kind="expert kind", where="elm_jax")
    network = Transformer(config, kind, {**(told if kind == there else {}), **(options or {})})
    if start:
        _require_fit(network, found, str(start), fresh=model_dir is not None and not resumed)
    return network


def require_embedding_rows(config: T5Config, ids: int) -> None:
    """Refuses a vocabulary of more ids than the table of embeddings has rows."""
    if ids > config.vocab_size:
        raise UserError(
            f"Expected a vocabulary of at most {config.vocab_size} ids, as the table of embeddings has rows, "
            f"got {ids}. Fix: correct VOCABULARY_FILE or EXTRA_IDS."
        )


def find_last_checkpoint(model_dir: storage.PathLike) -> storage.PathLike | None:
    """Returns the last finished checkpoint in a run's directory; None if there is none."""
    directory = storage.path(model_dir)
    entries = directory.iterdir() if directory.is_dir() else ()
    steps = [entry for entry in entries if t5x.STEP_DIRECTORY.fullmatch(entry.name)]
    return max(steps, key=lambda entry: int(entry.name.partition("_")[2]), default=None)


def read_macro(name: str, checkpoint: storage.PathLike, default: Any = None) -> Any:
    """Returns what a macro was when T5X trained a checkpoint, as the gin file beside it says.

    Args:
        name: The macro.
        checkpoint: The checkpoint, or the directory of several.
        default: Where no file says it.
    """
    told = t5x_gin.read_macros(storage.path(checkpoint)).get(name, default)
    return default if isinstance(told, str) and told.startswith(("@", "%")) else told


def restore_rules(kind: str, checkpoint: storage.PathLike | None) -> tuple[tuple[str, None], ...]:
    """Returns T5X's assignment map from a checkpoint that a training starts from.

    Parameters that only the expert has are drawn, unless the checkpoint has them. The optimizer's state and
    the step start anew, so that the step counts this training.

    Args:
        kind: Kind of the expert.
        checkpoint: The checkpoint.

    Returns:
        (pattern, None) for all that is not restored. T5X requires every pattern to match something.
    """
    found = t5x.list_parameters(checkpoint) if checkpoint else {}
    has_expert = any(map(t5x_experts.EXPERT_ONLY.fullmatch, found))
    drawn = () if kind == "full" or has_expert else (f"target/{t5x_experts.EXPERT_ONLY.pattern}",)
    return tuple((pattern, None) for pattern in (*drawn, *OPTIMIZER_STATE))


def get_dataset(*arguments: Any, model_dir: storage.PathLike, **options: Any) -> Any:
    """Returns T5X's training data, which continue only from a checkpoint of the run itself.

    With `SaveCheckpointConfig.save_dataset` T5X would restore a position in the data from the initial
    checkpoint too. That has none, or one in other data. Where a source cannot say its position, a warning
    says so, and a run that goes on reads from the start.

    Args:
        *arguments: For `t5x.utils.get_dataset`.
        model_dir: The run's directory.
        **options: For `t5x.utils.get_dataset`.

    Returns:
        An iterator over batches, as T5X takes them.
    """
    iterator: Any = importlib.import_module("clu.data.dataset_iterator").TfDatasetIterator
    errors: Any = importlib.import_module("tensorflow").errors
    t5x_get_dataset: Any = importlib.import_module("t5x.utils").get_dataset
    run = storage.absolute(model_dir)

    class RunIterator(iterator):
        def save(self, filename: storage.PathLike) -> None:
            try:
                super().save(filename)
            except (errors.FailedPreconditionError, errors.UnimplementedError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    "The position in the data cannot be saved, so that a run that goes on starts them anew "
                    f"({reason:.200}). Fix: a source without Python functions.",
                    stacklevel=2,
                )

        def restore(self, filename: storage.PathLike) -> None:
            place = storage.path(filename)
            if storage.absolute(place).is_relative_to(run) and any(place.parent.glob(f"{place.name}*")):
                super().restore(filename)

    return RunIterator(t5x_get_dataset(*arguments, **options), checkpoint=True)


def _require_fit(network: Transformer, found: Mapping[str, Tensor], where: str, *, fresh: bool) -> None:
    """Refuses a checkpoint whose names or shapes are not the network's; a fresh expert's may be absent."""
    made = jax.eval_shape(lambda: network.init(jax.random.key(0))["params"])
    wanted = {path: leaf.shape for path, leaf in paths.flatten(made).items()}
    stored = {path: tensor.shape for path, tensor in found.items()}
    own = {path for path in wanted if t5x_experts.EXPERT_ONLY.fullmatch(path)}
    missing = wanted.keys() - stored.keys() - (own if fresh and not own & stored.keys() else set())
    more = stored.keys() - wanted.keys()
    other = {path for path in wanted.keys() & stored.keys() if wanted[path] != stored[path]}
    if not missing | more | other:
        return
    first = min(missing | more | other)
    scanned = any(f"/{paths.LAYER_STACK}/" in path for path in stored)
    fix = (
        "write it with its layers apart, with `elm convert`"
        if scanned
        else "leave out SIZE, VOCAB_SIZE and EXPERT_OPTIONS, which it tells, give its EXPERT_KIND, or name "
        "another checkpoint"
    )
    raise UserError(
        f"Expected the {len(wanted)} parameters of a network with an expert of kind {network.kind!r} in "
        f"{where!r}, got a checkpoint that lacks {len(missing)} of them, has {len(more)} more and "
        f"{len(other)} of another shape, such as {first!r}, {stored.get(first, 'none')} for "
        f"{wanted.get(first, 'none')}. Fix: {fix}."
    )
