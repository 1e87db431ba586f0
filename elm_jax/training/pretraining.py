"""Pretraining: a tiny base trained from scratch on plain text.

Half of its pairs have spans corrupted, as T5's pretraining, half are cut into a beginning and a rest, as its
language-model adaptation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from elm_jax import storage
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.session.opening import SENTINELS, VOCABULARY, load
from elm_jax.session.workspace import Workspace
from elm_jax.telemetry import training_view
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece
from elm_jax.tokenizers.sentencepiece import Vocabulary
from elm_jax.training import denoise, trainer
from elm_jax.training.jobs import Job
from elm_jax.training.programs import Plan
from elm_jax.weights import base, elm
from elm_jax.weights.base import Base

STAGE = "train the base"


BATCH_TOKENS = 32768


@dataclass(frozen=True)
class Pretraining:
    """How a base is trained from scratch."""

    size: str = "tiny"
    vocabulary_size: int = 1000
    vocabulary_kind: str = "unigram"
    steps: int = 400
    batch_size: int = 128
    rate: float = 3e-3
    warmup: int = 20
    max_tokens: int = 64  # of one text
    span_share: float = 0.3
    span_length: float = 1.5


def pretrain(
    workspace: Workspace,
    texts: Sequence[str],
    words: Sequence[str],
    how: Pretraining,
    *,
    seed: int,
    stages: Stages,
) -> tuple[Base, Vocabulary]:
    """Trains a base on `texts` unless the workspace has one; `words` are further texts for the vocabulary."""
    if (workspace.base / elm.CONFIG).exists():
        return load(workspace.base)
    storage.writable_directory(workspace.base)
    pieces = sentencepiece.train(
        [*texts, *words],
        workspace.base / VOCABULARY,
        how.vocabulary_size,
        kind=how.vocabulary_kind,
        extra_ids=SENTINELS,
    )
    config = find_config(how.size, vocab_size=-(-pieces.size // 64) * 64)
    prompts, targets = pairs(
        [ids[: how.max_tokens] for ids in pieces.encode_all(texts)], pieces, how, seed=seed
    )
    plan = Plan(kind="full", batch_tokens=BATCH_TOKENS, save_every=max(50, how.steps // 8))
    job = Job(
        "base", prompts, targets, how.steps, how.rate, seed, batch_size=how.batch_size, warmup=how.warmup
    )
    fresh = init_params(jax.random.key(seed), config)
    with training_view.training(stages, STAGE) as watch:
        (params,) = trainer.train_group(
            config,
            fresh,
            [job],
            plan,
            checkpoint_dir=workspace.checkpoints / "base",
            watch=watch,
        )
    elm.save(workspace.base, base.make_base(config, params))
    return load(workspace.base)


def pairs(
    tokens: Sequence[Sequence[int]], pieces: Vocabulary, how: Pretraining, *, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the prompts and targets of all steps, drawn evenly from the texts."""
    rng = np.random.default_rng(seed)
    long_enough = [text for text in tokens if len(text) > 1]
    chosen = rng.integers(0, len(long_enough), how.steps * how.batch_size)
    made = []
    for number, text in enumerate(chosen):
        ids = long_enough[text]
        if number % 2:
            made.append(denoise.cut_prefix(ids, eos=pieces.eos, rng=rng))
        else:
            made.append(
                denoise.corrupt_spans(
                    ids,
                    sentinel=pieces.size - 1,
                    eos=pieces.eos,
                    share=how.span_share,
                    mean_length=how.span_length,
                    rng=rng,
                    most=SENTINELS,
                )
            )
    return [prompt for prompt, _ in made], [target for _, target in made]
