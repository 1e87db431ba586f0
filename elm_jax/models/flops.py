"""FLOPs: how many operations the model's matrix products take in training and in a forward pass.

Model FLOPs are counted as in PaLM (Chowdhery et al. 2022, appendix B): products of real tokens with kernels,
and the products of attention. Padding, rematerialization and all but matrix products do not count. For a
token that is multiplied by N parameters in kernels of the frozen base and n in those of the expert, and that
attends to K tokens in each of L layers with H heads of width P, they are

    full                   6 N + 12 L H P K
    any other kind         4 N + 6 n + 12 L H P K

A product takes 2 forward, 2 for the gradient of its inputs, and 2 for that of its kernel unless it is frozen.
A prompt's token passes the encoder and the keys and values of cross-attention. An answer's token passes the
rest of the decoder and the output layer. Causal attention counts in full, as in PaLM. LoRA and (IA)³ need no
gradient of the first layer's inputs, which is ignored here: a few percent with two layers, less with more.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

_KERNELS = ("kernel", "lora_a", "lora_b")


@dataclass(frozen=True)
class AttentionSpans:
    """How many tokens a token attends to in a layer, on average over tokens.

    Attributes:
        prompt: A prompt's token to its prompt.
        answer: An answer's token to its answer.
        cross: An answer's token to its prompt.
    """

    prompt: float = 0.0
    answer: float = 0.0
    cross: float = 0.0


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs of one real token.

    Attributes:
        prompt: Of a prompt's token.
        answer: Of an answer's token.
        formula: The formula that they were counted with.
    """

    prompt: float
    answer: float
    formula: str

    def total(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Returns the FLOPs of these numbers of real tokens."""
        return self.prompt * prompt_tokens + self.answer * answer_tokens


def attention_spans(prompts: ArrayLike, answers: ArrayLike) -> AttentionSpans:
    """Returns how many tokens a token attends to, on average over the tokens of rows of these lengths.

    >>> attention_spans([3, 1], [1, 1])
    AttentionSpans(prompt=2.5, answer=1.0, cross=2.0)
    """
    s, t = np.asarray(prompts, np.float64), np.asarray(answers, np.float64)
    of_prompts, of_answers = max(s.sum(), 1.0), max(t.sum(), 1.0)
    return AttentionSpans(float(s @ s / of_prompts), float(t @ t / of_answers), float(s @ t / of_answers))


def training_flops(
    network: T5Config, kind: str, base: Params, expert: Params, spans: AttentionSpans | None = None
) -> FlopsPerToken:
    """Returns the FLOPs of training an expert.

    Args:
        network: The network.
        kind: The kind of the expert.
        base: The base's parameters, or their shapes.
        expert: The expert's parameters, or their shapes.
        spans: How many tokens a token attends to; default: attention is not counted.
    """
    prompt, answer = _count_kernel_params(base, tied=network.logits_via_embedding)
    full = kind == "full"
    own = (0, 0) if full else _count_kernel_params(expert, base)
    pair = 12 * network.num_heads * network.head_dim
    spans, formula = spans or AttentionSpans(), "6 N" if full else "4 N + 6 n"
    between_prompt = pair * network.num_encoder_layers * spans.prompt
    between_answer = pair * network.num_decoder_layers * (spans.answer + spans.cross)
    return FlopsPerToken(
        prompt=(6 if full else 4) * prompt + 6 * own[0] + between_prompt,
        answer=(6 if full else 4) * answer + 6 * own[1] + between_answer,
        formula=formula + " + 12 L H P K" * (between_prompt > 0),
    )


def forward_flops(
    network: T5Config, base: Params, expert: Params, spans: AttentionSpans | None = None
) -> FlopsPerToken:
    """Returns the FLOPs of a forward pass without gradients: 2 N + 2 n + 4 L H P K."""
    whole = training_flops(network, "full", base, {}, spans)
    own = _count_kernel_params(expert, base)
    return FlopsPerToken(
        whole.prompt / 3 + 2 * own[0], whole.answer / 3 + 2 * own[1], "2 N + 2 n + 4 L H P K"
    )


def _count_kernel_params(tree: Any, base: Any = None, *, tied: bool = False) -> tuple[int, int]:
    """Returns how many parameters of kernels a prompt's token is multiplied by, and an answer's token."""
    prompt = answer = 0
    kernels = {} if base is None else paths.flatten(base)
    for path, leaf in paths.flatten(tree).items():
        *_, owner, last = path.split("/")
        size = math.prod(leaf.shape)
        if last == "lambda_d":  # a projection's part of the matrices that VeRA's share
            size *= sum(kernels[path.replace("lambda_d", "kernel")].shape[1:])
        elif last not in _KERNELS and not (tied and path == "token_embedder/embedding"):
            continue
        cross = "/encoder_decoder_attention/" in path and owner in ("key", "value")
        if path.startswith("encoder/") or cross:
            prompt += size
        else:
            answer += size
    return prompt, answer
