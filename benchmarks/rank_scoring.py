"""How fast answer choices are ranked, beside PyTorch as T0's script does it, tuned PyTorch, and lm-eval.

Run     python -m benchmarks.rank_scoring [--json FILE] [--rows 12] [--many 24] [--sides t0_way tuned lm_eval]
        wants torch and transformers (the parity extra), and for that side lm-eval and accelerate
Takes   about four minutes on two cores
Expect  5.83 times T0's way over the mix (goal 6, missed) and 5.11 on rows of four and more choices (goal 10,
        missed), 2.32 times the tuned one (goal 3, missed) and 2.90 times lm-eval (goal 3, missed); 53 % of
        the machine's measured rate of float32 products (goal 50 %, met)

All sides score the same rows with the same random weights of T5 1.1 small's shape, in float32 and steady
state: ours has scored all rows before it is timed, PyTorch some. Rows are real: Story Cloze, DREAM and
BIG-bench's, with a vocabulary trained on them; those of four and more choices are of BIG-bench's tasks, up to
`--many` of each. Sides take turns, and a ratio is the median of the rounds' own ratios.

T0's way repeats the prompt for each choice and takes eight rows at once in file order (`ratios.t0_way`).
Tuned sorts (prompt, choice) pairs by length and takes that one of three batch sizes which is best on a fifth
of the rows (`ratios.tuned`). lm-eval's is its `hf` model, sixteen pairs at once, by its `loglikelihood`.
`flops_share` counts the products of real tokens alone, against the rate that JAX reaches on large matrices in
the same round: the parameters of encoder and decoder twice for every token that goes through them, attention,
and the output layer for every distinct beginning of an answer.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.models.sizes import T5Config, find_config
from elm_jax.models.t5 import init_params
from elm_jax.scoring import buckets, scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.scoring.tries import Tokens
from elm_jax.tasks import rendering, specs
from elm_jax.tasks.data_source import Source
from elm_jax.tokenizers import sentencepiece

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
MANY = {
    "conceptual_combinations/zero_shot": None,
    "code_line_description/zero_shot": None,
    "hindu_knowledge/zero_shot": None,
    "logical_deduction/zero_shot": None,
    "logic_grid_puzzle/zero_shot": None,
}
MOST_PROMPT, MOST_ANSWER = 512, 128
SIDES = ("t0_way", "tuned", "lm_eval")
Side = Callable[[Sequence[PromptWithChoices]], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--rows", type=int, default=12, help="of each task of the mix")
    parser.add_argument("--many", type=int, default=24, help="of each task with many choices")
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES, help="what to compare with")
    parser.add_argument("--data", type=Path, default=SHARED, help="directory of datasets")
    parser.add_argument("--templates", type=Path, default=None, help="PromptSource's")
    parser.add_argument("--rounds", type=int, default=1, help="how often all sides are timed")
    parser.add_argument("--size", default="small", help="T5 1.1's size")
    options = parser.parse_args()

    config = find_config(options.size, dropout_rate=0.0)
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    mix, more = real_rows(options.data, options.templates, {"mix": options.rows, "many": options.many})
    workloads = {"mix": mix, "many_choices": [row for row in more if len(row.answers) >= 4]}

    # Shapes as for many experts, since in steady state compilations cost nothing.
    every = [row for rows in workloads.values() for row in rows]
    steady: dict[str, Any] = {"shapes": scorer.choose_shapes_for(params, every, experts=32), "worth": 0.0}
    on_device = jax.device_put(params)
    sides: dict[str, Side] = {"ours": lambda rows: scorer.score_rows(config, on_device, rows, **steady)}
    tuned_batch = None
    torch_model = pytorch(config, params) if options.sides else None
    if "t0_way" in options.sides:
        sides["t0_way"] = lambda rows: t0_way(torch_model, rows)
    if "tuned" in options.sides:
        some = mix[::5]
        speed = {size: timed(lambda size=size: tuned(torch_model, some, size))[0] for size in (16, 8, 16, 32)}
        tuned_batch = min(speed, key=lambda size: speed[size])
        sides["tuned"] = lambda rows: tuned(torch_model, rows, tuned_batch)
    if "lm_eval" in options.sides and (harness := lm_eval(torch_model, config.vocab_size)) is not None:
        sides["lm_eval"] = harness

    truth = {workload: sides["ours"](rows) for workload, rows in workloads.items()}
    for name in [*sides][1:]:
        sides[name](mix[::20])
    asked = [(name, "mix") for name in sides] + [(name, "many_choices") for name in ("ours", "t0_way")]
    asked = [(name, workload) for name, workload in asked if name in sides]
    seconds: dict[tuple[str, str], list[float]] = {each: [] for each in asked}
    rate = []
    for _ in range(options.rounds):
        rate.append(matmul_rate())
        for name, workload in asked:
            took, found = timed(lambda name=name, workload=workload: sides[name](workloads[workload]))
            seconds[name, workload].append(took)
            agree(f"{name}, {workload}", truth[workload], found)

    def ratio_of(name: str, workload: str) -> float:
        return ratio(seconds[name, workload], seconds["ours", workload])

    ratios = {name: ratio_of(name, "mix") for name in sides if name != "ours"}
    if "t0_way" in sides:
        ratios["t0_way_many_choices"] = ratio_of("t0_way", "many_choices")
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "tuned_batch": tuned_batch}
    for workload, rows in workloads.items():
        own, flops = seconds["ours", workload], real_flops(config, params, rows)
        result[workload] = {
            "rows": len(rows),
            "choices": sum(len(row.answers) for row in rows),
            "real_share": real_share(rows, steady["shapes"]),
            "seconds": {name: min(times) for (name, on), times in seconds.items() if on == workload},
            "scoring_gflops": statistics.median(flops / each for each in own) / 1e9,
            "flops_share": statistics.median(
                flops / each / most for each, most in zip(own, rate, strict=True)
            ),
        }
    result |= {
        "shapes": len(steady["shapes"]),
        "ratios": ratios,
        "matmul_gflops": statistics.median(rate) / 1e9,
        "flops_share": result["mix"]["flops_share"],
    }
    for name, value in result.items():
        print(f"{name:16} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def agree(name: str, truth: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> None:
    """Fails unless a side's scores are ours, and says how near they are."""
    pairs = list(zip(truth, found, strict=True))
    worst = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    same = sum(int(ours.argmax() == theirs.argmax()) for ours, theirs in pairs)
    print(f"{name:22} agrees within {worst:.1e} nats, {same} of {len(truth)} predictions alike")
    assert worst < 1e-2, name


