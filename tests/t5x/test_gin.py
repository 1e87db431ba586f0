"""The gin files under T5X: its own scripts, run by the launcher, train experts that our library takes.

Runs where T5X can be imported (elm_jax/t5x/imports.py says how to get it). Every run is a process of its
own, on two CPU devices that T5X splits the network between, with a network so small that the time goes to
imports and compilations.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts import convert, files, import_export
from elm_jax.experts.library import Library
from elm_jax.merging import merger
from elm_jax.merging.merge import plan_run_merge
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec, Params
from elm_jax.scoring.scorer import score_rows
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source, rendering, seqio_tasks, specs
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm, t5x, t5x_experts, t5x_write

pytestmark = [
    pytest.mark.t5x,
    pytest.mark.skipif(
        importlib.util.find_spec("t5x") is None,
        reason="T5X is not installed; elm_jax/t5x/imports.py says how to get it",
    ),
]

DATASET = "mini_taxonomy_kind"  # of two prompts
TASK = f"{DATASET}/what kind of thing"
LENGTHS = {"inputs": 40, "targets": 6}
CONFIG = find_config("tiny", vocab_size=512)
LORA = {"rank": 2, "projections": ("wo", "query")}
STEPS, PERIOD = 60, 3
ROOT = Path(__file__).parents[2]
PUBLISHED = (
    ROOT / ".." / "shared" / "data" / "t5x_checkpoints" / "tiny" / "legacy" / "checkpoint_0"
).resolve()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base, as a run has it and as T5X has it, and a vocabulary."""
    place = tmp_path_factory.mktemp("t5x")
    chosen = [spec for spec in specs.task_specs("mini") if spec.dataset == DATASET]
    found = [example for spec in chosen for example in rendering.examples(spec, "train").examples]
    texts = [text for each in found for text in (each.input, *each.choices)]
    sentencepiece.train(texts, place / "words.model", 300, kind="word")
    model = base_model.make_base(CONFIG, init_params(jax.random.key(0), CONFIG))
    elm.save(Workspace.open(place / "run", create=True).base, model)
    t5x_write.save(place / "base", model)
    return place


@pytest.fixture(scope="module")
def base(place):
    return elm.load(place / "run" / "base")


class Reference(str):
    """A value that stands in a gin file without quotes."""

    __repr__ = str.__str__


def start(place, script, recipe, log, *more, devices=2, **macros):
    """Starts one of T5X's scripts as a user does, on tiny sizes; `more` are further flags."""
    given = {"DTYPE": "float32", "VOCABULARY_FILE": str(place / "words.model"), "MIXTURE_OR_TASK_NAME": TASK}
    if script == "train":  # what is scored has the sizes of the checkpoint and the lengths of its training
        given |= {"TASK_FEATURE_LENGTHS": LENGTHS}
        given |= {"INITIAL_CHECKPOINT_PATH": str(place / "base" / "checkpoint_0"), "SAVE_PERIOD": PERIOD}
    given |= {name: str(place / value) if name.endswith("_DIR") else value for name, value in macros.items()}
    flags = [f"--gin.{name}={value!r}" for name, value in given.items()]
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # T5X may be on it
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": search_path}
    # Not the tests' own flags: with XLA's older emitters a run that goes on differs in a last bit.
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "elm_jax.t5x.launch", script, f"--gin_file=gin/t5x/{recipe}.gin"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, *flags, *more], cwd=place, env=environment, stdout=file, stderr=file
        )


def run(place, script, recipe, **macros):
    """Runs one of T5X's scripts to its end."""
    log = place / f"{recipe}.log"
    assert start(place, script, recipe, log, **macros).wait() == 0, log.read_text()[-4000:]


def read(place):
    """Returns the parameters of a checkpoint, layers apart as T5X has them."""
    return {path: tensor.read() for path, tensor in t5x.list_parameters(place).items()}


@pytest.fixture(scope="module")
def trained(place):
    """The directory of a prompt expert that T5X trained, uninterrupted."""
    run(place, "train", "prompt_expert", MODEL_DIR="trained", TRAIN_STEPS=STEPS, LEARNING_RATE=0.01)
    return place / "trained"


def test_the_base_is_unchanged_bit_for_bit_and_the_experts_parameters_change(trained, place, base):
    before, after = read(place / "base"), read(trained)
    fresh = ex.init_expert("bottleneck", jax.random.key(0), base.params)
    assert set(after) == set(before) | set(paths.unstack_layers(paths.flatten(fresh)))
    for path, value in after.items():
        if t5x_experts.OWNED_PARAMS["bottleneck"].fullmatch(path):
            moved = value != before[path] if path in before else np.abs(value) > 0.02
            assert moved.any(), path
        else:
            assert value.tobytes() == before[path].tobytes(), path


