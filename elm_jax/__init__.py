"""elm_jax: train one small expert per task on a frozen T5, retrieve, merge and score them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_jax.prompting.templates import load_templates
    from elm_jax.tasks.specs import examples, find_task, task_specs

__all__ = ["examples", "find_task", "load_templates", "task_specs"]

_HOMES = {
    "examples": "elm_jax.tasks.specs",
    "find_task": "elm_jax.tasks.specs",
    "load_templates": "elm_jax.prompting.templates",
    "task_specs": "elm_jax.tasks.specs",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `import elm_jax` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_jax' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
