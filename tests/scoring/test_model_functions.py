"""SeqIO's Evaluator with our functions: the accuracy and the answers that our own evaluation gives."""

import warnings

import numpy as np
import pytest

from elm_jax.data import task_rows
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.records import Expert, ExpertSpec
from elm_jax.reporting.text_metrics import exact_match
from elm_jax.scoring import generator, rank, scorer
from elm_jax.scoring.model_functions import model_functions
from elm_jax.tasks import data_source, rendering, seqio_tasks, specs
from elm_jax.tokenizers import sentencepiece
from elm_jax.training.step import stack
from elm_jax.weights import base_model

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own warnings
TASK = "mini_taxonomy_kind/what kind of thing"
LENGTHS = data_source.Lengths(prompt=16, answer=3)


@pytest.fixture(scope="module")
def seqio():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import seqio
    return seqio


@pytest.fixture(scope="module")
def examples():
    return rendering.examples(specs.find_task(TASK), "validation").examples


@pytest.fixture(scope="module")
def tokenizer(examples, tmp_path_factory):
    texts = [text for example in examples for text in (example.input, *example.choices)]
    file = tmp_path_factory.mktemp("v") / "m.model"
    return file, sentencepiece.train(texts, file, 120, kind="word")


@pytest.fixture(scope="module")
def model(tokenizer):
    config = find_config("tiny", vocab_size=256, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
    assert tokenizer[1].size <= config.vocab_size
    rng = np.random.default_rng(0)
    flat = {
        path: rng.normal(0, 0.5, shape).astype(np.float32)
        for path, shape in base_model.param_shapes(config).items()
    }
    return base_model.make_base(config, paths.unflatten(flat))


@pytest.fixture(scope="module")
def expert(model):
    rng = np.random.default_rng(1)
    layers, width = model.config.num_decoder_layers, model.config.num_heads * model.config.head_dim
    flat = {f"decoder/layers/self_attention/query/lora_{side}": shape for side, shape in (
        ("a", (layers, model.config.emb_dim, 2)), ("b", (layers, 2, width)))}  # fmt: skip
    tree = paths.unflatten({path: rng.normal(0, 3, shape).astype(np.float32) for path, shape in flat.items()})
    return Expert(ExpertSpec("some/one", "lora", model.fingerprint, tuple(flat), ("some",), 1), tree)


@pytest.fixture(scope="module")
def registered(seqio, tokenizer):
    return seqio_tasks.register_tasks([specs.find_task(TASK)], vocabulary=tokenizer[0])


def evaluated(seqio, task, functions):
    lengths = {"inputs": LENGTHS.prompt, "targets": LENGTHS.answer}
    evaluator = seqio.Evaluator(
        task,
        seqio.EncDecFeatureConverter(pack=False),
        sequence_length=lengths,
        async_compute_metrics=False,
    )
    metrics, outputs = evaluator.evaluate(compute_metrics=True, **functions._asdict())
    return {
        name: float(getattr(value, "value", value)) for name, value in metrics.result()[task].items()
    }, outputs[task]


@pytest.mark.parametrize("beside", [False, True])
def test_seqio_finds_the_accuracy_that_our_evaluation_finds(
    seqio, registered, model, expert, examples, tokenizer, beside
):
    own = expert if beside else None
    metrics, _ = evaluated(seqio, registered.ranked[TASK], model_functions(model, own))
    rows = task_rows.build_scoring_rows(examples, tokenizer[1], LENGTHS, task=TASK)
    scores = scorer.score_rows(model.config, model.params, rows, stack([expert.params]) if beside else None)
    right = [rank.predict(each) == example.label for each, example in zip(scores, examples, strict=True)]
    assert metrics["accuracy"] == pytest.approx(100 * np.mean(right))
    assert 0 < np.mean(right) < 1


def test_seqio_judges_the_answers_that_our_engine_writes(
    seqio, registered, model, expert, examples, tokenizer
):
    functions = model_functions(model, expert, length=LENGTHS.answer)
    metrics, _ = evaluated(seqio, registered.tasks[TASK], functions)
    prompts = task_rows.tokenize_texts([example.input for example in examples], tokenizer[1], LENGTHS.prompt)
    written = generator.generate_rows(
        model.config,
        model.params,
        prompts,
        generator.AnswerLimit(LENGTHS.answer, tokenizer[1].eos),
        stack([expert.params]),
    )
    texts = [tokenizer[1].decode(tokens[tokens > 0].tolist()) for tokens in written]
    assert metrics == pytest.approx(exact_match([example.target for example in examples], texts))
    assert len(set(texts)) > 1


def test_packed_features_are_refused(seqio, registered, model):
    task = seqio.get_mixture_or_task(registered.tasks[TASK])
    lengths = {"inputs": 64, "targets": 16}
    dataset = seqio.EncDecFeatureConverter(pack=True)(task.get_dataset(lengths, "validation"), lengths)
    with pytest.raises(UserError, match="packed"):
        model_functions(model).score_fn(dataset.enumerate())