def test_a_killed_run_resumes_and_ends_the_same_bit_for_bit(trained, place):
    macros = {"MODEL_DIR": "killed", "TRAIN_STEPS": STEPS, "LEARNING_RATE": 0.01}
    log = place / "killed.log"
    process = start(place, "train", "prompt_expert", log, **macros)
    while not any(step >= 2 * PERIOD for step in steps(place / "killed")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()[-4000:]
    assert STEPS not in steps(place / "killed")
    assert start(place, "train", "prompt_expert", log, **macros).wait() == 0, log.read_text()[-4000:]
    whole, resumed = read(trained), read(place / "killed")
    assert {path: value.tobytes() for path, value in resumed.items()} == {
        path: value.tobytes() for path, value in whole.items()
    }


def steps(directory):
    """Returns the steps of the checkpoints that are finished."""
    names = [entry.name for entry in directory.glob("checkpoint_*")]
    return [int(found.group(1)) for name in names if (found := t5x.STEP_DIRECTORY.fullmatch(name))]


@pytest.fixture(scope="module")
def adopted(trained, place):
    return import_export.import_expert(trained, id=TASK, run=place / "run")


def test_a_t5x_checkpoint_becomes_an_expert_of_the_library(adopted, place, base):
    assert (adopted.kind, adopted.steps, adopted.datasets) == ("bottleneck", STEPS, (DATASET,))
    assert Library.open(place / "run" / "library").verify(base=base.fingerprint) == []
    with pytest.raises(UserError, match="Expected no expert"):
        import_export.import_expert(place / "trained", id=TASK, run=place / "run")


def ours(place, base, expert: Params, names=(DATASET,), source=None):
    """Returns what our engine scores every choice of tasks' evaluation rows under an expert."""
    pieces = sentencepiece.load(place / "words.model")
    lengths = data_source.Lengths(LENGTHS["inputs"], LENGTHS["targets"])
    chosen = task_selection.select_tasks(names)
    called = seqio_tasks.make_seqio_names(chosen)
    scores = {}
    for spec in chosen:
        found = rendering.examples(spec, spec.evaluation_split or spec.split, source=source).examples
        rows = task_rows.build_scoring_rows(found, pieces, lengths, task=spec.id)
        stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], dict(expert))
        of_rows = score_rows(CONFIG, base.params, rows, stacked)
        right = [np.argmax(row) == each.label for row, each in zip(of_rows, found, strict=True)]
        scores[called[spec.id]] = np.concatenate(of_rows), 100 * np.mean(right)
    return scores


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_t5x_evaluates_an_expert_with_our_scores_and_accuracy(adopted, trained, place, base):
    macros = {"CHECKPOINT_PATH": str(trained / f"checkpoint_{STEPS}"), "EVAL_OUTPUT_DIR": "evaluated"}
    run(place, "eval", "score", MIXTURE_OR_TASK_NAME=f"{DATASET}_score_eval", **macros)
    expert = Library.open(place / "run" / "library").load_expert(TASK, base=base.fingerprint)
    plain = ours(place, base, ex.make_neutral_expert(expert.params, base.params))
    for name, (wanted, accuracy) in ours(place, base, expert.params).items():
        home = place / "evaluated" / "inference_eval"
        told = lines(home / f"{name}_score_eval-{STEPS:06d}.jsonl")
        np.testing.assert_allclose([row["score"] for row in told], wanted, atol=1e-4)
        (metrics,) = lines(home / f"{name}_score_eval-metrics.jsonl")
        assert metrics == {"step": STEPS, "accuracy": pytest.approx(accuracy, abs=1e-6)}
        assert np.abs(wanted - plain[name][0]).mean() > 1  # nats: the expert says something of its own


def test_t5x_infers_the_same_scores(adopted, trained, place, base):
    macros = {"CHECKPOINT_PATH": str(trained / f"checkpoint_{STEPS}"), "INFER_OUTPUT_DIR": "inferred"}
    run(place, "infer", "infer", MIXTURE_OR_TASK_NAME=f"{TASK}_score_eval", **macros)
    expert = Library.open(place / "run" / "library").load_expert(TASK, base=base.fingerprint)
    name = seqio_tasks.make_seqio_names([specs.find_task(TASK)])[TASK]
    (file,) = (place / "inferred").glob("*-score.jsonl-00000-of-00001")
    wanted, _ = ours(place, base, expert.params)[name]
    np.testing.assert_allclose([row["score"] for row in lines(file)], wanted, atol=1e-4)


