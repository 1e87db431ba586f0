"""How fast answer choices are ranked, beside PyTorch as T0's script does it, tuned PyTorch, and lm-eval.

Run     python -m benchmarks.rank_scoring [--json FILE] [--rows 20] [--data DIR] [--templates DIR]
        wants torch and transformers (the parity extra); lm_eval too, else that side is left out
Takes   about six minutes on two cores
Expect  six times T0's way over the mix, ten times on rows of four and more choices, three times the tuned
        one and lm-eval; half of the machine's measured rate of float32 products

All sides score the same rows with the same random weights of T5 1.1 small's shape, in float32 and steady
state: every side scores all rows once before it is timed. Rows are real: Story Cloze, DREAM and BIG-bench's,
with a vocabulary trained on them. Sides take turns, and a ratio is the median of the rounds' own ratios.

T0's way repeats the prompt for each choice and takes eight rows at once in file order (`ratios.t0_way`).
Tuned sorts (prompt, choice) pairs by length and takes the best of three batch sizes (`ratios.tuned`).
`flops_share` counts the products of real tokens alone, against the rate that JAX reaches on large matrices in
the same round: the parameters of encoder and decoder twice for every token that goes through them, attention,
and the output layer for every distinct beginning of an answer.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.engine import evaluate
from elm_jax.models.sizes import T5Config, size
from elm_jax.models.t5 import init_params
from elm_jax.scoring import buckets
from elm_jax.scoring.buckets import Row
from elm_jax.scoring.tries import Tokens
from elm_jax.tasks import specs, vocabulary

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
TASKS = {
    "story_cloze/Choose Story Ending": "validation",
    "dream/baseline": "test",
    "dream/read_the_following_conversation_and_answer_the_question": "test",
    "hindu_knowledge/zero_shot": None,
    "logical_deduction/zero_shot": None,
    "known_unknowns/zero_shot": None,
    "winowhy/zero_shot": None,
    "strategyqa/zero_shot": None,
}
MOST_PROMPT, MOST_ANSWER = 512, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--rows", type=int, default=20, help="of each task")
    parser.add_argument("--data", type=Path, default=SHARED, help="directory of datasets")
    parser.add_argument("--templates", type=Path, default=None, help="PromptSource's")
    parser.add_argument("--rounds", type=int, default=2, help="how often all sides are timed")
    parser.add_argument("--size", default="small", help="T5 1.1's size")
    options = parser.parse_args()

    config = size(options.size, dropout_rate=0.0)
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    rows = real_rows(options.data, options.templates, options.rows)
    many = [row for row in rows if len(row.answers) >= 4]

    sides: dict[str, Callable[[Sequence[Row]], list[np.ndarray]]] = {}
    # Shapes as for many experts, since in steady state compilations cost nothing.
    steady = {"shapes": evaluate.shapes_for(params, rows, experts=32), "worth": 0.0}
    sides["ours"] = lambda rows: evaluate.score_rows(config, params, rows, **steady)
    shapes = steady["shapes"]
    torch_model = pytorch(config, params)
    for batch in (8, 16, 32):
        sides[f"tuned {batch}"] = lambda rows, batch=batch: tuned(torch_model, rows, batch)
    sides["t0_way"] = lambda rows: t0_way(torch_model, rows)
    if (harness := lm_eval(torch_model)) is not None:
        sides["lm_eval"] = harness

    truth = sides["ours"](rows)
    sides["ours"](many)
    for name in [*sides][1:]:  # also what warms each of them up
        found = sides[name](rows)
        worst = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(truth, found, strict=True))
        same = sum(int(ours.argmax() == theirs.argmax()) for ours, theirs in zip(truth, found, strict=True))
        print(f"{name:10} agrees within {worst:.1e} nats, {same} of {len(rows)} predictions alike")
        assert worst < 1e-2, name
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    on_many: dict[str, list[float]] = {name: [] for name in ("ours", "t0_way")}
    rate = []
    for _ in range(options.rounds):
        rate.append(matmul_rate())
        for name, side in sides.items():
            seconds[name].append(timed(lambda side=side: side(rows)))
        for name in on_many:
            on_many[name].append(timed(lambda name=name: sides[name](many)))
    best = min((name for name in sides if name.startswith("tuned")), key=lambda name: min(seconds[name]))
    ratios = {
        "t0_way": ratio(seconds["t0_way"], seconds["ours"]),
        "t0_way_many_choices": ratio(on_many["t0_way"], on_many["ours"]),
        "tuned": ratio(seconds[best], seconds["ours"]),
    }
    if "lm_eval" in seconds:
        ratios["lm_eval"] = ratio(seconds["lm_eval"], seconds["ours"])
    flops = real_flops(config, params, rows)
    share = [flops / own / product for own, product in zip(seconds["ours"], rate, strict=True)]
    result = {
        "device": jax.devices()[0].device_kind,
        "rows": len(rows),
        "choices": sum(len(row.answers) for row in rows),
        "rows_of_four_and_more": len(many),
        "real_share": real_share(rows, shapes),
        "shapes": len(shapes),
        "seconds": {name: min(times) for name, times in seconds.items()},
        "tuned_best": best,
        "ratios": ratios,
        "matmul_gflops": statistics.median(rate) / 1e9,
        "scoring_gflops": statistics.median(flops / own for own in seconds["ours"]) / 1e9,
        "flops_share": statistics.median(share),
    }
    for name, value in result.items():
        print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def real_rows(data: Path, templates: Path | None, count: int) -> list[Row]:
    """Returns rows of real tasks, tokenised with a vocabulary trained on them."""
    examples = []
    for task, split in TASKS.items():
        spec = specs.find_task(task)
        where = templates or data / "promptsource" / "templates"
        found = specs.examples(spec, split or spec.split, data_dir=data, templates_dir=where).examples
        drawn = np.random.default_rng(0).permutation(len(found))[:count]
        examples += [found[number] for number in sorted(drawn.tolist())]
    texts = [text for example in examples for text in (example.input, *example.choices)]
    with tempfile.TemporaryDirectory() as place:
        pieces = vocabulary.train(texts, Path(place) / "m.model", 8000, kind="unigram", extra_ids=0)
        return [
            Row(
                [*pieces.encode(example.input)[: MOST_PROMPT - 1], pieces.eos],
                [[*pieces.encode(choice)[: MOST_ANSWER - 1], pieces.eos] for choice in example.choices],
            )
            for example in examples
        ]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def matmul_rate() -> float:
    """Returns the operations of float32 products a second that JAX reaches here on large matrices."""
    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * 2048**3 / min(timed(lambda: product(a).block_until_ready()) for _ in range(8))


def real_flops(config: T5Config, params: Any, rows: Sequence[Row]) -> float:
    """Returns the operations of products that real tokens need when nothing is computed twice."""

    def count(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    layers = params["decoder"]["layers"]
    cross = layers["encoder_decoder_attention"]
    of_prompt = count(params["encoder"]["layers"]) + count(cross["key"]) + count(cross["value"])
    of_node = count(layers) - count(cross["key"]) - count(cross["value"]) + config.vocab_size * config.emb_dim
    width, total = config.num_heads * config.head_dim, 0.0
    for item in buckets.items(rows):
        length, nodes = len(item.prompt), len(item.trie.tokens)
        attention = (
            2
            * width
            * (
                config.num_encoder_layers * length**2
                + config.num_decoder_layers * (nodes * length + int(item.trie.sees.sum()))
            )
        )
        total += 2 * (of_prompt * length + of_node * nodes + attention)
    return total


def real_share(rows: Sequence[Row], shapes: Sequence[buckets.Shape]) -> float:
    """Returns how much of the tokens that are computed, of prompts and tries, is not padding."""
    found = buckets.items(rows)
    padded = sum(shape.prompt + shape.nodes for shape in (buckets.shape_of(item, shapes) for item in found))
    return sum(len(item.prompt) + len(item.trie.tokens) for item in found) / padded


def pytorch(config: T5Config, params: Any) -> Any:
    """Returns transformers' T5 with the same weights."""
    import transformers

    from elm_jax.weights import base, huggingface

    with tempfile.TemporaryDirectory() as place:
        huggingface.save(Path(place) / "model", base.of(config, params))
        return transformers.T5ForConditionalGeneration.from_pretrained(Path(place) / "model").eval()


