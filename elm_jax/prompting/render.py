"""Renderings: a dataset's rows as the model sees them through one template.

Everything that turns rows into prompted examples calls `render`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from elm_jax.prompting import isolation
from elm_jax.prompting.templates import TRUNCATE, Rendered, Template
from elm_jax.records import PromptedExample


@dataclass(frozen=True)
class Renderings:
    """A dataset's rows, rendered by one template.

    Attributes:
        examples: The prompted examples.
        skipped: Rows that the template does not apply to, or that have an empty input or target.
        outside: Examples whose target is none of their choices; their label is None.
    """

    examples: tuple[PromptedExample, ...]
    skipped: int
    outside: int


@isolation.apart(1)
def render(
    rows: Iterable[Mapping[str, Any]],
    template: Template,
    *,
    truncate: int | None = TRUNCATE,
    keep_empty: bool = False,
    row_id: str = "row_id",
) -> Renderings:
    """Renders every row that the template applies to, in order.

    A label is the index of the target among the choices, without the white space around them.

    Args:
        rows: The rows, as plain Python values by column.
        template: The template.
        truncate: Characters that are kept of every value that the template writes; None keeps all.
        keep_empty: Whether rows with an empty input or target, or that the template does not apply to, are
            kept as examples with empty texts, on which the paper's released code trained.
        row_id: Column of a row's id; a row without it has its number, from 0, as id.

    Raises:
        UserError: If a row cannot be rendered; the message names it.
    """
    examples = []
    skipped = outside = 0
    for number, row in enumerate(rows):
        identity = str(row.get(row_id, number))
        rendered = template.render(row, truncate, row_id=identity)
        if rendered is None and keep_empty:
            # The paper's code joins all parts but the last into the input.
            rendered = Rendered("", template.parts(row, truncate, row_id=identity)[-1], ())
        if rendered is None or not (keep_empty or (rendered.input and rendered.target)):
            skipped += 1
            continue
        example = _example(rendered, identity)
        outside += bool(example.choices and example.target) and example.label is None
        examples.append(example)
    return Renderings(tuple(examples), skipped, outside)


def _example(rendered: Rendered, row_id: str) -> PromptedExample:
    choices = rendered.choices or ()
    label = choices.index(rendered.target) if rendered.target in choices else None
    return PromptedExample(row_id, rendered.input, rendered.target, choices, label)