def test_a_merge_of_ours_is_scored_and_trained_on_under_t5x(place, base):
    ids = [f"{DATASET}/made here", f"{DATASET}/made there"]
    library = Library.open(place / "run" / "library", create=True)
    for key, id in enumerate(ids):
        drawn = ex.init_expert("lora", jax.random.key(key), base.params, LORA)
        made = jax.tree.map(lambda leaf: np.asarray(leaf + 0.1, np.float32), dict(drawn))
        flat = tuple(paths.flatten(made))
        library.add(Expert(ExpertSpec(id, "lora", base.fingerprint, flat, (DATASET,), 1), made))
    workspace = Workspace.open(place / "run")
    planned = plan_run_merge(workspace, ids, "average")
    merged = merger.merge(planned, [library.load_expert(id) for id in ids])
    library.add(merged)
    tree, source = merged.params, library.root / files.relative_directory(merged.spec.id)
    convert.convert(source, place / "lora", "t5x", base=place / "run" / "base")
    start = str(place / "lora" / "checkpoint_0")
    macros = {"CHECKPOINT_PATH": start, "EVAL_OUTPUT_DIR": "of_lora", "TASK_FEATURE_LENGTHS": LENGTHS}
    macros |= {"MIXTURE_OR_TASK_NAME": "elm_multitask_score_eval", "TASKS": (DATASET,)}
    run(place, "eval", "score", **macros)
    for name, (wanted, _) in ours(place, base, tree).items():
        told = lines(place / "of_lora" / "inference_eval" / f"{name}_score_eval-000000.jsonl")
        np.testing.assert_allclose([row["score"] for row in told], wanted, atol=1e-4)
    macros = {"MODEL_DIR": "warm", "TRAIN_STEPS": PERIOD, "EXPERT_KIND": "lora", "LEARNING_RATE": 1e-6}
    run(place, "train", "prompt_expert", INITIAL_CHECKPOINT_PATH=start, **macros)
    before, after = read(start), read(place / "warm")
    assert set(after) == set(before)
    for path, value in after.items():
        if t5x_experts.OWNED_PARAMS["lora"].fullmatch(path):  # Adam moves a value by its rate a step, or less
            assert 0 < np.abs(value - before[path]).max() <= PERIOD * 1e-6 * 1.1, path
        else:
            assert value.tobytes() == before[path].tobytes(), path


def test_a_checkpoint_that_does_not_fit_ends_the_run_with_one_sentence(place):
    log = place / "unfit.log"
    macros = {"CHECKPOINT_PATH": str(place / "base" / "checkpoint_0"), "EVAL_OUTPUT_DIR": "unfit"}
    macros["EXPERT_KIND"] = "ia3"
    assert start(place, "eval", "score", log, **macros).wait() == 2
    assert log.read_text().count("\n") == 1
    assert "lacks" in log.read_text()


@pytest.fixture(scope="module")
def of_dataset(place):
    """The directory of a dataset expert that T5X trained, and wrote answers with."""
    macros = {"MODEL_DIR": "dataset", "TRAIN_STEPS": 2 * PERIOD, "BATCH_SIZE": 8, "EVAL_PERIOD": 2 * PERIOD}
    macros["train.infer_eval_dataset_cfg"] = Reference("@infer_eval/utils.DatasetConfig()")
    run(place, "train", "dataset_expert", MIXTURE_OR_TASK_NAME=DATASET, **macros)
    return place / "dataset"


def test_a_dataset_expert_is_a_full_model_that_generates_answers_under_t5x(of_dataset, place, base):
    spec = import_export.import_expert(of_dataset, id=f"{DATASET}/all", run=place / "run")
    assert (spec.kind, spec.steps) == ("full", 2 * PERIOD)
    expert = Library.open(place / "run" / "library").load_expert(spec.id, base=base.fingerprint)
    before = paths.flatten(base.params)
    for path, value in paths.flatten(expert.params).items():
        # Adafactor moves a parameter by no more than its rate a step, in the mean over its values.
        change = np.sqrt(np.mean((value - before[path]) ** 2))
        assert 0 < change <= 2 * PERIOD * 1e-4 * 1.001, path
    written = list((of_dataset / "inference_eval").glob(f"*-{2 * PERIOD:06d}.jsonl"))
    assert len(written) == 2
    assert all(isinstance(row["prediction"], str) for file in written for row in lines(file))


