"""What every test stands on: eight CPU devices, rank promotion an error, a small T5, a sentence encoder."""

import importlib.util
import json
import os
import signal
import threading

from tests.xla_flags import xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the commands that tests start

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from elm_jax.aot import slices
from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.tasks import datasets
from tests.commands import Command
from tests.run_fixtures import clock, make_run, registries, unseen  # noqa: F401, fixtures
from tests.s3_server import bucket, s3  # noqa: F401, fixtures
from tests.shared_data import DATA

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # a plugin may have imported JAX before
# libtpu reads these when it is loaded, which is after JAX is imported.
for name, value in slices.ENVIRONMENT.items():
    if name.startswith(("TPU_", "ALLOW_", "TF_")):
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items):
    absent = {
        "aot": importlib.util.find_spec("libtpu") is None and "libtpu, of the extra plan, is absent",
        "shared_data": not DATA.is_dir() and "the data beside the checkout (../shared/data) are absent",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_the_file():
    """Thousands of tests compile more than memory should hold."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def user_tasks_end_with_the_file():
    """What a file's own fixtures define must not meet another file, whichever runs first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_user_datasets", datasets.user_datasets())
        yield


@pytest.fixture(autouse=True)
def user_tasks_end_with_the_test(monkeypatch):
    monkeypatch.setattr(datasets, "_user_datasets", datasets.user_datasets())


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts this process and those that it starts, though a shell's "&" has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def config():
    return find_config("tiny", vocab_size=96, emb_dim=32, head_dim=8, mlp_dim=48, num_decoder_layers=3)


@pytest.fixture(scope="session")
def one_layer():
    """One layer a stack, for rooms above: what several layers do is asked in the tests of the network."""
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return find_config("tiny", vocab_size=48, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, **layers)


@pytest.fixture(scope="session")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="module")  # for rooms have bases of their own, and a session keeps the first one's
def experts(base):
    """Three experts whose adapters are large enough to change every logit."""
    made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in (1, 2, 3)]
    return [jax.tree.map(lambda leaf, by=5.0 + seed: leaf * by, tree) for seed, tree in enumerate(made)]


@pytest.fixture
def hub():
    """A hub of the tests, which answers the hub's own client over HTTP."""
    from tests.hub_server import Hub

    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.ends.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def elm(hub, tmp_path):
    """Runs the command line with the hub's client pointed at the server; returns what it printed."""

    def start(*arguments, code=_ONE, offline=False, token=None, cache="cache", endpoint=None):
        environment = {**os.environ, "HF_ENDPOINT": endpoint or f"http://127.0.0.1:{hub.server_port}"}
        environment |= {"HF_HOME": str(tmp_path / cache), "JAX_PLATFORMS": "cpu", "NO_PROXY": "*"}
        # The hub's newer way of storing large files is a program's that no small server can answer.
        environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_TOKEN": token} if token else {}
        return Command([str(each) for each in arguments], code, environment, tmp_path)

    def run(*arguments, fails=False, **how):
        with start(*arguments, **how) as process:
            out, err = process.communicate()
        assert process.returncode == (2 if fails else 0), err
        return err if fails else out

    def each(commands, **how):
        """Runs several in one process; returns what each said when it failed, as it should."""
        with start(
            json.dumps([list(map(str, command)) for command in commands]), code=_EACH, **how
        ) as process:
            _, err = process.communicate()
        *told, rest = err.split("exit code 2\n")
        assert (len(told), rest) == (len(commands), ""), err
        return told

    run.start, run.each = start, each
    return run


_ONE = "import sys; from elm_jax.cli import main; main(sys.argv[1:])"
_EACH = """
import json, sys
from elm_jax.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as stop:
        print("exit code", stop.code, file=sys.stderr)
"""


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "dog", "cat", "run", "##s", "a", "!", "Dog", "e", "é"]


@pytest.fixture(scope="session")
def write_encoder():
    """Writes a sentence encoder of random weights in sentence-transformers' layout; returns its tensors."""

    def write(place, *, kind="bert", pooling="mean_tokens", normalized=True, length=9, seed=0):
        sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
        config = {"model_type": kind, "vocab_size": len(WORDS), "max_position_embeddings": 20, **sizes}
        config |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "pad_token_id": 0}
        tensors = _encoder_tensors(kind, config, np.random.default_rng(seed))
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalized else [])]
        paths = ["", "1_Pooling", "2_Normalize"]
        files = {
            "config.json": config,
            "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
            "tokenizer.json": tokenizer_json(),
            "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 512},
            "1_Pooling/config.json": {"word_embedding_dimension": 8, f"pooling_mode_{pooling}": True},
            "modules.json": [
                {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{step}"}
                for at, (step, path) in enumerate(zip(kinds, paths, strict=False))
            ],
        }
        for name, told in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(json.dumps(told))
        # Integers that no parameter is, as published files hold them.
        positions = {"embeddings.position_ids": np.arange(20)[None]}
        save_file(tensors | positions, place / "model.safetensors", {"format": "pt"})
        return tensors

    return write


def tokenizer_json():
    """A word-piece tokenizer that puts [CLS] before and [SEP] after, and pads and cuts as some do."""
    special = [
        {"id": number, "content": word, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number, word in enumerate(WORDS[:4])
    ]
    ends = {word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": None}
        | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": False},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single}
        | {"special_tokens": ends},
        "decoder": None,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        | {"max_input_chars_per_word": 100, "vocab": {word: at for at, word in enumerate(WORDS)}},
    }


def _encoder_tensors(kind, config, rng):
    """Tensors under the names of transformers' BertModel or MPNetModel, [out, in]."""
    width, inside = config["hidden_size"], config["intermediate_size"]
    mpnet = kind == "mpnet"
    parts = "attention.attn.{}" if mpnet else "attention.self.{}"
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.LayerNorm": (width,),
        "pooler.dense": (width, width),
    }
    if mpnet:
        shapes["encoder.relative_attention_bias.weight"] = (32, config["num_attention_heads"])
    else:
        shapes["embeddings.token_type_embeddings.weight"] = (2, width)
    for layer in range(config["num_hidden_layers"]):
        own = {parts.format(part): (width, width) for part in ("qkv" if mpnet else ("query", "key", "value"))}
        own["attention.attn.o" if mpnet else "attention.output.dense"] = (width, width)
        own["attention.LayerNorm" if mpnet else "attention.output.LayerNorm"] = (width,)
        own |= {"intermediate.dense": (inside, width), "output.dense": (width, inside)}
        own["output.LayerNorm"] = (width,)
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in own.items()}
    made = {}
    for name, shape in shapes.items():
        if name.endswith(".weight"):
            made[name] = rng.normal(size=shape)
        else:
            made[f"{name}.weight"], made[f"{name}.bias"] = rng.normal(size=shape), rng.normal(size=shape[:1])
    return {name: value.astype(np.float32) for name, value in made.items()}
