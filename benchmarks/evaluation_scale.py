"""What an evaluation costs beside its scoring: many tasks, methods and experts, all of them made up.

Run     python -m benchmarks.evaluation_scale [--tasks 113] [--rows 30] [--experts 296] [--json FILE]
Takes   about two minutes at these sizes on a core of its own
Expect  less than 40 CPU seconds for the evaluation, and 3 for printing it again when it is finished

The base has one narrow layer, so that scoring is a small part; the experts are LoRA of random numbers, with
100 keys each of made-up words, embedded by the base. A second is one of the processor, of all threads.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elm_jax.data import task_rows, task_selection
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers, paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec, Keys
from elm_jax.routing.index import TEXT_FORMAT, embed_keys, load_embedder_settings, load_run_embedder
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Run, Workspace
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

METHODS = (
    "base",
    "uniform",
    "roe",
    "roe:experts=3",
    "bm25",
    "bm25:experts=3",
    "centroid",
    "mbc",
    "fixed:expert=made_up_0/one",
)
KEYS = 100  # of an expert
WORDS = [f"{first}{second}{third}" for first in "bdfgkl" for second in "aeiou" for third in "mnrst"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=113)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--experts", type=int, default=296)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        names = define_tasks(Path(scratch), options.tasks, options.rows)
        run = make_run(Path(scratch) / "run", Path(scratch) / "tasks.yaml", names)
        add_experts(run, options.experts)
        config = EvaluationConfig(methods=list(METHODS))
        told: dict[str, Any] = {"tasks": options.tasks, "rows": options.rows, "experts": options.experts}
        for name in ("evaluation", "finished evaluation"):
            began = time.process_time()
            outcome = evaluate(opening.open_run(run.workspace.root), names, config)
            assert outcome is not None
            told[name] = {"cpu_seconds": round(time.process_time() - began, 1), **outcome.seconds}
            told["macro"] = {mean.method: mean.macro for mean in outcome.report.means}
    print(json.dumps(told, indent=2))
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")


def text(rng: np.random.Generator, words: int = 12) -> str:
    """Returns made-up words."""
    return " ".join(rng.choice(WORDS, words))


def define_tasks(where: Path, tasks: int, rows: int) -> list[str]:
    """Writes a file of tasks and their rows; returns their datasets."""
    rng = np.random.default_rng(0)
    datasets = {}
    for number in range(tasks):
        lines = [{"text": text(rng), "label": int(rng.integers(2))} for _ in range(rows)]
        (where / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        prompt = {"jinja": "{{text}} ||| {{answer_choices[label]}}", "answer_choices": "bam ||| ban"}
        datasets[f"unseen_{number}"] = {"jsonl": {"train": f"{number}.jsonl"}, "prompts": {"one": prompt}}
    (where / "tasks.yaml").write_text(json.dumps({"datasets": datasets}))
    return list(datasets)


def make_run(where: Path, tasks: Path, names: list[str]) -> Run:
    """Makes a run with an untrained base of one layer."""
    workspace = Workspace.open(where, create=True)
    source = Source(tasks=[str(tasks)])
    specs = task_selection.select_tasks(names[:1], source)
    texts = [" ".join(WORDS), *(each.input for each in task_rows.load_examples(specs[0], source))]
    file = workspace.base / opening.VOCABULARY_FILE
    tokenizer = sentencepiece.train(texts, file, 200, kind="word", extra_ids=opening.EXTRA_IDS)
    config = find_config(
        "tiny",
        vocab_size=tokenizer.size,
        num_encoder_layers=1,
        num_decoder_layers=1,
        emb_dim=64,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
    )
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    elm.save(workspace.base, base_model.make_base(config, params))
    settings.save_run_settings(workspace, None, source, Lengths(prompt=32, answer=5))
    return opening.open_run(workspace.root)


def add_experts(run: Run, count: int) -> None:
    """Adds experts of random numbers with keys of made-up words."""
    rng = np.random.default_rng(1)
    library = Library.open(run.workspace.library, create=True)
    embedder = load_run_embedder(run, load_embedder_settings(run.workspace))
    texts = [text(rng) for _ in range(count * KEYS)]
    embedded = embed_keys(embedder, texts, TEXT_FORMAT)
    shapes = jax.tree.map(
        np.asarray, expert_layers.init_expert("lora", jax.random.key(0), run.base.params, {"rank": 2})
    )
    for number in range(count):
        tree = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
        name, own = f"made_up_{number}/one", slice(number * KEYS, (number + 1) * KEYS)
        spec = ExpertSpec(
            name, "lora", run.base.fingerprint, tuple(paths.flatten(tree)), (f"made_up_{number}",), 1
        )
        vectors = np.asarray(embedded.vectors)[own]
        keys = Keys(vectors, embedded.texts[own], embedded.embedder, embedded.text_format)
        library.add(Expert(spec, tree), keys)


if __name__ == "__main__":
    main()