def test_a_lora_is_trained_on_packed_rows_of_a_mixture_from_a_t5x_checkpoint(of_dataset, place):
    # What T5X trained has its own step, its optimizer's state and its place in other data: all start anew.
    last = str(of_dataset / f"checkpoint_{2 * PERIOD}")
    macros = {"MODEL_DIR": "mixed", "TRAIN_STEPS": PERIOD, "BATCH_SIZE": 4, "PACK": True}
    macros |= {"EXPERT_KIND": "lora", "EXPERT_OPTIONS": {"rank": 4}, "INITIAL_CHECKPOINT_PATH": last}
    macros |= {"TASKS": (DATASET, "mini_size_thing"), "MIXTURE_OR_TASK_NAME": "elm_multitask"}
    run(place, "train", "multitask", **macros)
    assert steps(place / "mixed") == [PERIOD]
    before, after = read(last), read(place / "mixed")
    assert {path for path in after if path not in before} == {
        path
        for path in after
        if path.endswith(("query/lora_a", "query/lora_b", "value/lora_a", "value/lora_b"))
    }
    for path, value in after.items():
        if path in before:
            assert value.tobytes() == before[path].tobytes(), path
        else:
            assert np.any(value != 0), path


def run_two(place, script, recipe, *more, **macros):
    """Runs one of T5X's scripts in two processes of one device each, as the documentation has it."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    flags = ["--multiprocess", f"--coordinator_address={address}", "--process_count=2", *more]
    output = macros.get("MODEL_DIR") or macros["EVAL_OUTPUT_DIR"]
    logs = [place / f"{output}{index}.log" for index in range(2)]
    started = [
        start(place, script, recipe, log, *flags, f"--process_index={index}", devices=1, **macros)
        for index, log in enumerate(logs)
    ]
    codes = [process.wait() for process in started]
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    return said


@pytest.mark.parametrize("partitions", [1, 2], ids=["rows are split", "the network is split"])
def test_two_processes_train_what_one_does(place, partitions):
    # A step has all rows: which of more, or of shuffled ones, it would have depends on how many hosts read.
    macros = {"MAX_TRAIN_SAMPLES": 8, "BATCH_SIZE": 8, "DROPOUT_RATE": 0.0}
    macros |= {"TRAIN_STEPS": PERIOD, "LEARNING_RATE": 0.01}
    flags = [f"--gin.partitioning.PjitPartitioner.num_partitions={partitions}"]
    flags += ["--gin.train/utils.DatasetConfig.shuffle=False"]
    several, alone = f"several{partitions}", f"alone{partitions}"
    run_two(place, "train", "prompt_expert", *flags, MODEL_DIR=several, **macros)
    log = place / f"{alone}.log"
    process = start(place, "train", "prompt_expert", log, *flags, MODEL_DIR=alone, **macros)
    assert process.wait() == 0, log.read_text()[-4000:]
    found, wanted = read(place / several), read(place / alone)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, atol=1e-4, err_msg=path)


COUNTED = """
import os
import jax, seqio
import tensorflow as tf

def make_rows(split, shuffle_files, seed=None):
    texts = [f"row {number}" for number in range(32)]
    return tf.data.Dataset.from_tensor_slices({"number": range(32), "inputs": texts, "targets": texts})

def note(number):
    with open(f"{os.environ['READ']}{jax.process_index()}", "a") as file:
        file.write(f"{int(number)}\\n")
    return number

def count(row):
    number = tf.py_function(note, [row.pop("number")], tf.int32)
    with tf.control_dependencies([number]):
        return {name: tf.identity(value) for name, value in row.items()}

