"""elm_jax: train one small expert per task on a frozen T5, retrieve, merge and score them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_jax.engine.choices import score_choices
    from elm_jax.engine.embed import load_embedder
    from elm_jax.prompting.templates import load_templates
    from elm_jax.tasks.specs import examples, find_task, task_specs
    from elm_jax.weights.load import load_model

__all__ = [
    "examples",
    "find_task",
    "load_embedder",
    "load_model",
    "load_templates",
    "score_choices",
    "task_specs",
]

_HOMES = {
    "examples": "elm_jax.tasks.specs",
    "find_task": "elm_jax.tasks.specs",
    "load_embedder": "elm_jax.engine.embed",
    "load_model": "elm_jax.weights.load",
    "load_templates": "elm_jax.prompting.templates",
    "score_choices": "elm_jax.engine.choices",
    "task_specs": "elm_jax.tasks.specs",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `import elm_jax` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_jax' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
