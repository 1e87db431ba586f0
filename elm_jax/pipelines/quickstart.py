"""`elm quickstart`: the whole path on the embedded suite, on a CPU, in about two minutes."""

from elm_jax import storage
from elm_jax.evaluation.evaluate import EvaluationResult
from elm_jax.pipelines.pipeline import PipelineConfig, run_pipeline
from elm_jax.session.workspace import DEFAULT_RUN
from elm_jax.tasks import mini
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.training.config import BatchConfig, ExpertConfig, ScheduleConfig, TrainConfig
from elm_jax.training.pretraining import Pretraining

NOTE = (
    "The embedded suite: small tasks made by code, for seeing the method work. A tiny base was trained from "
    "scratch on plain statements of its facts; nothing here is a claim about the paper's numbers."
)
PRETRAINING = Pretraining(vocabulary_kind="word", steps=400, batch_size=192, learning_rate=4e-3)
CONFIG = TrainConfig(
    expert=ExpertConfig(options={"width": 16}, dropout=0.0),
    schedule=ScheduleConfig(steps=80, learning_rate=1e-2, warmup=10),
    batch=BatchConfig(size=16),
)


def quickstart(
    *,
    out: storage.PathLike = DEFAULT_RUN,
    seed: int = 0,
    stages: Stages | None = None,
    wait: bool = False,
) -> EvaluationResult:
    """Trains a tiny base, 24 experts and the multitask baseline, and compares seven ways to use them."""
    config = PipelineConfig(
        pretraining=PRETRAINING,
        training=CONFIG,
        lengths=Lengths(prompt=48, answer=8),
        base_texts=mini.make_statements(Source().seed),
        title="elm quickstart",
        note=NOTE,
        seed=seed,
        wait=wait,
    )
    return run_pipeline(["mini-train"], ["mini-unseen"], out, config, stages=stages)