def pairs_scores(model: Any, pairs: Sequence[tuple[Tokens, Tokens]]) -> np.ndarray:
    """Returns the summed log-probability of every (prompt, answer), a batch of them at once."""
    import torch

    def padded(lists: Sequence[Tokens]) -> Any:
        longest = max(map(len, lists))
        return torch.tensor([[*each, *[0] * (longest - len(each))] for each in lists])

    prompts, answers = padded([prompt for prompt, _ in pairs]), padded([answer for _, answer in pairs])
    with torch.inference_mode():
        shifted = torch.nn.functional.pad(answers[:, :-1], (1, 0))
        logits = model(input_ids=prompts, attention_mask=prompts != 0, decoder_input_ids=shifted).logits
        logp = torch.log_softmax(logits, dim=-1).gather(2, answers[..., None])[..., 0]
        return (logp * (answers != 0)).sum(dim=1).numpy()


def t0_way(model: Any, rows: Sequence[Row]) -> list[np.ndarray]:
    """Eight rows at once in file order, the prompt repeated for each choice."""
    found = []
    for start in range(0, len(rows), 8):
        chosen = rows[start : start + 8]
        flat = pairs_scores(model, [(row.prompt, answer) for row in chosen for answer in row.answers])
        found += np.split(flat, np.cumsum([len(row.answers) for row in chosen])[:-1])
    return found


def tuned(model: Any, rows: Sequence[Row], batch: int) -> list[np.ndarray]:
    """Pairs sorted by length, so many at once."""
    pairs = [(row.prompt, answer) for row in rows for answer in row.answers]
    order = sorted(range(len(pairs)), key=lambda at: (len(pairs[at][0]), len(pairs[at][1])))
    scores = np.zeros(len(pairs), np.float32)
    for start in range(0, len(order), batch):
        at = order[start : start + batch]
        scores[at] = pairs_scores(model, [pairs[number] for number in at])
    return np.split(scores, np.cumsum([len(row.answers) for row in rows])[:-1])


def lm_eval(model: Any) -> Callable[[Sequence[Row]], list[np.ndarray]] | None:
    """Returns lm-eval's own `hf` model over the same network; None where lm-eval is not installed."""
    try:
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="</s>"))
    named = {"eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    how = {"backend": "seq2seq", "batch_size": 16, "max_length": MOST_PROMPT}
    harness = HFLM(pretrained=model, tokenizer=tokenizer, **how)

    def score(rows: Sequence[Row]) -> list[np.ndarray]:
        pairs = [(row.prompt, answer) for row in rows for answer in row.answers]
        asked = [((str(at), ""), list(prompt), list(answer)) for at, (prompt, answer) in enumerate(pairs)]
        told = harness._loglikelihood_tokens(asked, disable_tqdm=True)
        scores = np.array([score for score, _ in told], np.float32)
        return np.split(scores, np.cumsum([len(row.answers) for row in rows])[:-1])

    return score


if __name__ == "__main__":
    main()
