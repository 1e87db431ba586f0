"""T5X's own programs for the same work, as programs that are compiled and counted in the way that ours are.

T5X is not on the package index: `pip install fiddle cached_property` and a clone of google-research/t5x on
PYTHONPATH make it importable.

Both are what T5X runs for its `scalable_t5` (scanned layers, remat_policy "minimal") by the settings of its
gin files: a train step of its `Trainer` is the forward and backward pass of one batch and Adafactor's update,
with float32 parameters, products in bfloat16 and dropout drawn by threefry; `score_batch` takes parameters in
bfloat16. Its `PjitPartitioner` has num_partitions=1 and `standard_logical_axis_rules` with activations
divided along one axis and parameters along two: each device has rows of its own and a part of every kernel.
Its mesh is told rather than found, since T5X would ask for the process's own devices; T5X's `get_mesh` lays
it out. Nothing of T5X is changed or copied, and the compiler gets no options, as T5X gives it none.
"""

import importlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elm_jax.aot import program
from elm_jax.aot.program import Program
from elm_jax.errors import UserError
from elm_jax.models import sizes
from elm_jax.t5x import imports

MODULES = ("adafactor", "models", "partitioning", "trainer", "utils", "examples.scalable_t5.network")
FIELDS = (
    *("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers"),
    *("num_decoder_layers", "mlp_activations", "logits_via_embedding"),
)
"""The fields of a size that T5X's configuration has under the same name."""


def train_step(
    devices: Sequence[Any],
    *,
    rows: int,
    prompt: int = 512,
    target: int = 128,
    size: str = "xl",
    packed: bool = True,
    dropout: float = 0.1,
) -> Program:
    """Returns T5X's train step of one batch: the gradient of all parameters and Adafactor's update.

    Args:
        devices: all devices of one slice; they need not be this process's own.
        rows: rows of a batch on each device.
        prompt: tokens of a row of prompts.
        target: tokens of a row of targets.
        size: the network's, by name; one with a feed-forward of T5X's.
        packed: whether rows carry segments and positions, as they do in T5X's `finetune.gin`.
        dropout: the rate of dropout.

    Returns:
        A program of (train state, batch) that returns (train state, metrics) and consumes the state.

    Raises:
        UserError: where T5X cannot be imported, or the devices are of several slices.
    """
    t5x = _t5x()
    partitioner = _partitioner(t5x, devices)
    model = _model(t5x, size, dropout)
    batch = _batch(model, len(devices) * rows, {"inputs": prompt, "targets": target}, packed)
    initializer = _initializer(t5x, model, model.optimizer_def, batch, partitioner)
    state, axes = initializer.global_train_state_shape, initializer.train_state_axes
    rate = t5x.utils.create_learning_rate_scheduler(factors="constant", base_learning_rate=1e-3)
    trainer = t5x.trainer.Trainer(
        model=model,
        train_state=state,
        partitioner=partitioner,
        eval_names=(),
        summary_dir=None,
        train_state_axes=axes,
        rng=jax.random.key_data(jax.random.key(0, impl="threefry2x32")),
        learning_rate_fn=rate,
        num_microbatches=None,
    )
    with trainer:  # ends its threads; the step stays
        step = trainer._partitioned_train_step  # what `compile_train` compiles; T5X has no public name for it
    arguments = (_placed(partitioner, axes, state), _rows(partitioner, batch))
    return Program("T5X's train step", step, arguments)


def score_batch(
    devices: Sequence[Any],
    *,
    rows: int,
    prompt: int = 256,
    target: int = 16,
    size: str = "xl",
) -> Program:
    """Returns T5X's scoring of one batch, the log-likelihood of each row's target, by its `infer.gin`.

    Args:
        devices: all devices of one slice; they need not be this process's own.
        rows: rows of a batch on each device; an answer choice is a row, with its prompt.
        prompt: tokens of a row of prompts.
        target: tokens of a row of targets.
        size: the network's, by name; one with a feed-forward of T5X's.

    Returns:
        A program of (parameters, batch) that returns a score for every row.

    Raises:
        UserError: where T5X cannot be imported, or the devices are of several slices.
    """
    t5x = _t5x()
    partitioner = _partitioner(t5x, devices)
    model = _model(t5x, size, dropout=0.0)
    batch = _batch(model, len(devices) * rows, {"inputs": prompt, "targets": target}, packed=False)
    initializer = _initializer(t5x, model, None, batch, partitioner)
    axes, params = initializer.train_state_axes.params, initializer.global_train_state_shape.params
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    score = partitioner.partition(
        lambda params, batch: model.score_batch(params, batch),
        in_axis_resources=(axes, partitioner.data_partition_spec),
        out_axis_resources=None,
    )
    arguments = (_placed(partitioner, axes, params), _rows(partitioner, batch))
    return Program("T5X's score_batch", score, arguments)


