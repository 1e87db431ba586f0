"""How many tokens a second are written, greedily and with a cache, beside transformers' `generate`.

Run     python -m benchmarks.generation [--json FILE] [--rows 16] [--prompt 48] [--length 32] [--batch 16]
        wants torch and transformers (the parity extra)
Takes   half a minute on two cores, a minute where others use them too
Expect  as many as transformers writes with a single network, and the same tokens

Both sides write to the same prompts with the same random weights of T5 1.1 small's shape, in float32 and
steady state. Prompts are random tokens, their lengths spread evenly between a quarter of `--prompt` and all
of it; both sides take them sorted by length, so many at once. Sides take turns. `ratios.transformers` is the
median of the rounds' own ratios, `ratios.transformers_best` that of each side's best round: PyTorch's threads
wait for one another, so on a machine that others use too the first flatters us, and the second is the surer.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.rank_scoring import pytorch
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.scoring import generator

EOS = 1
Prompts = Sequence[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=48, help="tokens of the longest prompt")
    parser.add_argument("--length", type=int, default=32, help="tokens of an answer at most")
    parser.add_argument("--batch", type=int, default=16, help="rows at once, on either side")
    parser.add_argument("--rounds", type=int, default=5, help="how often all sides are timed")
    parser.add_argument("--size", default="small", help="the T5's shape")
    options = parser.parse_args()

    config = find_config(options.size, dropout_rate=0.0)
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.prompt // 4, options.prompt + 1, options.rows)
    prompts = [rng.integers(3, config.vocab_size, length).astype(np.int32) for length in lengths]
    model = pytorch(config, params)
    on_device = jax.device_put(params)
    most = options.batch * (options.prompt + options.length)

    def ours(prompts: Prompts) -> list[np.ndarray]:
        return generator.generate_rows(
            config, on_device, prompts, generator.AnswerLimit(options.length, EOS), batch_tokens=most
        )

    def tuned(prompts: Prompts) -> list[np.ndarray]:
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        found = theirs(model, [prompts[at] for at in order], options.batch, options.length)
        back = np.argsort(order)
        return [found[at] for at in back]

    sides: dict[str, Callable[[Prompts], list[np.ndarray]]] = {"ours": ours, "transformers": tuned}
    truth, found = ours(prompts), tuned(prompts)  # also what warms them up
    written = sum(map(np.count_nonzero, truth))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side(prompts)
            seconds[name].append(time.perf_counter() - start)
    result = {
        "device": jax.devices()[0].device_kind,
        **{name: getattr(options, name) for name in ("size", "rows", "prompt", "length", "batch", "rounds")},
        "tokens": int(written),
        "same_answers": sum(map(np.array_equal, truth, found)),
        "tokens_per_second": {name: int(written) / min(times) for name, times in seconds.items()},
        "seconds": {name: [round(each, 3) for each in times] for name, times in seconds.items()},
        "ratios": {
            "transformers": ratio(seconds["transformers"], seconds["ours"]),
            "transformers_best": min(seconds["transformers"]) / min(seconds["ours"]),
        },
    }
    for name, value in result.items():
        print(f"{name:20} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def theirs(model: Any, prompts: Prompts, batch: int, length: int) -> list[np.ndarray]:
    """Returns what transformers writes greedily, the token that starts every answer left out."""
    import torch

    answers = []
    for start in range(0, len(prompts), batch):
        chosen = prompts[start : start + batch]
        longest = max(map(len, chosen))
        rows = [np.pad(each, (0, longest - len(each))) for each in chosen]
        padded = torch.tensor(np.stack(rows), dtype=torch.long)
        with torch.inference_mode():
            found = model.generate(
                input_ids=padded,
                attention_mask=(padded != 0).long(),
                max_new_tokens=length,
                do_sample=False,
                num_beams=1,
                eos_token_id=EOS,
                pad_token_id=0,
                decoder_start_token_id=0,
            )[:, 1:].numpy()
        answers += list(np.pad(found, ((0, 0), (0, length - found.shape[1]))))
    return answers


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
