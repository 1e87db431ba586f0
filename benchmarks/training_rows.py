"""Rows to train on: those of eight prompts of DREAM and CosmosQA, and a process that trains on them.

Run     python -m benchmarks.training_rows DIR --experts 0 1 … --steps 40

DIR is what `write` made: a base, and the rows, rendered and tokenised. The process does all that a run of its
own does, from its imports to the file of every finished expert.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elm_jax.data import ragged
from elm_jax.data.ragged import RaggedTokens
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.tasks import rendering
from elm_jax.tasks.data_source import Source
from elm_jax.tokenizers import sentencepiece
from elm_jax.training.config import TrainConfig, replace_fields
from elm_jax.training.jobs import TrainingJob

TASKS = {
    "dream/baseline": "train",
    "dream/read_the_following_conversation_and_answer_the_question": "train",
    "dream/generate-first-utterance": "train",
    "dream/generate-last-utterance": "train",
    "cosmos_qa/context_answer_to_question": "validation",
    "cosmos_qa/context_question_description_answer_text": "validation",
    "cosmos_qa/no_prompt_id": "validation",
    "cosmos_qa/only_question_answer": "validation",
}
MOST_PROMPT, MOST_ANSWER = 256, 128
BATCH, RATE = 8, 1e-4
PIECES = 8000
BASE, ROWS = "base", "rows.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("where", type=Path)
    parser.add_argument("--experts", type=int, nargs="+", required=True, help="numbers of the rows' tasks")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    import jax

    from elm_jax.models import paths
    from elm_jax.training import trainer
    from elm_jax.training.programs import GroupPlan
    from elm_jax.weights import elm, safetensors

    base = elm.load(options.where / BASE)
    every = jobs(options.where, options.steps)
    chosen = [every[number] for number in options.experts]

    def keep(job: TrainingJob, params: Params) -> None:
        own = {path: np.asarray(value) for path, value in paths.flatten(params).items()}
        safetensors.write(options.where / f"{job.id.replace('/', '-')}.safetensors", own, {})

    trainer.train(base.config, jax.device_put(base.params), chosen, GroupPlan(max_experts=len(chosen)), keep)


def real_rows(data: Path, templates: Path | None, count: int) -> dict[str, tuple[RaggedTokens, RaggedTokens]]:
    """Returns so many prompts and targets of every task, with a vocabulary trained on them."""
    where = templates or data / "promptsource" / "templates"
    source = Source(data_dir=data, templates_dir=where, limit=count)
    found = {task: rendering.examples(task, split, source=source).examples for task, split in TASKS.items()}
    texts = [text for own in found.values() for each in own for text in (each.input, each.target)]
    with tempfile.TemporaryDirectory() as place:
        tokenizer = sentencepiece.train(texts, Path(place) / "m.model", PIECES, kind="unigram", extra_ids=0)

        def tokens(texts: Sequence[str], most: int) -> RaggedTokens:
            return ragged.pack_tokens(
                [*row[: most - 1], tokenizer.eos] for row in tokenizer.encode_all(texts)
            )

        return {
            task: (
                tokens([each.input for each in own], MOST_PROMPT),
                tokens([each.target for each in own], MOST_ANSWER),
            )
            for task, own in found.items()
        }


def write(where: Path, config: T5Config, params: Params, rows: dict[str, Any]) -> None:
    """Writes what a process of its own reads."""
    from elm_jax.weights import base_model, elm

    elm.save(where / BASE, base_model.make_base(config, params))
    laid = {
        f"{task}|{name}|{part}": getattr(tokens, part)
        for task, own in rows.items()
        for name, tokens in zip(("prompts", "targets"), own, strict=True)
        for part in ("tokens", "offsets")
    }
    np.savez(where / ROWS, **laid)


def jobs(where: Path, steps: int) -> list[TrainingJob]:
    """Returns one job a task of the rows that were written."""
    config = replace_fields(TrainConfig(), {"steps": steps, "rate": RATE, "batch_size": BATCH})
    with np.load(where / ROWS) as laid:

        def tokens(task: str, name: str) -> RaggedTokens:
            return RaggedTokens(laid[f"{task}|{name}|tokens"], laid[f"{task}|{name}|offsets"])

        return [TrainingJob(task, tokens(task, "prompts"), tokens(task, "targets"), config) for task in TASKS]


if __name__ == "__main__":
    main()
