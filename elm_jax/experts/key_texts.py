"""Keys: the texts that stand for an expert's task, and the index that all experts' keys make together.

The text formats are those of the released code of Retrieval of Experts (arXiv 2302.03202, `make_index.py`),
under its names. A query must be written in the format of the keys it is compared with.
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
"""How a row becomes a key or a query. The `label` formats show the answer choices of the row itself, so they
say nothing for a task that generates; `choice` formats tell prompts apart, hardly rows."""


def format_texts(
    examples: Sequence[PromptedExample], text_format: str, answer_choices: str | None = None
) -> tuple[str, ...]:
    """Returns the text of each example in a format by name.

    `answer_choices` is the template's expression, unrendered, such as `{{option1}} ||| {{option2}}`; only the
    `choice` formats show it.

    Raises a UserError for an unknown format.

    >>> texts([PromptedExample("0", "Is it so?", "yes", ("no", "yes"))], "label_instance")
    ('Answer Choices: no, yes, Instance: Is it so?',)
    """
    write = TEXT_FORMATS[
        names.resolve(text_format, TEXT_FORMATS, kind="text format", where="the table of formats")
    ]
    return tuple(write(example, answer_choices) for example in examples)


def sample_examples(examples: Sequence[PromptedExample], size: int, seed: int) -> tuple[PromptedExample, ...]:
    """Returns the first `size` examples of a seeded permutation, or all of them if there are fewer."""
    if size < 1:
        raise UserError(f"At least one example is to be sampled, but {size} came.")
    order = np.random.default_rng(seed).permutation(len(examples))
    return tuple(examples[position] for position in order[:size])
