"""elm_jax: train one small expert per task on a frozen T5, retrieve, merge and score them.

What a script or a notebook needs is here by name; the rest of the package is for those who extend it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elm_jax import moved

if TYPE_CHECKING:
    from elm_jax.data.check import check_tasks
    from elm_jax.errors import ContaminationError, OutOfMemoryError, UserError
    from elm_jax.evaluation.config import EvaluationConfig
    from elm_jax.evaluation.evaluate import EvaluationResult, evaluate
    from elm_jax.evaluation.score import TextScores, score
    from elm_jax.experts.convert import convert
    from elm_jax.experts.import_export import export_expert, import_expert
    from elm_jax.experts.library import Library
    from elm_jax.frames import Records
    from elm_jax.merging.merge import merge
    from elm_jax.merging.method import MergeOption
    from elm_jax.merging.table import register_merge
    from elm_jax.pipelines.pipeline import PipelineConfig, run_pipeline
    from elm_jax.prompting.render import Renderings
    from elm_jax.prompting.template_files import load_templates
    from elm_jax.prompting.templates import Template
    from elm_jax.records import Expert, ExpertSpec, Keys, PromptedExample, Selection, TaskSpec
    from elm_jax.reporting.records import Report
    from elm_jax.routing.embedding import Embedder, load_embedder
    from elm_jax.routing.index import index
    from elm_jax.routing.inputs import KeyIndex, Queries
    from elm_jax.routing.route import route
    from elm_jax.routing.table import register_router
    from elm_jax.scoring.choices import score_choices
    from elm_jax.session.opening import open_run
    from elm_jax.session.workspace import Run
    from elm_jax.tasks.data_source import Lengths, Source, feature_lengths
    from elm_jax.tasks.rendering import examples
    from elm_jax.tasks.seqio_tasks import Registered, register_tasks
    from elm_jax.tasks.specs import find_task, task_specs
    from elm_jax.tasks.user_tasks import define_task, load_tasks
    from elm_jax.telemetry.progress import Stages
    from elm_jax.telemetry.trackers import register_tracker
    from elm_jax.training.config import (
        BatchConfig,
        CheckpointConfig,
        ExpertConfig,
        LogConfig,
        LossConfig,
        OptimizerConfig,
        ScheduleConfig,
        TrainConfig,
    )
    from elm_jax.training.pretraining import Pretraining, pretrain
    from elm_jax.training.train import train
    from elm_jax.weights.base_model import Base
    from elm_jax.weights.load import load_model

    __version__: str

__all__ = [
    "Base",
    "BatchConfig",
    "CheckpointConfig",
    "ContaminationError",
    "Embedder",
    "EvaluationConfig",
    "EvaluationResult",
    "Expert",
    "ExpertConfig",
    "ExpertSpec",
    "KeyIndex",
    "Keys",
    "Lengths",
    "Library",
    "LogConfig",
    "LossConfig",
    "MergeOption",
    "OptimizerConfig",
    "OutOfMemoryError",
    "PipelineConfig",
    "Pretraining",
    "PromptedExample",
    "Queries",
    "Records",
    "Registered",
    "Renderings",
    "Report",
    "Run",
    "ScheduleConfig",
    "Selection",
    "Source",
    "Stages",
    "TaskSpec",
    "Template",
    "TextScores",
    "TrainConfig",
    "UserError",
    "__version__",
    "check_tasks",
    "convert",
    "define_task",
    "evaluate",
    "examples",
    "export_expert",
    "feature_lengths",
    "find_task",
    "import_expert",
    "index",
    "load_embedder",
    "load_model",
    "load_tasks",
    "load_templates",
    "merge",
    "open_run",
    "pretrain",
    "register_merge",
    "register_router",
    "register_tasks",
    "register_tracker",
    "route",
    "run_pipeline",
    "score",
    "score_choices",
    "task_specs",
    "train",
]

# Public name -> its module, and after a colon its name there if that is another one.
_HOMES = {
    "Base": "elm_jax.weights.base_model",
    "BatchConfig": "elm_jax.training.config",
    "CheckpointConfig": "elm_jax.training.config",
    "ContaminationError": "elm_jax.errors",
    "Embedder": "elm_jax.routing.embedding",
    "EvaluationConfig": "elm_jax.evaluation.config",
    "EvaluationResult": "elm_jax.evaluation.evaluate",
    "Expert": "elm_jax.records",
    "ExpertConfig": "elm_jax.training.config",
    "ExpertSpec": "elm_jax.records",
    "KeyIndex": "elm_jax.routing.inputs",
    "Keys": "elm_jax.records",
    "Lengths": "elm_jax.tasks.data_source",
    "Library": "elm_jax.experts.library",
    "LogConfig": "elm_jax.training.config",
    "LossConfig": "elm_jax.training.config",
    "OptimizerConfig": "elm_jax.training.config",
    "MergeOption": "elm_jax.merging.method",
    "OutOfMemoryError": "elm_jax.errors",
    "PipelineConfig": "elm_jax.pipelines.pipeline",
    "Pretraining": "elm_jax.training.pretraining",
    "PromptedExample": "elm_jax.records",
    "Queries": "elm_jax.routing.inputs",
    "Records": "elm_jax.frames",
    "Registered": "elm_jax.tasks.seqio_tasks",
    "Renderings": "elm_jax.prompting.render",
    "Report": "elm_jax.reporting.records",
    "Run": "elm_jax.session.workspace",
    "ScheduleConfig": "elm_jax.training.config",
    "Selection": "elm_jax.records",
    "Source": "elm_jax.tasks.data_source",
    "Stages": "elm_jax.telemetry.progress",
    "TaskSpec": "elm_jax.records",
    "Template": "elm_jax.prompting.templates",
    "TextScores": "elm_jax.evaluation.score",
    "TrainConfig": "elm_jax.training.config",
    "UserError": "elm_jax.errors",
    "check_tasks": "elm_jax.data.check",
    "convert": "elm_jax.experts.convert",
    "define_task": "elm_jax.tasks.user_tasks",
    "evaluate": "elm_jax.evaluation.evaluate",
    "examples": "elm_jax.tasks.rendering",
    "export_expert": "elm_jax.experts.import_export",
    "feature_lengths": "elm_jax.tasks.data_source",
    "find_task": "elm_jax.tasks.specs",
    "import_expert": "elm_jax.experts.import_export",
    "index": "elm_jax.routing.index",
    "load_embedder": "elm_jax.routing.embedding",
    "load_model": "elm_jax.weights.load",
    "load_tasks": "elm_jax.tasks.user_tasks",
    "load_templates": "elm_jax.prompting.template_files",
    "merge": "elm_jax.merging.merge",
    "open_run": "elm_jax.session.opening",
    "pretrain": "elm_jax.training.pretraining",
    "register_merge": "elm_jax.merging.table",
    "register_router": "elm_jax.routing.table",
    "register_tasks": "elm_jax.tasks.seqio_tasks",
    "register_tracker": "elm_jax.telemetry.trackers",
    "route": "elm_jax.routing.route",
    "run_pipeline": "elm_jax.pipelines.pipeline",
    "score": "elm_jax.evaluation.score",
    "score_choices": "elm_jax.scoring.choices",
    "task_specs": "elm_jax.tasks.specs",
    "train": "elm_jax.training.train",
}

moved.install()


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `import elm_jax` stays quick."""
    if name == "__version__":
        from importlib import metadata  # takes as long as all else of the package

        return metadata.version("elm_jax")
    if name in moved.RENAMED:
        return moved.old_name(name)
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_jax' has no attribute {name!r}")
    module, _, inside = _HOMES[name].partition(":")
    return getattr(import_module(module), inside or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