def real_rows(data: Path, templates: Path | None, counts: Mapping[str, int]) -> list[list[PromptWithChoices]]:
    """Returns the rows of the mix and of the tasks with many choices, with a vocabulary trained on them."""
    where = templates or data / "promptsource" / "templates"
    source, drawn = Source(data_dir=data, templates_dir=where), []
    for tasks, count in ((TASKS, counts["mix"]), (MANY, counts["many"])):
        examples = []
        for task, split in tasks.items():
            spec = specs.find_task(task)
            found = rendering.examples(spec, split, source=source).examples
            chosen = np.random.default_rng(0).permutation(len(found))[:count]
            examples += [found[number] for number in sorted(chosen.tolist())]
        drawn.append(examples)
    texts = [text for own in drawn for example in own for text in (example.input, *example.choices)]
    with tempfile.TemporaryDirectory() as place:
        tokenizer = sentencepiece.train(texts, Path(place) / "m.model", 8000, kind="unigram", extra_ids=0)
        return [
            [
                PromptWithChoices(
                    [*tokenizer.encode(example.input)[: MOST_PROMPT - 1], tokenizer.eos],
                    [
                        [*tokenizer.encode(choice)[: MOST_ANSWER - 1], tokenizer.eos]
                        for choice in example.choices
                    ],
                )
                for example in own
            ]
            for own in drawn
        ]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that work took, and what it gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def matmul_rate() -> float:
    """Returns the operations of float32 products a second that JAX reaches here on large matrices."""
    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * 2048**3 / min(timed(lambda: product(a).block_until_ready())[0] for _ in range(8))


