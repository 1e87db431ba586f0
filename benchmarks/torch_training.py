"""PyTorch's side of training: transformers' T5 with an expert beside its frozen base, as its users train it.

One job at a time, a batch padded to its longest row, as Hugging Face's Trainer does. What makes PyTorch
faster and changes nothing is done: the faster attention of the two is chosen, the base gets no gradients, no
cache is made, AdamW takes all parameters at once, denormal numbers are flushed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.axes import PAD
from elm_jax.models.expert_kinds import REDUCTION
from elm_jax.training.jobs import TrainingJob, rows_of_step

RANK, CLIP = 8, 1.0
ATTENTIONS = ("eager", "sdpa")


@dataclass(frozen=True)
class Tally:
    """Tokens that a side has trained on."""

    prompt: int = 0  # real ones
    answer: int = 0
    computed: int = 0  # padding among them

    @property
    def real(self) -> int:
        return self.prompt + self.answer

    def plus(self, prompt: int = 0, answer: int = 0, computed: int = 0) -> "Tally":
        return Tally(self.prompt + prompt, self.answer + answer, self.computed + computed)


class Trainer:
    """A network with one fresh expert, which goes through the steps of all jobs in turn.

    An expert for each would take as long, and memory for each.
    """

    def __init__(self, model: Any, jobs: Sequence[TrainingJob]) -> None:
        import torch

        self.model, self.jobs = model.train(), jobs
        self.own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.own, lr=jobs[0].config.schedule.peak, weight_decay=0.0, foreach=True
        )
        self.step = 0

    def run(self, tokens: int) -> Tally:
        """Trains on so many real tokens, or a few more: every job has had as many steps then."""
        tally = Tally()
        while tally.real < tokens or self.step % len(self.jobs):
            job = self.jobs[self.step % len(self.jobs)]
            chosen = rows_of_step(job, self.step // len(self.jobs))
            prompts = padded([job.prompts[row] for row in chosen])
            targets = padded([job.targets[row] for row in chosen])
            self._one(prompts, targets)
            real = int(np.count_nonzero(prompts)), int(np.count_nonzero(targets))
            tally = tally.plus(*real, computed=prompts.size + targets.size)
            self.step += 1
        return tally

    def _one(self, prompts: np.ndarray, targets: np.ndarray) -> None:
        import torch

        inputs, wanted = torch.from_numpy(prompts), torch.from_numpy(targets)
        wanted = wanted.masked_fill(wanted == PAD, -100)
        loss = self.model(input_ids=inputs, attention_mask=inputs != PAD, labels=wanted, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.own, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def padded(rows: Sequence[Any]) -> np.ndarray:
    """Returns rows [B, N] padded to the longest.

    >>> padded([[5, 6], [7]]).tolist()
    [[5, 6], [7, 0]]
    """
    found = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def fastest(make: Callable[[], Any], jobs: Sequence[TrainingJob], kind: str) -> tuple[Trainer, str]:
    """Returns the trainer of the faster attention, warm, and its name; `make` gives the base's network."""
    import torch

    torch.set_flush_denormal(True)
    found = []
    for name in ATTENTIONS:
        model = make()
        model.set_attn_implementation(name)
        trainer = Trainer(EXPERTS[kind](model), jobs)
        trainer.run(1)
        start = time.perf_counter()
        tally = trainer.run(1)
        found.append((tally.real / (time.perf_counter() - start), name, trainer))
    _, name, trainer = max(found, key=lambda each: each[0])
    return trainer, name


def bottleneck(model: Any) -> Any:
    """Freezes a network and adds the original's adapters, after self-attention and after feed-forward.

    They and the scales of all norms are trained.
    """
    import torch
    from transformers.activations import NewGELUActivation
    from transformers.models.t5 import modeling_t5

    def adapter() -> Any:
        width = model.config.d_model
        layers = torch.nn.Linear(width, width // REDUCTION), torch.nn.Linear(width // REDUCTION, width)
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=0.01)
            torch.nn.init.zeros_(layer.bias)
        return torch.nn.Sequential(layers[0], NewGELUActivation(), layers[1])

    def adapted(module: Any, _: Any, given: Any) -> Any:
        if isinstance(given, tuple):
            return given[0] + module.adapter(given[0]), *given[1:]
        return given + module.adapter(given)

    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, modeling_t5.T5LayerNorm):
            module.requires_grad_(True)
        block = getattr(module, "SelfAttention", None) or getattr(module, "DenseReluDense", None)
        if block is not None:
            block.adapter = adapter()
            block.register_forward_hook(adapted)
    return model


def lora(model: Any) -> Any:
    """Returns PEFT's network with LoRA on all queries and values."""
    import peft

    told = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    return peft.get_peft_model(model, told)


EXPERTS = {"bottleneck": bottleneck, "lora": lora}
