"""FLOPs: what training costs in operations of the model's matrix products, and what devices could do at most.

Model FLOPs as PaLM counts them (Chowdhery et al. 2022, appendix B): products of real tokens with kernels, and
attention's with one another. Not counted are padding, what is computed again to save memory, and all that is
no matrix product. Of a token, with N parameters in the frozen base's kernels that it meets, n in the expert's
own, and L layers of H heads of P in which it attends to K tokens each,

    full                   6 N + 12 L H P K
    bottleneck, lora, ia3  4 N + 6 n + 12 L H P K

A product costs 2 forward, 2 for the gradient of what it takes, and 2 for that of its kernel, which a frozen
one has not. A prompt's token meets the encoder and cross-attention's keys and values; an answer's meets the
rest of the decoder and the output layer. Causal attention counts whole, as in PaLM. LoRA and (IA)³ need no
gradient of what enters the first layer, which is left out: a few hundredths in two layers, less in more.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

_KERNELS = ("kernel", "lora_a", "lora_b")


@dataclass(frozen=True)
class Attended:
    """How many tokens a token attends to in a layer, on average over tokens."""

    prompt: float = 0.0  # a prompt's token, to its prompt
    answer: float = 0.0  # an answer's token, to its answer
    cross: float = 0.0  # an answer's token, to its prompt


@dataclass(frozen=True)
class Cost:
    """FLOPs of training, of one real token; `formula` says what was counted."""

    prompt: float
    answer: float
    formula: str

    def of(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Returns the FLOPs of so many real tokens."""
        return self.prompt * prompt_tokens + self.answer * answer_tokens


def attended(prompts: Iterable[Sequence[int] | np.ndarray], answers: Iterable[Any]) -> Attended:
    """Returns what the tokens of these rows attend to: longer rows have more tokens, and each more to see.

    >>> attended([[5] * 3, [5]], [[5], [5]])
    Attended(prompt=2.5, answer=1.0, cross=2.0)
    """
    s = np.array([len(row) for row in prompts], np.float64)
    t = np.array([len(row) for row in answers], np.float64)
    of_prompts, of_answers = max(s.sum(), 1.0), max(t.sum(), 1.0)
    return Attended(float(s @ s / of_prompts), float(t @ t / of_answers), float(s @ t / of_answers))


def cost(network: T5Config, kind: str, base: Params, expert: Params, seen: Attended | None = None) -> Cost:
    """Returns what training an expert beside a base costs; of arrays or of shapes alone.

    Without `seen` the 12 L H P K are left out.
    """
    prompt, answer = _met(base, tied=network.logits_via_embedding)
    full = kind == "full"
    own = (0, 0) if full else _met(expert)
    pair = 12 * network.num_heads * network.head_dim
    seen, formula = seen or Attended(), "6 N" if full else "4 N + 6 n"
    between_prompt = pair * network.num_encoder_layers * seen.prompt
    between_answer = pair * network.num_decoder_layers * (seen.answer + seen.cross)
    return Cost(
        prompt=(6 if full else 4) * prompt + 6 * own[0] + between_prompt,
        answer=(6 if full else 4) * answer + 6 * own[1] + between_answer,
        formula=formula + " + 12 L H P K" * (between_prompt > 0),
    )


def forward_cost(network: T5Config, base: Params, expert: Params, seen: Attended | None = None) -> Cost:
    """Returns what a forward pass costs, without a gradient: 2 N + 2 n + 4 L H P K."""
    whole = cost(network, "full", base, {}, seen)
    own = _met(expert)
    return Cost(whole.prompt / 3 + 2 * own[0], whole.answer / 3 + 2 * own[1], "2 N + 2 n + 4 L H P K")


def _met(tree: Any, *, tied: bool = False) -> tuple[int, int]:
    """Returns how many parameters of kernels a prompt's token meets, and how many an answer's."""
    prompt = answer = 0
    for path, leaf in paths.flatten(tree).items():
        *_, owner, last = path.split("/")
        if last not in _KERNELS and not (tied and path == "token_embedder/embedding"):
            continue
        cross = "/encoder_decoder_attention/" in path and owner in ("key", "value")
        if path.startswith("encoder/") or cross:
            prompt += math.prod(leaf.shape)
        else:
            answer += math.prod(leaf.shape)
    return prompt, answer