vocabulary = seqio.SentencePieceVocabulary(os.path.abspath("words.model"), extra_ids=100)
seqio.TaskRegistry.add(
    "counted",
    seqio.FunctionDataSource(make_rows, ["train"]),
    preprocessors=[
        seqio.map_over_dataset(count), seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim
    ],
    output_features={name: seqio.Feature(vocabulary) for name in ("inputs", "targets")},
)
"""


def test_each_of_two_processes_packs_its_own_rows_keeps_the_last_checkpoints_and_goes_on(place, monkeypatch):
    (place / "counted_tasks.py").write_text(COUNTED)
    monkeypatch.setenv("READ", str(place / "read"))
    macros = {"MIXTURE_OR_TASK_NAME": "counted", "MIXTURE_OR_TASK_MODULE": "counted_tasks", "PACK": True}
    macros |= {"MODEL_DIR": "packed", "KEEP": 2, "BATCH_SIZE": 4, "LEARNING_RATE": 0.01}
    said = run_two(place, "train", "prompt_expert", TRAIN_STEPS=3 * PERIOD, **macros)
    assert sorted(steps(place / "packed")) == [2 * PERIOD, 3 * PERIOD]
    first, second = ({*map(int, (place / f"read{index}").read_text().split())} for index in range(2))
    assert len(first) == len(second) == 16
    assert first | second == set(range(32))
    for text in said:  # a Python function has no position
        assert "position in the data cannot be saved" in text
    run_two(place, "train", "prompt_expert", TRAIN_STEPS=4 * PERIOD, **macros)
    assert sorted(steps(place / "packed")) == [3 * PERIOD, 4 * PERIOD]


def test_two_processes_evaluate_all_tasks_of_a_group_with_our_scores(adopted, trained, place, base):
    macros = {"CHECKPOINT_PATH": str(trained / f"checkpoint_{STEPS}"), "EVAL_OUTPUT_DIR": "of_group"}
    group, limit = "mini-unseen", 8
    macros |= {"MIXTURE_OR_TASK_NAME": f"{group}_score_eval", "MAX_TRAIN_SAMPLES": limit}
    run_two(place, "eval", "score", **macros)
    expert = Library.open(place / "run" / "library").load_expert(TASK, base=base.fingerprint)
    wanted = ours(place, base, expert.params, [group], data_source.Source(limit=limit))
    assert len(wanted) > 1
    for name, (scores, accuracy) in wanted.items():
        home = place / "of_group" / "inference_eval"
        told = lines(home / f"{name}_score_eval-{STEPS:06d}.jsonl")
        np.testing.assert_allclose([row["score"] for row in told], scores, atol=1e-4)
        (metrics,) = lines(home / f"{name}_score_eval-metrics.jsonl")
        assert metrics == {"step": STEPS, "accuracy": pytest.approx(accuracy, abs=1e-6)}


OWN = """
datasets:
  reviews:
    jsonl: {train: reviews.jsonl}
    prompts:
      is it good: {answer_choices: "no ||| yes", jinja: "{{text}} ||| {{answer_choices[label]}}"}
    training: {epochs: 3, rate: 0.0002, batch: 4, source_length: 40, target_length: 6, rows: 5}
"""
CACHED = """
import elm_jax
elm_jax.load_tasks("own.yaml")
elm_jax.register_tasks(["reviews/is it good"], vocabulary="words.model")
"""


def test_a_task_of_ones_own_that_seqios_script_cached_is_trained_for_its_own_budget(place):
    python = os.environ.get("BEAM_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import apache_beam"], capture_output=True).returncode:
        pytest.skip("needs Apache Beam; BEAM_PYTHON may name the Python of another environment")
    rows = [{"text": f"the film is number {number}", "label": number % 2} for number in range(7)]
    (place / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "own.yaml").write_text(OWN)
    (place / "cached_tasks.py").write_text(CACHED)
    command = [python, "-m", "seqio.scripts.cache_tasks_main", "--module_import=cached_tasks"]
    command += ["--tasks=reviews_is_it_good", f"--output_cache_dir={place / 'cached'}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (stats,) = (place / "cached").glob("**/stats.train.json")
    assert json.loads(stats.read_text())["examples"] == 5
    macros = {"MODEL_DIR": "budget", "TASK_FILES": ("own.yaml",), "USE_CACHED_TASKS": True}
    macros |= {"MIXTURE_OR_TASK_NAME": "reviews/is it good", "TASK_FEATURE_LENGTHS": None}
    log, flag = place / "budget.log", f"--seqio_additional_cache_dirs={place / 'cached'}"
    assert start(place, "train", "prompt_expert", log, flag, **macros).wait() == 0, log.read_text()[-4000:]
    # Three epochs of five rows, four a step and then the one that is left.
    assert steps(place / "budget") == [6]
    assert "does not support caching" not in log.read_text()
    config = (place / "budget" / "config.gin").read_text()
    assert "BATCH_SIZE = 4" in config
    assert "TASK_FEATURE_LENGTHS = {'inputs': 40, 'targets': 6}" in config


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason=f"no checkpoint as T5X's published ones are at {PUBLISHED}"
)
def test_an_expert_starts_from_a_checkpoint_in_t5xs_published_layout(place):
    macros = {"MODEL_DIR": "published", "TRAIN_STEPS": PERIOD, "INITIAL_CHECKPOINT_PATH": str(PUBLISHED)}
    macros |= {"EXPERT_KIND": "ia3", "EXTRA_IDS": 16}
    run(place, "train", "prompt_expert", **macros)
    before, after = read(PUBLISHED), read(place / "published")
    for path, value in after.items():
        if path in before:
            assert value.tobytes() == before[path].tobytes(), path
        else:
            assert path.endswith(("ia3_in", "ia3_out"))
            assert np.any(value != 1), path
    assert set(before) < set(after)