def _t5x() -> SimpleNamespace:
    """Returns T5X's modules by the last part of their names, and SeqIO."""
    imports.import_t5x()
    modules = {name.rpartition(".")[2]: importlib.import_module(f"t5x.{name}") for name in MODULES}
    return SimpleNamespace(**modules, seqio=importlib.import_module("seqio"))


def _partitioner(t5x: Any, devices: Sequence[Any]) -> Any:
    """Returns a partitioner for these devices, whose mesh has all of them on its axis of data."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        raise UserError(f"T5X's programs are made for one slice's devices, but {len(slices)} slices' came.")
    rules = t5x.partitioning.standard_logical_axis_rules(
        activation_partitioning_dims=1, parameter_partitioning_dims=2
    )
    partitioner = t5x.partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)
    if devices[0].platform == "tpu":
        host = [device for device in devices if device.process_index == devices[0].process_index]
        partitioner.mesh = t5x.partitioning.get_mesh((1, 1, 1, 1), devices, host)
    else:
        partitioner.mesh = Mesh(np.asarray(devices).reshape(-1, 1), ("data", "model"))
    return partitioner


def _model(t5x: Any, size: str, dropout: float) -> Any:
    """Returns T5X's model of a size; its vocabularies serve for nothing here."""
    shape = {field: getattr(sizes.find_config(size), field) for field in FIELDS}
    network = t5x.network.T5Config(
        **shape, dtype="bfloat16", dropout_rate=dropout, scan_layers=True, remat_policy="minimal"
    )
    words = t5x.seqio.PassThroughVocabulary(network.vocab_size)
    factors = t5x.adafactor.standard_logical_factor_rules()
    return t5x.models.EncoderDecoderModel(
        module=t5x.network.Transformer(config=network),
        input_vocabulary=words,
        output_vocabulary=words,
        optimizer_def=t5x.adafactor.Adafactor(decay_rate=0.8, step_offset=0, logical_factor_rules=factors),
        z_loss=1e-4,
    )


def _batch(model: Any, rows: int, lengths: Mapping[str, int], packed: bool) -> dict[str, Any]:
    """Returns the shapes of the features that SeqIO converts a batch to, integers all of them."""
    features = model.FEATURE_CONVERTER_CLS(pack=packed).get_model_feature_lengths(lengths)
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name, length in features.items()}


def _initializer(t5x: Any, model: Any, optimizer: Any, batch: Mapping[str, Any], partitioner: Any) -> Any:
    """Returns what has a state's shapes and axes, found with no array of the network's size."""
    return t5x.utils.TrainStateInitializer(
        optimizer_def=optimizer,
        init_fn=model.get_initial_variables,
        input_shapes={name: feature.shape for name, feature in batch.items()},
        input_types={name: feature.dtype for name, feature in batch.items()},
        partitioner=partitioner,
    )


def _placed(partitioner: Any, axes: Any, shapes: Any) -> Any:
    """Returns shapes with the shardings of T5X's axes, of which None is whole on every device."""

    def placed(spec: PartitionSpec | None, part: Any) -> Any:
        return program.with_shardings(part, NamedSharding(partitioner.mesh, spec or PartitionSpec()))

    return jax.tree.map(placed, axes, shapes, is_leaf=lambda leaf: leaf is None)


def _rows(partitioner: Any, batch: Mapping[str, Any]) -> Any:
    """Returns a batch whose rows are divided between the devices."""
    rows = NamedSharding(partitioner.mesh, partitioner.data_partition_spec)
    return program.with_shardings(dict(batch), rows)
