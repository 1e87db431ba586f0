"""Tasks under T5X: our SeqIO tasks as its trainer and its evaluator take them, and its scores against ours.

Runs where T5X can be imported (elm_jax/t5x/imports.py says how to get it). What T5X does here it does
by its own `train` and `evaluate`, on a network of two layers, so that the time goes to compilations.
"""

import functools
import importlib
import importlib.util
import json
import shutil
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from elm_jax.data import task_rows
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.scoring.scorer import score_rows
from elm_jax.t5x import imports
from elm_jax.tasks import data_source, rendering, seqio_tasks, specs
from elm_jax.tokenizers import sentencepiece

pytestmark = [
    pytest.mark.t5x,
    pytest.mark.filterwarnings("ignore"),  # T5X's and TensorFlow's own
    pytest.mark.skipif(
        importlib.util.find_spec("t5x") is None,
        reason="T5X is not installed; elm_jax/t5x/imports.py says how to get it",
    ),
]

DATASET = "mini_taxonomy_kind"  # of two prompts
LENGTHS = {"inputs": 40, "targets": 6}
SHAPE = T5Config(
    vocab_size=512,
    emb_dim=32,
    num_heads=8,  # T5X divides them between the devices of a CPU, of which the tests have eight
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.1,
)
MODULES = ("adafactor", "eval", "models", "partitioning", "train", "trainer", "utils")
ROWS = 8  # a batch
STEPS, LAST = 100, 10  # of training, and those after the checkpoint that a second run goes on from


@pytest.fixture(scope="module")
def t5x():
    """T5X's modules, under JAX's own rules of promotion, which T5X is written for."""
    promotion = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "allow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imports.import_t5x()
        modules = {name: importlib.import_module(f"t5x.{name}") for name in MODULES}
        modules["network"] = importlib.import_module("t5x.examples.t5.network")
        modules["seqio"] = importlib.import_module("seqio")
    yield SimpleNamespace(**modules)
    jax.config.update("jax_numpy_rank_promotion", promotion)


@pytest.fixture(scope="module")
def words(t5x, tmp_path_factory):
    chosen = [spec for spec in specs.task_specs("mini") if spec.dataset == DATASET]
    found = [example for spec in chosen for example in rendering.examples(spec, "train").examples]
    file = tmp_path_factory.mktemp("v") / "m.model"
    sentencepiece.train(
        [text for each in found for text in (each.input, *each.choices)], file, 300, kind="word"
    )
    return t5x.seqio.SentencePieceVocabulary(str(file), extra_ids=100)


@pytest.fixture(scope="module")
def registered(t5x, words):
    return seqio_tasks.register_tasks(specs.task_specs("mini"), vocabulary=words)


@pytest.fixture(scope="module")
def model(t5x, words):
    fields = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers")
    fields += ("num_decoder_layers", "dropout_rate", "mlp_activations", "logits_via_embedding")
    shape = t5x.network.T5Config(**{field: getattr(SHAPE, field) for field in fields})
    rules = t5x.adafactor.standard_logical_factor_rules()
    return t5x.models.EncoderDecoderModel(
        module=t5x.network.Transformer(shape),
        input_vocabulary=words,
        output_vocabulary=words,
        optimizer_def=t5x.adafactor.Adafactor(decay_rate=0.8, step_offset=0, logical_factor_rules=rules),
    )


def partitioner(t5x):
    rules = t5x.partitioning.standard_logical_axis_rules()
    return t5x.partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)


def dataset(t5x, name, split="train", *, pack, batch=ROWS):
    return t5x.utils.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths=LENGTHS,
        split=split,
        batch_size=batch,
        shuffle=split == "train",
        seed=3,
        use_cached=False,
        pack=pack,
    )


def train(t5x, model, directory, *, pack, steps):
    """Trains up to `steps` from what the directory holds, as T5X's train.py does; returns the parameters."""
    rate = t5x.utils.create_learning_rate_scheduler(factors="constant", base_learning_rate=0.02)
    _, state = t5x.train.train(
        model=model,
        train_dataset_cfg=dataset(t5x, DATASET, pack=pack),
        train_eval_dataset_cfg=None,
        infer_eval_dataset_cfg=None,
        checkpoint_cfg=t5x.utils.CheckpointConfig(
            save=t5x.utils.SaveCheckpointConfig(period=steps - LAST, dtype="float32", save_dataset=True)
        ),
        partitioner=partitioner(t5x),
        trainer_cls=functools.partial(t5x.trainer.Trainer, num_microbatches=None, learning_rate_fn=rate),
        model_dir=str(directory),
        total_steps=steps,
        eval_steps=0,
        eval_period=0,
        random_seed=0,
        summarize_config_fn=lambda *arguments: None,
    )
    return paths.flatten(jax.tree.map(np.asarray, state.params))


@pytest.fixture(scope="module")
def trained(t5x, model, registered, tmp_path_factory):
    """The directory and the parameters of an uninterrupted run on packed rows."""
    directory = tmp_path_factory.mktemp("packed")
    return directory, train(t5x, model, directory, pack=True, steps=STEPS)


