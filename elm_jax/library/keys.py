"""Keys: the texts that stand for an expert's task, and the index that all experts' keys make together.

The text formats are those of the released code of Retrieval of Experts (arXiv 2302.03202, `make_index.py`),
under its names. A query must be written in the format of the keys it is compared with.
"""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.library.store import Library
from elm_jax.records import Keys, PromptedExample
from elm_jax.routing.evidence import Index

TextFormat = Callable[[PromptedExample, str | None], str]
"""(example, the template's unrendered `answer_choices` expression) -> text."""

KEYS_PER_EXPERT = 100  # the paper's S
QUERIES_PER_TASK = 32  # the paper's Q


def _labels(example: PromptedExample) -> str:
    return ", ".join(example.choices)


def _expression(choices: str | None) -> str:
    return str(choices)  # the original writes the word None for a template without choices


FORMATS: Mapping[str, TextFormat] = {
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


def texts(
    examples: Sequence[PromptedExample], text_format: str, answer_choices: str | None = None
) -> tuple[str, ...]:
    """Returns the text of each example in a format by name.

    `answer_choices` is the template's expression, unrendered, such as `{{option1}} ||| {{option2}}`; only the
    `choice` formats show it.

    Raises a UserError for an unknown format.

    >>> texts([PromptedExample("0", "Is it so?", "yes", ("no", "yes"))], "label_instance")
    ('Answer Choices: no, yes, Instance: Is it so?',)
    """
    write = FORMATS[names.resolve(text_format, FORMATS, kind="text format", where="the table of formats")]
    return tuple(write(example, answer_choices) for example in examples)


def sample(examples: Sequence[PromptedExample], size: int, seed: int) -> tuple[PromptedExample, ...]:
    """Returns the first `size` examples of a seeded permutation, or all of them if there are fewer."""
    if size < 1:
        raise UserError(f"At least one example is to be sampled, but {size} came.")
    order = np.random.default_rng(seed).permutation(len(examples))
    return tuple(examples[position] for position in order[:size])


def index(library: Library, ids: Sequence[str] | None = None) -> Index:
    """Returns the keys of experts, one below the other; of the whole library without `ids`.

    Raises a UserError that names the experts which have no keys, or the first one whose keys come from
    another embedder, text format or width than the first expert's.
    """
    chosen = library.ids() if ids is None else tuple(dict.fromkeys(ids))
    if not chosen:
        raise UserError(
            f"An index needs experts, but none came from the library at {library.root!s}. Train some first."
        )
    datasets = tuple(library.spec(expert).datasets for expert in chosen)
    lacking = [expert for expert in chosen if not library.has_keys(expert)]
    if lacking:
        shown = ", ".join(repr(expert) for expert in lacking[:5]) + (", …" if len(lacking) > 5 else "")
        raise UserError(
            f"Every expert needs keys to be found by, but {len(lacking)} of {len(chosen)} have none: "
            f"{shown}. Run `elm index` to embed them."
        )
    keys = [library.keys(expert) for expert in chosen]
    for expert, own in zip(chosen, keys, strict=True):
        _require_same(chosen[0], keys[0], expert, own)
    return Index(
        experts=chosen,
        datasets=datasets,
        expert_of_row=np.repeat(np.arange(len(keys)), [len(own.texts) for own in keys]),
        # On the device once, rather than at every search.
        vectors=jnp.asarray(np.concatenate([np.asarray(own.vectors, np.float32) for own in keys])),
        texts=tuple(text for own in keys for text in own.texts),
        embedder=keys[0].embedder,
        text_format=keys[0].text_format,
    )


def _require_same(first: str, wanted: Keys, expert: str, came: Keys) -> None:
    for what, theirs, own in (
        ("embedder", wanted.embedder, came.embedder),
        ("text format", wanted.text_format, came.text_format),
        ("width", wanted.vectors.shape[1], came.vectors.shape[1]),
    ):
        if own != theirs:
            raise UserError(
                f"Keys of one {what} are wanted, but {first!r} has {what} {theirs!r} and {expert!r} has "
                f"{own!r}. Embed all keys alike with `elm index --rebuild`."
            )
