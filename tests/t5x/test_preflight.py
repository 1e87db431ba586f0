"""What is wrong with a run under T5X is said before T5X, SeqIO or TensorFlow are imported."""

import importlib.util
import subprocess
import sys

import jax
import pytest

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.t5x import preflight
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, t5x_write
from tests.shared_data import DATA

RECIPE = """
from __gin__ import dynamic_registration
from elm_jax.t5x import checkpoints
include 'shared.gin'

RATE = 0.1
KIND = 'bottleneck'
checkpoints.make_module:
  checkpoint = %INITIAL_CHECKPOINT_PATH
  model_dir = %MODEL_DIR
  kind = %KIND
  dropout_rate = %RATE
  vocabulary = @seqio.SentencePieceVocabulary()
seqio.SentencePieceVocabulary:
  sentencepiece_model_file = %VOCABULARY_FILE
  extra_ids = %EXTRA_IDS
EXTRA_IDS = 4
registry.register_with_seqio:
  name = %MIXTURE_OR_TASK_NAME
  tasks = %TASKS
  files = %TASK_FILES
  module = %MIXTURE_OR_TASK_MODULE
  split = %SPLIT
TASKS = ()
TASK_FILES = ()
MIXTURE_OR_TASK_NAME = 'mini_taxonomy_kind/what kind of thing'
MIXTURE_OR_TASK_MODULE = None
SPLIT = None
data_source.Source.templates_dir = %TEMPLATES_DIR
TEMPLATES_DIR = None
"""
SHARED = """
MODEL_DIR = %gin.REQUIRED
INITIAL_CHECKPOINT_PATH = %gin.REQUIRED
VOCABULARY_FILE = %gin.REQUIRED
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("preflight")
    config = find_config("tiny", vocab_size=48)
    t5x_write.save(place / "base", base_model.make_base(config, init_params(jax.random.key(0), config)))
    sentencepiece.train(
        ["the sky is blue", "a cat is an animal"] * 20, place / "words.model", 40, kind="word"
    )
    (place / "recipe.gin").write_text(RECIPE)
    (place / "shared.gin").write_text(SHARED)
    return place


def flags(place, *more, **changes):
    """Returns flags of a run that is sound, with some changed; None leaves one out."""
    given = {"MODEL_DIR": str(place / "out"), "VOCABULARY_FILE": str(place / "words.model")}
    given |= {"INITIAL_CHECKPOINT_PATH": str(place / "base" / "checkpoint_0")} | changes
    bound = [f"--gin.{name}={value!r}" for name, value in given.items() if value is not None]
    return [f"--gin_file={place / 'recipe.gin'}", f"--gin_search_paths={place}", *bound, *more]


def check(arguments):
    preflight.require_runnable(preflight.read_recipe(arguments))


def test_a_sound_run_passes_and_so_does_a_question_for_help(place):
    check(flags(place))
    check(["--help"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"MODEL_DIR": "out"}, "absolute directory for MODEL_DIR.* 'out'"),
        ({"MODEL_DIR": None, "VOCABULARY_FILE": None}, "macros MODEL_DIR, VOCABULARY_FILE, got none"),
        ({"INITIAL_CHECKPOINT_PATH": "base/checkpoint_0"}, "absolute directory for INITIAL_CHECKPOINT_PATH"),
        ({"INITIAL_CHECKPOINT_PATH": "/no/such/checkpoint_0"}, "'/no/such/checkpoint_0'"),
        ({"VOCABULARY_FILE": "/no/such.model"}, "'/no/such.model', got no file"),
        ({"EXTRA_IDS": 60}, "vocabulary of at most 48 ids"),
        ({"MODEL_DIR": "s3://bucket/out"}, "gs:// for MODEL_DIR.* 's3://bucket/out'"),
        ({"MIXTURE_OR_TASK_NAME": "mini_taxonmy_kind"}, "'mini_taxonomy_kind'"),
        ({"MIXTURE_OR_TASK_NAME": "mini_taxonmy_kind_score_eval"}, "'mini_taxonomy_kind'"),
        ({"MIXTURE_OR_TASK_NAME": "elm_multitask"}, "--gin.TASKS"),
        ({"MIXTURE_OR_TASK_NAME": "elm_multitask", "TASKS": ("mini", "dreem")}, "'dream'"),
        ({"MIXTURE_OR_TASK_MODULE": "no_such_tasks"}, "'no_such_tasks', which does not exist"),
        ({"TASK_FILES": ("/no/such.yaml",)}, "'/no/such.yaml', got no file"),
        ({"SPLIT": "evalution"}, "No split named 'evalution'.*'evaluation'"),
        ({"TEMPLATES_DIR": "/no/templates"}, "directory of templates at '/no/templates'"),
        ({"KIND": "full", "RATTE": 0.2}, "No macro named 'RATTE' .*'RATE'"),
        ({"KIND": "bottelneck"}, "No expert kind named 'bottelneck' .*'bottleneck'"),
    ],
)
def test_what_is_wrong_is_one_sentence(place, changes, told):
    with pytest.raises(UserError, match=told) as error:
        check(flags(place, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TRAIN_STEPS", 0), ("BATCH_SIZE", "8"), ("LEARNING_RATE", 0.0), ("DROPOUT_RATE", 1.0), ("KEEP", 0)],
)
def test_a_number_out_of_its_range_is_refused_and_none_is_left_to_others(place, name, value):
    read = f"--gin_bindings=trainer.{name.lower()} = %{name}"
    with pytest.raises(UserError, match=f"{name} as a .*number.* got {value!r}"):
        check(flags(place, read, **{name: value}))
    check(flags(place, read, f"--gin_bindings={name} = None"))


@pytest.mark.parametrize("how", ["--gin.MIXTURE_OR_TASK_MODULE='their_tasks'", "import their_tasks"])
def test_names_that_a_module_may_register_are_left_to_it(place, tmp_path, monkeypatch, how):
    (tmp_path / "their_tasks.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.gin").write_text(how if how.startswith("import") else "")
    given = flags(place, f"--gin_file={tmp_path / 'more.gin'}", MIXTURE_OR_TASK_NAME="theirs")
    check([*given, *([how] if how.startswith("--") else [])])


def test_a_checkpoint_that_does_not_fit_is_refused(place):
    with pytest.raises(UserError, match="of another shape"):
        check(flags(place, "--gin_bindings=checkpoints.make_module.vocab_size = 47"))


def test_the_last_of_several_values_counts_and_a_later_file_wins_over_an_earlier(place):
    (place / "later.gin").write_text(
        "KIND = 'full'\nSIZE = 'xl'\nelm_jax.t5x.checkpoints.make_module.size = %SIZE\n"
    )
    more = f"--gin_file={place / 'later.gin'}", "--gin.SIZE='tiny'"
    recipe = preflight.read_recipe(flags(place, *more))
    assert (recipe.macros["KIND"], recipe.macros["SIZE"]) == ("full", "tiny")
    assert recipe.bindings["checkpoints.make_module", "size"] == "SIZE"
    assert {"KIND", "SIZE", "RATE", "MODEL_DIR"} <= recipe.own & recipe.read


def test_flags_may_have_their_values_apart(place):
    together = flags(place)
    apart = [part for flag in together[:2] for part in flag.split("=", 1)] + together[2:]
    assert preflight.read_recipe(apart) == preflight.read_recipe(together)


@pytest.mark.parametrize("binding", ["--gin.MODEL_DIR=/runs/a", "--gin.MODEL_DIR='a"])
def test_a_binding_that_gin_does_not_read_says_so(place, binding):
    with pytest.raises(UserError, match="gin in the command line"):
        check([*flags(place), binding])


def test_neither_tensorflow_nor_a_device_is_touched(place):
    code = (
        "import sys; from elm_jax.t5x import preflight; from jax._src import xla_bridge;"
        "preflight.require_runnable(preflight.read_recipe(sys.argv[1:]));"
        "assert not xla_bridge.backends_are_initialized();"
        "assert not {'t5x', 'seqio', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *flags(place)], check=True)


@pytest.mark.t5x
@pytest.mark.shared_data
@pytest.mark.skipif(importlib.util.find_spec("t5x") is None, reason="T5X is not installed")
@pytest.mark.parametrize("recipe", ["prompt_expert", "dataset_expert", "multitask", "score", "infer"])
def test_every_recipe_of_ours_is_sound_on_top_of_t5xs(place, recipe):
    assert (storage.SHIPPED / "gin" / "t5x" / f"{recipe}.gin").is_file()
    given = {"VOCABULARY_FILE": str(place / "words.model")}
    if recipe in ("score", "infer"):
        output = {"score": "EVAL_OUTPUT_DIR", "infer": "INFER_OUTPUT_DIR"}[recipe]
        given |= {"CHECKPOINT_PATH": str(place / "base" / "checkpoint_0"), output: str(place / "scores")}
    else:
        given |= {"MODEL_DIR": str(place / "out")}
        given |= {"INITIAL_CHECKPOINT_PATH": str(place / "base" / "checkpoint_0")}
    bound = [f"--gin.{name}={value!r}" for name, value in given.items()]
    started = [f"--gin_file=gin/t5x/{recipe}.gin", "--gin.EXTRA_IDS=4"]
    started += [f"--gin.TEMPLATES_DIR={str(DATA / 'promptsource' / 'templates')!r}"]
    check([*started, *bound])
    with pytest.raises(UserError, match="of another shape"):
        check([*started, *bound, "--gin.VOCAB_SIZE=49"])
    for name, value in given.items():
        others = [each for each in bound if value not in each]
        with pytest.raises(UserError, match=f"macros {name}, got none"):
            check([*started, *others])
