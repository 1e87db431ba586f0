"""What tests of evaluation share: runs of an untrained base of one layer, with experts drawn at random."""

import jax
import numpy as np
import pytest

from elm_jax.data import task_rows, task_selection
from elm_jax.experts.library import Library
from elm_jax.merging.table import MERGES
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.routing.index import index
from elm_jax.routing.table import ROUTERS
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

UNSEEN = "mini_size_suitcase"  # a task of two prompts
TRAINED = (
    "mini_size_animal/beside a dog",
    "mini_size_animal/than a dog",
    "mini_sentiment_film/after the film",
    "mini_sentiment_film/good or bad film",
)
BOTTLENECK = ("bottleneck", {"width": 4})
LORA = ("lora", {"rank": 2, "projections": ("query", "wo")})
ROWS = 12


def add_expert(run, name, kind, options, *, by=3.0, seed=0, datasets=None):
    """Puts an expert into a run's library whose parameters are drawn, and far enough from the base's."""
    rng = np.random.default_rng(seed)
    tree = ex.init_expert(kind, jax.random.key(seed), run.base.params, options)
    tree = jax.tree.map(lambda leaf: (leaf + rng.normal(0, 0.1 * by, leaf.shape)).astype(np.float32), tree)
    owned = tuple(sorted(paths.flatten(tree)))
    trained_on = datasets or (name.partition("/")[0],)
    recipe = {"seed": seed, "options": dict(options)}
    spec = ExpertSpec(name, kind, run.base.fingerprint, owned, tuple(trained_on), 1, recipe)
    Library.open(run.workspace.library, create=True).add(Expert(spec, tree), replace=True)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def registries():
    """Forgets the routers and merges that a test registers."""
    before = [(table, dict(table)) for table in (ROUTERS, MERGES)]
    yield
    for table, registered in before:
        table.clear()
        table.update(registered)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Makes a run with an expert of a kind for every name, keys embedded; kinds may differ by name.

    `words` are tasks beside these whose words the vocabulary has.
    """

    def make(kinds=BOTTLENECK, *, experts=TRAINED, rows=ROWS, keyed=True, words=()):
        workspace = Workspace.open(tmp_path_factory.mktemp("run"), create=True)
        source, lengths = data_source.Source(limit=rows), data_source.Lengths(prompt=24, answer=5)
        examples = [
            each
            for spec in task_selection.select_tasks(
                [UNSEEN, *words, *dict.fromkeys(name.partition("/")[0] for name in TRAINED)]
            )
            for each in task_rows.load_examples(spec, data_source.Source(limit=20))
        ]
        texts = [text for each in examples for text in (each.input, *each.choices)]
        file = workspace.base / opening.VOCABULARY_FILE
        tokenizer = sentencepiece.train(texts, file, 400, kind="word", extra_ids=opening.EXTRA_IDS)
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        config = find_config(
            "tiny", vocab_size=tokenizer.size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, **layers
        )
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
        elm.save(workspace.base, base_model.make_base(config, params))
        settings.save_run_settings(workspace, None, source, lengths)
        run = opening.open_run(workspace.root)
        for seed, name in enumerate(experts):
            kind, options = kinds[name] if isinstance(kinds, dict) else kinds
            add_expert(run, name, kind, options, seed=seed)
        if keyed:
            index(run, size=4)
        return run

    return make


@pytest.fixture(scope="session")
def unseen():
    return task_selection.select_tasks([UNSEEN], evaluation=True)