def real_flops(config: T5Config, params: Any, rows: Sequence[PromptWithChoices]) -> float:
    """Returns the operations of products that real tokens need when nothing is computed twice."""

    def count(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    layers = params["decoder"]["layers"]
    cross = layers["encoder_decoder_attention"]
    of_prompt = count(params["encoder"]["layers"]) + count(cross["key"]) + count(cross["value"])
    of_node = count(layers) - count(cross["key"]) - count(cross["value"]) + config.vocab_size * config.emb_dim
    width, total = config.num_heads * config.head_dim, 0.0
    for item in buckets.group_by_prompt(rows):
        length, nodes = len(item.prompt), len(item.trie.tokens)
        attention = (
            2
            * width
            * (
                config.num_encoder_layers * length**2
                + config.num_decoder_layers * (nodes * length + int(item.trie.ancestor_mask.sum()))
            )
        )
        total += 2 * (of_prompt * length + of_node * nodes + attention)
    return total


def real_share(rows: Sequence[PromptWithChoices], shapes: Sequence[buckets.BucketShape]) -> float:
    """Returns how much of the tokens that are computed, of prompts and tries, is not padding."""
    found = buckets.group_by_prompt(rows)
    padded = sum(shape.prompt + shape.nodes for shape in (buckets.find_shape(item, shapes) for item in found))
    return sum(len(item.prompt) + len(item.trie.tokens) for item in found) / padded


def pytorch(config: T5Config, params: Any) -> Any:
    """Returns transformers' T5 with the same weights."""
    import transformers

    from elm_jax.weights import base_model, huggingface

    with tempfile.TemporaryDirectory() as place:
        huggingface.save(Path(place) / "model", base_model.make_base(config, params))
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


def t0_way(model: Any, rows: Sequence[PromptWithChoices]) -> list[np.ndarray]:
    """Eight rows at once in file order, the prompt repeated for each choice."""
    found = []
    for start in range(0, len(rows), 8):
        chosen = rows[start : start + 8]
        flat = pairs_scores(model, [(row.prompt, answer) for row in chosen for answer in row.answers])
        found += np.split(flat, np.cumsum([len(row.answers) for row in chosen])[:-1])
    return found


def tuned(model: Any, rows: Sequence[PromptWithChoices], batch: int) -> list[np.ndarray]:
    """Pairs sorted by length, so many at once."""
    pairs = [(row.prompt, answer) for row in rows for answer in row.answers]
    order = sorted(range(len(pairs)), key=lambda at: (len(pairs[at][0]), len(pairs[at][1])))
    scores = np.zeros(len(pairs), np.float32)
    for start in range(0, len(order), batch):
        at = order[start : start + batch]
        scores[at] = pairs_scores(model, [pairs[number] for number in at])
    return np.split(scores, np.cumsum([len(row.answers) for row in rows])[:-1])


def lm_eval(model: Any, vocabulary_size: int) -> Side | None:
    """Returns lm-eval's own `hf` model over the same network; None where lm-eval is not installed.

    It asks for texts: here a word for every token id, which its tokenizer reads back.
    """
    try:
        instance: Any = importlib.import_module("lm_eval.api.instance").Instance
        model_class: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    except ImportError as error:
        print(f"lm_eval is left out: {error}")
        return None
    import tokenizers
    import transformers

    words = {_word(token): token for token in range(vocabulary_size)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=_word(2)))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    named = {"eos_token": _word(1), "pad_token": _word(0), "unk_token": _word(2)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    model.tie_weights = lambda *arguments, **options: None  # lm-eval would, and so lose the output layer
    how = {"backend": "seq2seq", "batch_size": 16, "max_length": MOST_PROMPT}
    harness = model_class(pretrained=model, tokenizer=tokenizer, **how)

    def told(tokens: Tokens) -> str:
        return " ".join(map(_word, tokens))

    def score(rows: Sequence[PromptWithChoices]) -> list[np.ndarray]:
        pairs = [(told(row.prompt), f" {told(answer)}") for row in rows for answer in row.answers]
        asked = [instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
        scores = np.array([score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)], np.float32)
        return np.split(scores, np.cumsum([len(row.answers) for row in rows])[:-1])

    return score


def _word(token: int) -> str:
    return f"t{token:06}"  # all of a length, or the end would be found within other words


if __name__ == "__main__":
    main()
