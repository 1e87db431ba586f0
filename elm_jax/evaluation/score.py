"""Score: how likely a model finds each of some answers after a text, for texts that are no task's rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.experts.lookup import library_finder
from elm_jax.frames import to_frame
from elm_jax.records import Expert
from elm_jax.scoring import choices as scoring
from elm_jax.scoring import scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session import opening
from elm_jax.session.settings import SETTINGS_FILE
from elm_jax.session.workspace import Run
from elm_jax.tokenizers.sentencepiece import Tokenizer
from elm_jax.weights.base_model import Base
from elm_jax.weights.load import load_model


@dataclass(frozen=True, repr=False)
class TextScores:
    """The scores of answer choices after texts.

    Attributes:
        texts: The texts.
        choices: The choices after each text.
        values: Of each text the log-likelihoods of its choices in nats, end-of-sequence included.
    """

    texts: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    values: tuple[Float[np.ndarray, "..."], ...]  # of each text [C]

    @property
    def best(self) -> list[str]:
        """Of each text the likeliest choice, the first of equals."""
        return [own[int(np.argmax(row))] for own, row in zip(self.choices, self.values, strict=True)]

    def __repr__(self) -> str:
        return f"TextScores({len(self)} texts, {sum(map(len, self.choices))} choices)"

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, text: int) -> Float[np.ndarray, " C"]:
        return self.values[text]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)

    def to_pandas(self) -> Any:
        """Returns a DataFrame with a line for each choice of each text."""
        best = self.best
        return to_frame(
            {"text": text, "choice": choice, "score": float(score), "best": choice == best[number]}
            for number, (text, own, row) in enumerate(zip(self.texts, self.choices, self.values, strict=True))
            for choice, score in zip(own, row, strict=True)
        )


def score(
    model: Base | Run | storage.PathLike,
    texts: str | Sequence[str],
    choices: Sequence[str] | Sequence[Sequence[str]],
    *,
    expert: Expert | str | None = None,
) -> TextScores:
    """Returns how likely a model finds each choice after each text, tokenised as its evaluation does.

    Args:
        model: What `load_model` returns, an open run, or the path or name of either.
        texts: The texts, or one of them.
        choices: The choices after every text, or those of each.
        expert: An expert of the base, or its id in the run's library or composites; default: the base alone.

    Returns:
        The scores in nats, summed over a choice's tokens (T0, Sanh et al. 2022); the highest is the best.

    Raises:
        UserError: If the model has no tokenizer, the expert is none of it, or a text has no choices.
    """
    base, tokenizer = _open(model)
    if isinstance(expert, str):
        if not isinstance(model, Run):
            raise UserError(
                f"Expected an expert beside a base, got the id {expert!r}. Fix: load it, as in "
                "`Library(path)[id]`, or give an open run as the model."
            )
        expert = library_finder(model.workspace)(expert).load_expert(expert, base=base.fingerprint)
    listed = [texts] if isinstance(texts, str) else list(texts)
    own = _list_choices(listed, choices)
    params, owned = scoring.resolve_params(base, expert)
    prompts = [[*ids, *([tokenizer.eos] * tokenizer.input_eos)] for ids in tokenizer.encode_all(listed)]
    known = sorted({choice for row in own for choice in row})
    answers = {
        choice: np.array([*ids, tokenizer.eos], np.int32)
        for choice, ids in zip(known, tokenizer.encode_all(known), strict=True)
    }
    rows = [
        PromptWithChoices(np.array(prompt, np.int32), [answers[choice] for choice in row])
        for prompt, row in zip(prompts, own, strict=True)
    ]
    found = scorer.score_rows(base.config, params, rows, owned, stacked=False) if rows else []
    return TextScores(tuple(listed), tuple(own), tuple(found))


def _open(model: Base | Run | storage.PathLike) -> tuple[Base, Tokenizer]:
    """Returns a model's base and its tokenizer."""
    if isinstance(model, Run):
        return model.base, model.tokenizer
    if not isinstance(model, Base):
        if (storage.path(model) / SETTINGS_FILE).exists():
            run = opening.open_run(model)
            return run.base, run.tokenizer
        model = load_model(model)
    if model.origin is None:
        raise UserError(
            "Expected a model that was loaded from files, beside which its tokenizer is, got one that was "
            "made. Fix: give a run, or score tokens with `score_choices`."
        )
    return model, opening.find_tokenizer(model.origin)


def _list_choices(
    texts: Sequence[str], choices: Sequence[str] | Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """Returns the choices of each text."""
    if all(isinstance(choice, str) for choice in choices):
        own = [tuple(map(str, choices))] * len(texts)
    else:
        own = [(row,) if isinstance(row, str) else tuple(row) for row in choices]
    if len(own) != len(texts) or not all(own):
        raise UserError(
            f"Expected choices for all of {len(texts)} texts, or for each of them, got {len(own)} rows of "
            "choices, or a row without any. Fix: give ['no', 'yes'], or a list of choices for each text."
        )
    return own
