"""Pretraining: a tiny base trained from scratch on plain text.

Half of its pairs have spans corrupted, as T5's pretraining, half are cut into a beginning and a rest, as its
language-model adaptation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from elm_jax import ranges, storage
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.session.opening import EXTRA_IDS, VOCABULARY_FILE, load_base_and_tokenizer
from elm_jax.session.workspace import Workspace
from elm_jax.telemetry import training_view
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece
from elm_jax.tokenizers.sentencepiece import Tokenizer
from elm_jax.training import checkpoint_directories, denoise, trainer
from elm_jax.training.checkpoints import CheckpointDirectory
from elm_jax.training.config import BatchConfig, ExpertConfig, ScheduleConfig, TrainConfig
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan
from elm_jax.weights import base_model, elm
from elm_jax.weights.base_model import Base

STAGE_NAME = "train the base"
BATCH_TOKENS = 32768


@dataclass(frozen=True)
class Pretraining:
    """How a base is trained from scratch: half of its examples restore spans, half complete texts.

    Attributes:
        size: Name of the network's size.
        vocabulary_size: Pieces of the tokenizer at most.
        vocabulary_kind: Kind of the SentencePiece model: "unigram", "bpe", "char" or "word".
        steps: Number of steps.
        batch_size: Texts of a step.
        learning_rate: The highest learning rate; it falls in a line to 0.
        warmup: Steps in which the learning rate rises.
        max_tokens: Tokens of a text that are kept.
        span_share: Share of a text's tokens that is dropped.
        span_length: Mean number of tokens of a dropped span.
    """

    size: str = "tiny"
    vocabulary_size: int = field(default=1000, metadata=ranges.whole(1))
    vocabulary_kind: str = "unigram"
    steps: int = field(default=400, metadata=ranges.whole(1))
    batch_size: int = field(default=128, metadata=ranges.whole(1))
    learning_rate: float = field(default=3e-3, metadata=ranges.real(0, 1))
    warmup: int = field(default=20, metadata=ranges.whole(0))
    max_tokens: int = field(default=64, metadata=ranges.whole(2))
    span_share: float = field(default=0.3, metadata=ranges.real(0, 1, above=True))
    span_length: float = field(default=1.5, metadata=ranges.real(1))

    __post_init__ = ranges.check


def pretrain(
    run: Workspace | storage.PathLike,
    texts: Sequence[str],
    words: Sequence[str] = (),
    pretraining: Pretraining | None = None,
    *,
    seed: int = 0,
    stages: Stages | None = None,
) -> tuple[Base, Tokenizer]:
    """Trains a tiny base from scratch, as `base` of a run's directory, if it has none.

    Args:
        run: The directory, which is made if need be.
        texts: Plain texts, of which spans are dropped and asked for (T5, Raffel et al. 2020).
        words: Further texts for the vocabulary.
        pretraining: How the base is trained.
        seed: Seed of its first parameters, of rows and of spans.
        stages: Shows progress.

    Returns:
        The base and its tokenizer.

    Raises:
        UserError: If the directory cannot be written.
    """
    workspace = run if isinstance(run, Workspace) else Workspace.open(run, create=True)
    pretraining, stages = pretraining or Pretraining(), stages or Stages()
    if (workspace.base / elm.CONFIG_FILE).exists():
        return load_base_and_tokenizer(workspace.base)
    workspace.remove_leftovers()
    storage.writable_directory(workspace.base)
    tokenizer = sentencepiece.train(
        [*texts, *words],
        workspace.base / VOCABULARY_FILE,
        pretraining.vocabulary_size,
        kind=pretraining.vocabulary_kind,
        extra_ids=EXTRA_IDS,
    )
    network = find_config(pretraining.size, vocab_size=-(-tokenizer.size // 64) * 64)
    prompts, targets = denoising_pairs(
        [ids[: pretraining.max_tokens] for ids in tokenizer.encode_all(texts)],
        tokenizer,
        pretraining,
        seed=seed,
    )
    schedule = ScheduleConfig(
        steps=pretraining.steps, learning_rate=pretraining.learning_rate, warmup=pretraining.warmup
    )
    config = TrainConfig(
        expert=ExpertConfig(kind="full"),
        schedule=schedule,
        batch=BatchConfig(size=pretraining.batch_size),
        seed=seed,
    )
    jobs = [TrainingJob("base", prompts, targets, config)]
    plan = GroupPlan(config, batch_tokens=BATCH_TOKENS, save_every=max(50, pretraining.steps // 8))
    checkpoints = CheckpointDirectory(workspace.checkpoints)
    with training_view.training(stages, STAGE_NAME) as on_event:
        fresh = init_params(jax.random.key(seed), network)
        (params,) = trainer.train_group(
            network, fresh, jobs, plan, checkpoints=checkpoints, on_event=on_event
        )
    elm.save(workspace.base, base_model.make_base(network, params))
    identity = trainer.checkpoint_identity(network, jobs, plan, checkpoints)
    checkpoint_directories.delete_directory(workspace.checkpoints, identity)
    return load_base_and_tokenizer(workspace.base)


def denoising_pairs(
    tokens: Sequence[Sequence[int]], tokenizer: Tokenizer, pretraining: Pretraining, *, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the prompts and targets of all steps, drawn evenly from the texts."""
    rng = np.random.default_rng(seed)
    long_enough = [text for text in tokens if len(text) > 1]
    chosen = rng.integers(0, len(long_enough), pretraining.steps * pretraining.batch_size)
    pairs = []
    for number, text in enumerate(chosen):
        ids = long_enough[text]
        if number % 2:
            pairs.append(denoise.make_prefix_lm_pair(ids, eos=tokenizer.eos, rng=rng))
        else:
            pairs.append(
                denoise.corrupt_spans(
                    ids,
                    sentinel=tokenizer.size - 1,
                    eos=tokenizer.eos,
                    share=pretraining.span_share,
                    mean_length=pretraining.span_length,
                    rng=rng,
                    max_spans=EXTRA_IDS,
                )
            )
    return [prompt for prompt, _ in pairs], [target for _, target in pairs]
