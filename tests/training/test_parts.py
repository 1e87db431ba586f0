"""Parts of a training: they share the experts, each is one `elm train`, and missing experts are named."""

import jax
import pytest

from elm_jax import cli
from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.tasks import rendering
from elm_jax.tokenizers import sentencepiece
from elm_jax.training.config import ExpertConfig, TrainConfig
from elm_jax.training.expert_configs import resolve_experts
from elm_jax.weights import base_model, elm

TASKS = ["mini_size_animal", "mini_sentiment_film"]  # of two prompts each


def ids(train_as, part=None, names=("train",)):
    config = TrainConfig(expert=ExpertConfig(train_as=train_as, part=part))
    return [expert.id for expert in resolve_experts(task_selection.select_tasks(names), config)]


@pytest.mark.parametrize(("train_as", "count"), [("experts", 296), ("dataset", 36)])
def test_parts_share_the_papers_experts_out(train_as, count):
    every = ids(train_as)
    parts = [ids(train_as, f"{number}/8") for number in range(1, 9)]
    assert len(every) == count
    assert sorted(expert for part in parts for expert in part) == sorted(every)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", ["5/4", "0/4", "2", "a/b", "-1/4", "5/8"])
def test_a_part_that_is_none_is_named(part):
    with pytest.raises(UserError, match=part):
        ids("experts", part, TASKS)


def run(capsys, *words):
    """The exit code of a command, and what it printed."""
    code = 0
    try:
        cli.main(list(words))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    return code or 0, said.out.splitlines(), said.err


def test_missing_experts_are_printed_with_exit_code_1(tmp_path, capsys):
    code, printed, said = run(capsys, "experts", "missing", *TASKS, "--run", str(tmp_path))
    assert code == 1
    assert printed == [spec.id for spec in task_selection.select_tasks(TASKS)]
    assert "0 of 4" in said
    code, printed, said = run(capsys, "experts", "missing", "--as", "dataset", "--run", str(tmp_path))
    assert (code, len(printed)) == (1, 36)


def test_a_misspelt_task_is_named_with_exit_code_2(tmp_path, capsys):
    code, _, said = run(capsys, "experts", "missing", "mini_size_anima", "--run", str(tmp_path))
    assert code == 2
    assert "'mini_size_animal'" in said


@pytest.mark.nightly
def test_two_parts_train_all_experts(tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "out"
    texts = [
        text
        for spec in task_selection.select_tasks(TASKS)
        for example in rendering.examples(spec, "train").examples[:50]
        for text in (example.input, example.target)
    ]
    base.mkdir()
    pieces = sentencepiece.train(texts, base / "vocabulary.model", 200, kind="word", extra_ids=16)
    config = find_config("tiny", vocab_size=-(-pieces.size // 64) * 64, emb_dim=32, head_dim=8, mlp_dim=48)
    elm.save(base, base_model.make_base(config, init_params(jax.random.key(0), config)))
    macros = {"INITIAL_CHECKPOINT_PATH": str(base), "TRAIN_STEPS": 3, "BATCH_SIZE": 4, "LEARNING_RATE": 1e-3}
    macros |= {"MAX_TRAIN_SAMPLES": 40, "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8}}
    macros |= {"MODEL_DIR": str(out), "MIXTURE_OR_TASK_NAME": tuple(TASKS)}
    flags = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    for part in ("1/2", "2/2"):
        code, *_ = run(capsys, "train", "--gin_file=gin/recipes/prompt_expert.gin", f"--part={part}", *flags)
        assert code == 0
    assert len(Library.open(out / "library").ids()) == 4
    assert {each.name for each in (out / "logs").iterdir() if each.is_dir()} == {"part-1-of-2", "part-2-of-2"}
    assert run(capsys, "experts", "missing", *TASKS, "--run", str(out))[0] == 0
