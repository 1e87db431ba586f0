"""Renderings: a dataset's rows as the model sees them through one template.

`render` is the one way from rows to prompted examples: training, preparing, indexing and evaluating call it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from elm_jax.prompting.templates import TRUNCATE, Rendered, Template
from elm_jax.records import PromptedExample


@dataclass(frozen=True)
class Renderings:
    """What a template made of a dataset's rows."""

    examples: tuple[PromptedExample, ...]
    skipped: int  # rows that the template does not apply to, or rendered without an input or a target
    outside: int  # examples whose target is not among their choices; their label is None


def render(
    rows: Iterable[Mapping[str, Any]],
    template: Template,
    *,
    truncate: int | None = TRUNCATE,
    keep_empty: bool = False,
    row_id: str = "row_id",
) -> Renderings:
    """Renders every row that the template applies to, in order.

    `row_id` names the column that holds a row's id; a row without it is called by its number, from 0. The
    label is the index of the target among the choices, compared without the white space around them.
    With `keep_empty` an empty input or target, or a row that the template does not apply to, is kept as an
    example with empty texts and no label, as the paper's released code trained on them.
    Raises `UserError` as `Template.render` does, naming the row.
    """
    examples = []
    skipped = outside = 0
    for number, row in enumerate(rows):
        identity = str(row.get(row_id, number))
        rendered = template.render(row, truncate, row_id=identity)
        if rendered is None and keep_empty:
            # The original joins all parts but the last into the input.
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