def resume(t5x, model, directory, params, tmp_path, *, pack, steps):
    """Asks whether a run that starts from the checkpoint before the last ends as the one that made it."""
    before = f"checkpoint_{steps - LAST}"
    shutil.copytree(directory / before, tmp_path / before)
    again = train(t5x, model, tmp_path, pack=pack, steps=steps)
    for path, value in params.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_t5x_trains_on_packed_rows_of_a_dataset_and_resumes(t5x, model, trained, tmp_path):
    resume(t5x, model, *trained, tmp_path, pack=True, steps=STEPS)


def test_t5x_trains_on_rows_that_are_not_packed(t5x, model, registered, tmp_path):
    params = train(t5x, model, tmp_path / "whole", pack=False, steps=2 * LAST)
    resume(t5x, model, tmp_path / "whole", params, tmp_path / "again", pack=False, steps=2 * LAST)


@pytest.fixture(scope="module")
def evaluated(t5x, model, trained, registered, tmp_path_factory):
    """What T5X's eval.py says of a mixture: the two prompts ranked, and one of them written by the model."""
    ranked = t5x.seqio.get_mixture_or_task(DATASET + seqio_tasks.SCORE_EVAL)
    written = registered.tasks[f"{DATASET}/what kind of thing"]
    t5x.seqio.MixtureRegistry.remove("judged")
    t5x.seqio.MixtureRegistry.add("judged", [*(task.name for task in ranked.tasks), written], default_rate=1)
    directory = tmp_path_factory.mktemp("evaluated")
    (directory / "inference_eval").mkdir()  # SeqIO's logger of JSON leaves it to the others
    t5x.eval.evaluate(
        model=model,
        dataset_cfg=dataset(t5x, "judged", "validation", pack=False, batch=64),
        restore_checkpoint_cfg=t5x.utils.RestoreCheckpointConfig(
            path=str(trained[0] / f"checkpoint_{STEPS}"), mode="specific", dtype="float32"
        ),
        partitioner=partitioner(t5x),
        output_dir=str(directory),
        inference_evaluator_cls=functools.partial(t5x.seqio.Evaluator, logger_cls=[t5x.seqio.JSONLogger]),
        summarize_config_fn=lambda **options: None,
    )
    return directory / "inference_eval"


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_t5x_ranks_choices_with_our_scores_and_accuracy(evaluated, trained, registered, words):
    params = paths.unflatten(paths.stack_layers(trained[1]))
    pieces = sentencepiece.load(words.sentencepiece_model_file, extra_ids=words.extra_ids)
    lengths = data_source.Lengths(LENGTHS["inputs"], LENGTHS["targets"])
    ours = [spec for spec in specs.task_specs("mini") if spec.dataset == DATASET]
    assert len(ours) == 2
    for spec in ours:
        found = rendering.examples(spec, "validation").examples
        scores = score_rows(SHAPE, params, task_rows.build_scoring_rows(found, pieces, lengths, task=spec.id))
        name = registered.ranked[spec.id]
        told = read(evaluated / f"{name}-{STEPS:06d}.jsonl")
        np.testing.assert_allclose([row["score"] for row in told], np.concatenate(scores), atol=1e-4)
        right = [np.argmax(row) == example.label for row, example in zip(scores, found, strict=True)]
        (metrics,) = read(evaluated / f"{name}-metrics.jsonl")
        assert metrics == {"step": STEPS, "accuracy": pytest.approx(100 * np.mean(right), abs=1e-6)}
        assert metrics["accuracy"] > 60  # of three choices: it has learned, so its scores say something


def test_t5x_generates_answers_and_seqio_measures_their_accuracy(evaluated, registered):
    name = registered.tasks[f"{DATASET}/what kind of thing"]
    told = read(evaluated / f"{name}-{STEPS:06d}.jsonl")
    same = [row["prediction"] == row["input"]["targets_pretokenized"] for row in told]
    (metrics,) = read(evaluated / f"{name}-metrics.jsonl")
    assert metrics == {"step": STEPS, "exact_match": pytest.approx(100 * np.mean(same))}
    assert sum(same) > len(same) / 3  # a text that was written and read back right


def batches(t5x, name, *, pack=False, host=0, hosts=1, epochs=None):
    convert = t5x.models.EncoderDecoderModel.FEATURE_CONVERTER_CLS
    return t5x.utils.get_dataset(dataset(t5x, name, pack=pack), host, hosts, convert, num_epochs=epochs)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("kind", ["task", "mixture", "twin"])
def test_every_batch_has_a_static_shape(t5x, registered, kind, pack):
    task = f"{DATASET}/what kind of thing"
    name = {"task": registered.tasks[task], "mixture": DATASET, "twin": registered.ranked[task]}[kind]
    found = batches(t5x, name, pack=pack).element_spec
    assert len(found) == (8 if pack else 4)
    for feature, spec in found.items():
        length = LENGTHS["inputs" if feature.startswith("encoder") else "targets"]
        assert spec.shape.as_list() == [ROWS, length]


def test_two_hosts_read_every_row_once_between_them(t5x, registered):
    name = registered.tasks[f"{DATASET}/what kind of thing"]

    def rows(**host):
        return [
            tuple(row)
            for batch in batches(t5x, name, epochs=1, **host).as_numpy_iterator()
            for row in batch["encoder_input_tokens"]
        ]

    first, second, whole = rows(host=0, hosts=2), rows(host=1, hosts=2), rows()
    assert len(first) == len(second) == len(whole) / 2 == 144
    assert sorted(first + second) == sorted(whole)
