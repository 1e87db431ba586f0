"""GenKnowSub: Arrow over experts that general knowledge is taken out of (Bagherifard et al. 2025).

"GenKnowSub: Improving Modularity and Reusability of LLMs through General Knowledge Subtraction", arXiv
2505.10939: experts of tasks lose what experts of general text, such as an encyclopedia, have learnt too, and
Arrow chooses among what is left. As the form in PEFT, which is the authors', it subtracts the mean of the
general experts' factors from an expert's own factors. That is not the difference of their changes, since the
product of two differences has other terms; the option `subtract` has this one too.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.records import Params
from elm_jax.routing import token_gate
from elm_jax.routing.arrow import main_directions, require_mixing
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.registry import register_router
from elm_jax.routing.token_gate import Factors, TokenGate

SUBTRACTION_FORMS = ("factors", "changes")


@register_router("genknowsub", level="token", reads=("params",))
def genknowsub(
    queries: Queries,
    index: KeyIndex,
    *,
    params: Params,
    general: str,
    subtract: str = "factors",
    k: int = 3,
    temperature: float = 1.0,
    mixing: str = "outputs",
    exclude: Collection[str] = (),
) -> TokenGate:
    """Every token goes by Arrow to LoRA experts that the general experts are subtracted from.

    Args:
        queries: Only the task's name is read.
        index: The experts, the general ones among them, which serve no token themselves.
        params: The index's experts stacked, leaves [E, L, …].
        general: Ids of the general experts, separated by commas.
        subtract: "factors" for (A_e - mean A_g, B_e - mean B_g), as in PEFT; "changes" for
            A_e B_e - mean A_g B_g, which has no independent implementation.
        k: How many experts share a token.
        temperature: Of the softmax.
        mixing: As `arrow.arrow` has it.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If a general expert is not there, or was trained on an excluded dataset; if the experts are
            no LoRA, or an option is not valid.
    """
    require_mixing(mixing)
    if subtract not in SUBTRACTION_FORMS:
        raise UserError(
            f"Expected subtract {' or '.join(SUBTRACTION_FORMS)}, got {subtract!r}. Fix: give one."
        )
    taken = _find_general(index, general, exclude)
    factors = {
        path: _subtract_factors(pair, taken) if subtract == "factors" else _subtract_changes(pair, taken)
        for path, pair in token_gate.collect_lora_factors(params).items()
    }
    gate = token_gate.make_token_gate(
        "genknowsub",
        queries.task,
        index,
        main_directions(factors),
        k=k,
        temperature=temperature,
        exclude=exclude,
    )
    allowed = gate.allowed & ~np.isin(np.arange(len(index.experts)), taken)
    if not allowed.any():
        raise UserError(
            f"Expected an expert beside the general ones, got none for {queries.task!r}. Fix: add experts to "
            "the library, or exclude fewer datasets."
        )
    return replace(gate, mixing=mixing, factors=factors, allowed=allowed)


def _find_general(index: KeyIndex, general: str, exclude: Collection[str]) -> list[int]:
    """Returns the positions of the general experts in the index."""
    named = [general] if general in index.experts else [each.strip() for each in general.split(",")]
    for name in named:
        if name not in index.experts:
            raise UserError(
                f"Expected the id of a general expert of the library, got {name!r}. Fix: correct general=ID."
            )
    taken = [index.experts.index(name) for name in dict.fromkeys(named)]
    seen = [place for place in taken if set(exclude) & set(index.datasets[place])]
    if seen:
        raise UserError(
            f"Expected general experts that were not trained on {', '.join(sorted(exclude))}, got "
            f"{index.experts[seen[0]]!r}. Fix: name another, or give seen=true."
        )
    return taken


def _subtract_factors(pair: Factors, general: Sequence[int]) -> Factors:
    lora_a, lora_b = (factor - factor[list(general)].mean(axis=0) for factor in pair)
    return lora_a, lora_b


def _subtract_changes(
    pair: Factors, general: Sequence[int]
) -> tuple[Float[np.ndarray, "E L I Q"], Float[np.ndarray, "E L Q O"]]:
    """Returns factors of A_e B_e - mean A_g B_g: an expert's own, and beside them the general experts'."""
    lora_a, lora_b = pair
    before = np.concatenate([lora_a[place] for place in general], axis=-1)
    after = np.concatenate([lora_b[place] for place in general], axis=-2) / -len(general)
    return (
        np.concatenate([lora_a, np.broadcast_to(before, (len(lora_a), *before.shape))], axis=-1),
        np.concatenate([lora_b, np.broadcast_to(after, (len(lora_b), *after.shape))], axis=-2),
    )
