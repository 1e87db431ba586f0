"""Key texts: how rows of a task become the texts that are embedded as an expert's keys, and as queries.

The text formats and their names are those of the released code of Retrieval of Experts (arXiv 2302.03202,
`make_index.py`). A query must have the format of the keys that it is compared with.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample

TextFormat = Callable[[PromptedExample, str | None], str]
"""(example, the template's unrendered `answer_choices` expression) -> text."""

KEYS_PER_EXPERT = 100  # the paper's S
QUERIES_PER_TASK = 32  # the paper's Q


def _labels(example: PromptedExample) -> str:
    return ", ".join(example.choices)


def _expression(choices: str | None) -> str:
    return str(choices)  # the original writes the word None for a template without choices


TEXT_FORMATS: Mapping[str, TextFormat] = {
    "instance": lambda example, choices: f"Instance: {example.input}",
    "label": lambda example, choices: f"Answer Choices: {_labels(example)}",
    "choice": lambda example, choices: f"Answer Choices: {_expression(choices)}",
    "label_instance": lambda example, choices: (
        f"Answer Choices: {_labels(example)}, Instance: {example.input}"
    ),
    "choice_instance": lambda example, choices: (
        f"Answer Choices: {_expression(choices)}, Instance: {example.input}"
    ),
    "instance_new": lambda example, choices: example.input,
    "label_new": lambda example, choices: _labels(example),
    "choice_new": lambda example, choices: _expression(choices),
    "label_instance_new": lambda example, choices: f"{_labels(example)}</s>{example.input}",
    "choice_instance_new": lambda example, choices: f"{_expression(choices)}</s>{example.input}",
}
"""Name -> format of a key or a query. The `label` formats have the answer choices of the row, so they are
empty for a task that generates. The `choice` formats differ by prompt, hardly by row."""


def format_texts(
    examples: Sequence[PromptedExample], text_format: str, answer_choices: str | None = None
) -> tuple[str, ...]:
    """Returns the text of each example in a format.

    Args:
        examples: The rows.
        text_format: The name of a format in `TEXT_FORMATS`.
        answer_choices: The template's unrendered expression, such as `{{option1}} ||| {{option2}}`, which
            only the `choice` formats use.

    Raises:
        UserError: If there is no such format.

    >>> format_texts([PromptedExample("0", "Is it so?", "yes", ("no", "yes"))], "label_instance")
    ('Answer Choices: no, yes, Instance: Is it so?',)
    """
    write = TEXT_FORMATS[
        names.resolve(text_format, TEXT_FORMATS, kind="text format", where="the table of formats")
    ]
    return tuple(write(example, answer_choices) for example in examples)


def sample_examples(examples: Sequence[PromptedExample], size: int, seed: int) -> tuple[PromptedExample, ...]:
    """Returns the first `size` examples of a seeded permutation, or all if there are fewer.

    Raises:
        UserError: If `size` is below 1.
    """
    if size < 1:
        raise UserError(f"Expected a sample of at least 1 example, got {size}. Fix: raise it.")
    order = np.random.default_rng(seed).permutation(len(examples))
    return tuple(examples[position] for position in order[:size])
