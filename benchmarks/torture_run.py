"""The run that is tortured: an untrained base of one layer, and what is looked for in it afterwards."""

import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from elm_jax.data import task_rows, task_selection
from elm_jax.experts.library import Library
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm, t5x, t5x_write

TASK = "mini_taxonomy_kind"
UNSEEN = "mini_size_suitcase"
EXPERTS = (
    "mini_size_animal/beside a dog",
    "mini_size_animal/than a dog",
    "mini_sentiment_film/after the film",
    "mini_sentiment_film/good or bad film",
)
ADDED = tuple(spec.id for spec in task_selection.select_tasks([TASK]))
"""The experts of `TASK`."""
T5X_STEPS = 12
T5X_COMMAND = [
    *("t5x", "train", "--gin_file=gin/t5x/prompt_expert.gin"),
    "--gin.MODEL_DIR={trained!r}",
    "--gin.INITIAL_CHECKPOINT_PATH={checkpoint!r}",
    "--gin.VOCABULARY_FILE={vocabulary!r}",
    f"--gin.MIXTURE_OR_TASK_NAME={ADDED[0]!r}",
    "--gin.TASK_FEATURE_LENGTHS={{'inputs': 24, 'targets': 5}}",
    f"--gin.EXTRA_IDS={opening.EXTRA_IDS}",
    f"--gin.TRAIN_STEPS={T5X_STEPS}",
    *("--gin.DTYPE='float32'", "--gin.SAVE_PERIOD=3", "--gin.LEARNING_RATE=0.01"),
]
"""What T5X trains, of a base that `write_t5x_base` wrote."""
LEFTOVER = re.compile(r"\..+\.(tmp|old|lock|parts)|\.lock|\.probe-.*")


def make_run(root: Path) -> None:
    """Makes a run's directory with a base that nobody trained."""
    workspace = Workspace.open(root, create=True)
    names = [TASK, UNSEEN, *dict.fromkeys(name.partition("/")[0] for name in EXPERTS)]
    examples = [
        each
        for spec in task_selection.select_tasks(names)
        for each in task_rows.load_examples(spec, Source(limit=30))
    ]
    texts = [text for each in examples for text in (each.input, each.target, *each.choices)]
    file = workspace.base / opening.VOCABULARY_FILE
    tokenizer = sentencepiece.train(texts, file, 400, kind="word", extra_ids=opening.EXTRA_IDS)
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    config = find_config(
        "tiny", vocab_size=tokenizer.size, emb_dim=32, num_heads=2, head_dim=8, mlp_dim=32, **layers
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    elm.save(workspace.base, base_model.make_base(config, params))
    settings.save_run_settings(workspace, None, Source(), Lengths(prompt=24, answer=5))


def write_t5x_base(run: Path, where: Path) -> None:
    """Writes the base of a run as T5X reads it."""
    t5x_write.save(where, elm.load(run / "base"))


def read_t5x(where: Path) -> dict[str, bytes]:
    """Returns the parameters of the checkpoint that T5X ended with."""
    parameters = t5x.list_parameters(where / f"checkpoint_{T5X_STEPS}")
    return {path: tensor.read().tobytes() for path, tensor in parameters.items()}


def find_orphans(session: int, seconds: float = 15.0) -> list[str]:
    """Returns what is alive of a session some time after its first process ended, as command lines."""
    until = time.monotonic() + seconds
    while True:
        alive = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                state, _, _, own, *_ = (process / "stat").read_text().rpartition(")")[2].split()
                if int(own) == session and state != "Z" and int(process.name) != session:
                    alive.append((process / "cmdline").read_text().replace("\0", " ").strip())
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.2)


def find_faults(root: Path, expected: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns what is lost or damaged in a run's libraries, and what dead writers left."""
    lost = []
    for name in ("library", "composites"):
        if (root / name).is_dir():
            found = Library.open(root / name).verify()
            lost += [f"{each.expert} in {name}: {each.problem}" for each in found]
    present = Library.open(root / "library").ids()
    lost += [f"{name} is lost" for name in expected if name not in present]
    left = [f"{file.relative_to(root)} is left" for file in root.rglob("*") if LEFTOVER.fullmatch(file.name)]
    return lost, left
