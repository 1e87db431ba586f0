"""elm_jax: train one small expert per task on a frozen T5, retrieve, merge and score them.

What a script or a notebook needs is here by name; the rest of the package is for those who extend it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_jax.engine.choices import score_choices
    from elm_jax.engine.embed import load_embedder
    from elm_jax.errors import UserError
    from elm_jax.library.store import Library
    from elm_jax.prompting.templates import load_templates
    from elm_jax.runs.base import open_run
    from elm_jax.runs.courses import Budget
    from elm_jax.runs.evaluate import evaluate
    from elm_jax.runs.index import index
    from elm_jax.runs.merge import merge
    from elm_jax.runs.route import route
    from elm_jax.runs.train import train
    from elm_jax.tasks.seqio_tasks import register_tasks
    from elm_jax.tasks.specs import examples, find_task, task_specs
    from elm_jax.weights.load import load_model

__all__ = [
    "Budget",
    "Library",
    "UserError",
    "evaluate",
    "examples",
    "find_task",
    "index",
    "load_embedder",
    "load_model",
    "load_templates",
    "merge",
    "open_run",
    "register_tasks",
    "route",
    "score_choices",
    "task_specs",
    "train",
]

_HOMES = {
    "Budget": "elm_jax.runs.courses",
    "Library": "elm_jax.library.store",
    "UserError": "elm_jax.errors",
    "evaluate": "elm_jax.runs.evaluate",
    "examples": "elm_jax.tasks.specs",
    "find_task": "elm_jax.tasks.specs",
    "index": "elm_jax.runs.index",
    "load_embedder": "elm_jax.engine.embed",
    "load_model": "elm_jax.weights.load",
    "load_templates": "elm_jax.prompting.templates",
    "merge": "elm_jax.runs.merge",
    "open_run": "elm_jax.runs.base",
    "register_tasks": "elm_jax.tasks.seqio_tasks",
    "route": "elm_jax.runs.route",
    "score_choices": "elm_jax.engine.choices",
    "task_specs": "elm_jax.tasks.specs",
    "train": "elm_jax.runs.train",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `import elm_jax` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_jax' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
