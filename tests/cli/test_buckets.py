"""A run whose directory is in a bucket: trained, indexed, evaluated and reported as on a disk."""

import json

import jax
import numpy as np
import pytest

from elm_jax import cli, storage
from elm_jax.data import task_selection
from elm_jax.experts import versions
from elm_jax.experts.library import Library
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.tasks import rendering
from elm_jax.tokenizers import sentencepiece
from elm_jax.training.checkpoints import CheckpointStore
from elm_jax.weights import base_model, elm
from tests.s3_server import objects

TRAINED, UNSEEN = "mini_size_animal", "mini_size_suitcase"  # of two prompts each


@pytest.fixture
def base(tmp_path):
    texts = [
        text
        for spec in task_selection.select_tasks([TRAINED, UNSEEN])
        for example in rendering.examples(spec, "train").examples[:30]
        for text in (example.input, example.target)
    ]
    pieces = sentencepiece.train(texts, tmp_path / "vocabulary.model", 200, kind="word", extra_ids=16)
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    sizes = {"vocab_size": pieces.size, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16}
    config = find_config("tiny", **sizes, **layers)
    elm.save(tmp_path, base_model.make_base(config, init_params(jax.random.key(0), config)))
    return tmp_path


def run(*words):
    """Runs a command to its end, which is an exit with 0 or none."""
    try:
        cli.main(list(map(str, words)))
    except SystemExit as stop:
        if stop.code:
            raise


def train(home, base, *flags, **macros):
    given = {"INITIAL_CHECKPOINT_PATH": str(base), "MODEL_DIR": str(home), "MIXTURE_OR_TASK_NAME": TRAINED}
    given |= {"TRAIN_STEPS": 4, "BATCH_SIZE": 4, "LEARNING_RATE": 1e-3, "MAX_TRAIN_SAMPLES": 12}
    given |= {"TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 6}, "SAVE_PERIOD": 2, **macros}
    bindings = [f"--gin.{name}={value!r}" for name, value in given.items()]
    run("train", "--gin_file=gin/recipes/prompt_expert.gin", *bindings, *flags)


def test_a_run_in_a_bucket_is_trained_indexed_evaluated_and_reported(bucket, base, tmp_path, capsys):
    here, there = storage.path(tmp_path) / "run", bucket / "runs" / "one"
    for home in (here, there):
        train(home, base)
        run("prepare", TRAINED, "--run", home, "--limit", 12, "--processes", 1)
        run("index", "--run", home, "--size", 4)
        capsys.readouterr()
        run("evaluate", UNSEEN, "--run", home, "--limit", 8, "--method", "roe", "--method", "uniform")
        run("report", "--run", home)
        assert "uniform" in capsys.readouterr().out
    local, remote = Library.open(here / "library"), Library.open(there / "library")
    assert remote.ids() == local.ids()
    assert len(remote.ids()) == 2
    assert remote.verify() == []
    for name in remote.ids():
        assert remote.describe(name).checksum == local.describe(name).checksum
        np.testing.assert_array_equal(remote.load_keys(name).vectors, local.load_keys(name).vectors)
    means = [json.loads((home / "report" / "report.json").read_text())["means"] for home in (here, there)]
    assert means[0] == means[1]
    names = objects(there)
    assert sum(name.endswith(f"/{versions.POINTER_FILE}") for name in names) >= 2
    assert not any(name.endswith((".lock", ".tmp")) for name in names)
    assert not any(name.startswith("checkpoints/") for name in names)
    # Nothing was written beside the bucket, where TensorStore would take its name for a directory's.
    assert not (storage.path(".") / "s3:").exists()


@pytest.mark.nightly
def test_a_training_that_was_stopped_goes_on_from_its_checkpoint_in_the_bucket(bucket, base, monkeypatch):
    save, saved = CheckpointStore.save, []

    def stop(self, step, *rest):
        save(self, step, *rest)
        saved.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointStore, "save", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(bucket / "torn", base)
    monkeypatch.setattr(CheckpointStore, "save", save)
    assert any(name.startswith("checkpoints/") for name in objects(bucket / "torn"))
    train(bucket / "torn", base)
    train(bucket / "whole", base)
    torn, whole = (Library.open(bucket / name / "library") for name in ("torn", "whole"))
    assert [torn.describe(name).checksum for name in torn.ids()] == [
        whole.describe(name).checksum for name in whole.ids()
    ]
    assert saved
