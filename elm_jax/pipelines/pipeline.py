"""The whole path: a base, its experts and the multitask baseline, keys, routes, merges, scores, report.

`elm quickstart` runs it on the embedded suite; a gin recipe runs it on any tasks. Every stage keeps what it
made in the workspace and does nothing that is done, so a run that was stopped goes on where it was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

from elm_jax import moved, ranges, storage
from elm_jax.data import task_rows, task_selection
from elm_jax.evaluation import methods as method_module
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import EvaluationResult, evaluate
from elm_jax.experts.key_texts import KEYS_PER_EXPERT
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.routing.index import TEXT_FORMAT, index, require_embedder
from elm_jax.session import opening, settings
from elm_jax.session.workspace import DEFAULT_RUN, Workspace
from elm_jax.tasks import data_source
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.training import pretraining as pretraining_module
from elm_jax.training.config import CheckpointConfig, TrainConfig, replace_fields
from elm_jax.training.gates import gate_config, train_gates
from elm_jax.training.pretraining import Pretraining
from elm_jax.training.train import train_experts, train_multitask

MULTITASK = "baseline"


@dataclass(frozen=True)
class PipelineConfig:
    """How a run is done from its base to its report.

    Attributes:
        initial_checkpoint: a base's directory or name. Default: a base is trained from scratch.
        dtype: what the base is held and computes in, as `open_run` has it.
        pretraining: of a base that is trained from scratch.
        base_texts: that it is trained on. Default: the inputs of the training tasks.
        training: of the experts.
        source: where rows come from, and how many are scored.
        lengths: tokens of a prompt and of an answer.
        train_rows: of each task, to train on at most.
        keys: of each expert (S of Jang et al. 2023, arXiv 2302.03202).
        text_format: of keys and queries; see `experts.key_texts`.
        embedder: of keys and queries, as `index` has it.
        evaluation: which methods are compared, and how. Every expert works on every task.
        title: of the report.
        note: that opens the report.
        seed: of training.
        wait: whether to wait while another process works in the run's directory.
    """

    initial_checkpoint: storage.PathLike | None = None
    dtype: str | None = None
    pretraining: Pretraining = field(default_factory=Pretraining)
    base_texts: Sequence[str] | None = None
    training: TrainConfig = field(default_factory=TrainConfig)
    source: Source = field(default_factory=Source)
    lengths: Lengths | None = None
    train_rows: int | None = field(default=None, metadata=ranges.whole(1))
    keys: int = field(default=KEYS_PER_EXPERT, metadata=ranges.whole(1))
    text_format: str = TEXT_FORMAT
    embedder: str | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    title: str = "Retrieval of experts"
    note: str = ""
    seed: int = field(default=0, metadata=ranges.seed())
    wait: bool = False

    __post_init__ = ranges.check


MOVED_PARAMETERS = (
    {name: f"config.{name}" for name in PipelineConfig.__dataclass_fields__ if name != "evaluation"}
    | {"budget": "config.training"}
    | {name: f"config.evaluation.{name}" for name in ("queries", "methods", "merged", "batch_tokens")}
)


@moved.accepts_old_parameters("elm_jax.run_pipeline", MOVED_PARAMETERS, config=PipelineConfig)
def run_pipeline(
    train_tasks: Sequence[str],
    eval_tasks: Sequence[str],
    out: storage.PathLike = DEFAULT_RUN,
    config: PipelineConfig | None = None,
    *,
    stages: Stages | None = None,
) -> EvaluationResult:
    """Trains experts on some tasks and compares ways to use them on others.

    Args:
        train_tasks: by id, dataset or group.
        eval_tasks: the same.
        out: the run's directory.
        config: how each stage is done.
        stages: show progress.

    Returns:
        The report with its files.

    Raises:
        UserError: anything that a user can mend.
    """
    config = config or PipelineConfig()
    require_embedder(config.embedder)
    stages = stages or Stages()
    source = config.source
    if source.prepared is None:
        source = replace(source, prepared=Workspace(storage.path(out)).prepared)
    train_source = replace(source, limit=config.train_rows)
    train_specs = task_selection.select_tasks(train_tasks, source)
    eval_specs = task_selection.select_tasks(eval_tasks, source, evaluation=True)
    with Workspace.open(out, create=True).lock("run", wait=config.wait):
        if config.initial_checkpoint is None:
            workspace = Workspace.open(out, create=True)
            with stages.stage("read and render tasks", 1):
                trained = _render_examples(train_specs, train_source)
                # Apart, so that texts of both count twice: which words come first goes by how often they
                # occur.
                words = [
                    *_vocabulary_texts(trained),
                    *_vocabulary_texts(_render_examples(eval_specs, source)),
                ]
                texts = config.base_texts or list(dict.fromkeys(example.input for example in trained))
            pretraining_module.pretrain(
                workspace, texts, words, config.pretraining, seed=config.seed, stages=stages
            )
        settings.save_run_settings(
            Workspace.open(out, create=True), config.initial_checkpoint, source, config.lengths, config.dtype
        )
        run = opening.open_run(out, source=train_source, lengths=config.lengths, stages=stages)
        training = replace_fields(
            config.training, {"seed": config.seed, "wait": config.wait or config.training.checkpoint.wait}
        )
        experts = train_experts(run, train_specs, training)
        train_multitask(run, train_specs, MULTITASK, training)
        if method_module.reads_gates(config.evaluation.methods or ()):
            gates = replace(gate_config(seed=config.seed), checkpoint=CheckpointConfig(wait=config.wait))
            train_gates(run, experts, gates)
        index(
            run,
            experts=experts,
            size=config.keys,
            text_format=config.text_format,
            embedder=config.embedder,
            wait=config.wait,
        )
        about = {"title": config.title, "note": config.note, "seed": config.seed}
        about |= {"training": asdict(config.training)}
        result = evaluate(
            replace(run, source=source),
            eval_specs,
            replace(
                config.evaluation,
                experts=experts,
                oracle=True,
                wait=config.wait or config.evaluation.wait,
            ),
            environment=about,
        )
    if result is None:
        raise AssertionError("one host alone runs the whole path")
    return result


def _render_examples(specs: Sequence[TaskSpec], source: data_source.Source) -> list[PromptedExample]:
    return [example for spec in specs for example in task_rows.load_examples(spec, source)]


def _vocabulary_texts(examples: Iterable[PromptedExample]) -> list[str]:
    """Returns everything that the vocabulary must be able to write: inputs, choices and targets."""
    texts: dict[str, None] = {}
    for example in examples:
        texts |= dict.fromkeys((example.input, example.target, *example.choices))
    return list(texts)
