"""How fast prepared rows are read back in a random order, beside rendering and tokenising them again.

Run     python benchmarks/prepared_reading.py [--json FILE] [--rows 50000] [--seconds 3]
Takes   about half a minute on one core
Expect  hundreds of thousands of rows a second as token ids, well over 20,000 as padded batches or with their
        texts, against some ten thousand that are rendered and tokenised
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elm_jax.data import prepared_files, tokenized_rows
from elm_jax.prompting.render import render
from elm_jax.prompting.templates import Template
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers import sentencepiece

STORY = "The dog ran to the gate because it had heard the car of its owner in the street ."
TEMPLATE = Template(
    name="made up",
    id="made-up",
    jinja="{{ story }}\nQuestion: {{ question }}\n{% for choice in choices %}- {{ choice }}\n{% endfor %}"
    "Answer: ||| {{ choices[label] }}",
    answer_choices="{{ choices | join('|||') }}",
)
MAX_INPUT, MAX_TARGET, BATCH = 256, 32, 64


def made_up(rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yields rows of some 150 words with four choices, like a reading test's."""
    rng = np.random.default_rng(seed)
    for number in range(rows):
        words = rng.choice(STORY.split(), 150)
        yield {
            "row_id": str(number),
            "story": " ".join(words),
            "question": " ".join(words[:10]) + "?",
            "choices": [" ".join(words[at : at + 6]) for at in (10, 20, 30, 40)],
            "label": number % 4,
        }


def rate(work: Callable[[np.ndarray], object], rows: int, seconds: float, *, at_once: int) -> float:
    """Goes through permutations of the rows; a second is one of the processor."""
    rng = np.random.default_rng(0)
    count, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        order = rng.permutation(rows)
        for at in range(0, rows, at_once):
            work(order[at : at + at_once])
            count += len(order[at : at + at_once])
            if time.process_time() - start >= seconds:
                break
    return count / elapsed


def imports_tensorflow(file: Path) -> bool:
    """Says whether a fresh process that reads the file has imported TensorFlow."""
    code = (
        "import sys; from elm_jax.data import prepared_files; prepared_files.load(sys.argv[1]).inputs[0]; "
        "print('tensorflow' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, file],
        capture_output=True,
        check=True,
    )
    return told.stdout.strip() == b"True"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--rows", type=int, default=50_000, help="rows in the file")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each way is timed")
    options = parser.parse_args()

    rows = list(made_up(options.rows))
    result: dict[str, float] = {"rows": options.rows}
    with tempfile.TemporaryDirectory() as place:
        texts = [row["story"] for row in rows[:1000]]
        tokenizer = sentencepiece.train(texts, Path(place) / "m.model", 64)
        rendered = render(rows, TEMPLATE).examples
        made = tokenized_rows.tokenize_examples(rendered, tokenizer, Lengths(MAX_INPUT, MAX_TARGET))
        file = Path(place) / "rows.safetensors"
        prepared_files.save(file, made, "f" * 16)
        result["megabytes"] = file.stat().st_size / 1e6

        start = time.perf_counter()
        back = prepared_files.load(file)
        result["opening_milliseconds"] = 1000 * (time.perf_counter() - start)
        examples = tokenized_rows.StoredExamples(back, "f" * 16)
        for at in np.random.default_rng(1).integers(0, options.rows, 100).tolist():
            assert examples[at] == rendered[at]
            assert np.array_equal(back.inputs[at], made.inputs[at])

        def tokens(order: np.ndarray) -> None:
            for at in order.tolist():
                _ = back.inputs[at], back.targets[at]

        def batches(order: np.ndarray) -> None:
            at = order.tolist()
            tokenized_rows.pad([back.inputs[row] for row in at], MAX_INPUT)
            tokenized_rows.pad([back.targets[row] for row in at], MAX_TARGET)

        def with_texts(order: np.ndarray) -> None:
            for at in order.tolist():
                _ = examples[at], back.inputs[at], tokenized_rows.get_choices(back, at)

        def anew(order: np.ndarray) -> None:
            chosen = render([rows[at] for at in order.tolist()], TEMPLATE).examples
            tokenized_rows.tokenize_examples(chosen, tokenizer, Lengths(MAX_INPUT, MAX_TARGET))

        for name, work in {
            "token_ids_per_second": tokens,
            "padded_batches_rows_per_second": batches,
            "texts_and_choices_per_second": with_texts,
            "rendered_and_tokenised_per_second": anew,
        }.items():
            result[name] = rate(work, options.rows, options.seconds, at_once=BATCH)
        result["imports_tensorflow"] = imports_tensorflow(file)
    for name, value in result.items():
        print(f"{name:36}{value:14,.1f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
