"""What the documentation's examples stand on: a small run, evaluated, as the quickstart leaves one."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from elm_jax.data import task_rows, task_selection
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source, mini
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm
from tests.training_configs import train_config

TRAINED = ("mini_sentiment_film", "mini_size_animal")
UNSEEN = ("mini_sentiment_hotel",)
SCRIPTS = Path(__file__).parents[2] / "scripts" / "docs"


@pytest.fixture(autouse=True)
def _code_of_pages_is_forgotten(registries, tmp_path):
    """Pages show modules, routers and merges of one's own; two tests may read the same page."""
    yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def _script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", SCRIPTS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def examples():
    return _script("examples")


@pytest.fixture(scope="session")
def reference():
    return _script("reference")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of the whole path on an untrained base of one layer: two datasets' experts, one unseen task."""
    out = tmp_path_factory.mktemp("docs") / "elm_out"
    workspace = Workspace.open(out, create=True)
    source, lengths = data_source.Source(limit=6), data_source.Lengths(prompt=48, answer=8)
    words = [
        text
        for name in (*TRAINED, *UNSEEN)
        for spec in task_selection.select_tasks([name])
        for text in _texts(spec)
    ]
    file = workspace.base / opening.VOCABULARY_FILE
    texts = [*mini.make_statements(source.seed), *words]
    tokenizer = sentencepiece.train(texts, file, 1000, kind="word", extra_ids=opening.EXTRA_IDS)
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = find_config("tiny", vocab_size=tokenizer.size, emb_dim=16, head_dim=8, mlp_dim=16, **layers)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    elm.save(workspace.base, base_model.make_base(config, params))
    pipeline.run_pipeline(
        train_tasks=TRAINED,
        eval_tasks=UNSEEN,
        out=out,
        config=PipelineConfig(
            training=train_config(steps=2, batch_size=2, rate=1e-2, options={"width": 16}, dropout=0.0),
            source=source,
            lengths=lengths,
            train_rows=8,
            keys=4,
            evaluation=EvaluationConfig(queries=4),
        ),
    )
    return out


@pytest.fixture
def directory(small_run, tmp_path, monkeypatch):
    """A directory of one's own, with `elm_out` as the quickstart leaves it, to which one has changed."""
    out = tmp_path / "elm_out"
    shutil.copytree(small_run, out)
    note = out / settings.SETTINGS_FILE
    told = json.loads(note.read_text())
    told["source"]["limit"] = None  # the quickstart takes all rows
    note.write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _texts(spec):
    found = task_rows.load_examples(spec, data_source.Source(limit=20))
    return [text for each in found for text in (each.input, *each.choices)]
