"""How fast templates render, beside a renderer that compiles them at every call, as PromptSource's own does.

Run     python benchmarks/template_rendering.py TEMPLATES [--json FILE] [--seconds 3]
        TEMPLATES is a directory of PromptSource's templates
Takes   about ten seconds on one core
Expect  more than 10,000 renderings a second, some seventy times the other
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

from elm_jax.prompting.syntax import SEPARATOR
from elm_jax.prompting.template_files import load_templates
from elm_jax.prompting.templates import MAX_VALUE_CHARACTERS, Template
from elm_jax.prompting.values import SEPARATOR_PLACEHOLDER

STORY = "The dog ran to the gate because it had heard the car of its owner in the street. "
ROWS: dict[str, dict[str, Any]] = {
    "dream": {
        "id": 0,
        "dialogue_id": "made-up",
        "dialogue": [f"{who}: {STORY}" for who in "MWMWMWMW"],
        "question": "Why did the dog run?",
        "choice": ["It heard a car.", "It was hungry.", "It saw a cat."],
        "answer": "It heard a car.",
    },
    "cosmos_qa": {
        "id": "made-up",
        "context": STORY * 5,
        "question": "Why did the dog run?",
        "answer0": "It heard a car.",
        "answer1": "It was hungry.",
        "answer2": "It saw a cat.",
        "answer3": "None of the above choices .",
        "label": 0,
    },
    "story_cloze/2016": {
        "story_id": "made-up",
        **{f"input_sentence_{n}": STORY for n in range(1, 5)},
        "sentence_quiz1": "The dog barked for joy.",
        "sentence_quiz2": "The dog bought a car.",
        "answer_right_ending": 1,
    },
    "paws/labeled_final": {"id": 1, "sentence1": STORY, "sentence2": STORY, "label": 1},
}


def compile_each_time(template: Template, row: dict[str, Any]) -> tuple[str, ...]:
    """Renders in plain jinja, compiling source and choices anew."""
    environment = jinja2.Environment(loader=jinja2.BaseLoader())
    protected = {
        column: value.replace(SEPARATOR, SEPARATOR_PLACEHOLDER) if isinstance(value, str) else value
        for column, value in row.items()
    }

    def parts(source: str, **more: Any) -> tuple[str, ...]:
        text = environment.from_string(source).render(**protected, **more)
        return tuple(part.replace(SEPARATOR_PLACEHOLDER, SEPARATOR).strip() for part in text.split(SEPARATOR))

    choices = parts(template.answer_choices) if template.answer_choices else None
    cut = template.jinja.replace("}}", f" | string | truncate({MAX_VALUE_CHARACTERS}) }}}}")
    return parts(cut, answer_choices=choices)


def ours(template: Template, row: dict[str, Any]) -> tuple[str, ...]:
    return template.parts(row, row_id="0")


def pairs(directory: Path) -> Iterator[tuple[Template, dict[str, Any]]]:
    for dataset, row in ROWS.items():
        for template in load_templates(directory, dataset).values():
            yield template, row


def renderings_per_second(
    renderer: Callable[[Template, dict[str, Any]], tuple[str, ...]],
    work: list[tuple[Template, dict[str, Any]]],
    seconds: float,
) -> float:
    """Goes through the work again and again; the first round, which may compile, is not counted.

    A second is one of the processor, so that other work on the machine changes little.
    """
    for template, row in work:
        renderer(template, row)
    count, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        for template, row in work:
            renderer(template, row)
        count += len(work)
    return count / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("templates", type=Path, help="a directory of PromptSource's templates")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each renderer is timed")
    options = parser.parse_args()

    work = list(pairs(options.templates))
    for template, row in work:
        assert ours(template, row) == compile_each_time(template, row), template.name
    result = {
        "templates": len(work),
        "compiled_once_per_second": renderings_per_second(ours, work, options.seconds),
        "compiled_each_time_per_second": renderings_per_second(compile_each_time, work, options.seconds),
    }
    result["ratio"] = result["compiled_once_per_second"] / result["compiled_each_time_per_second"]
    for name, value in result.items():
        print(f"{name:32}{value:12,.0f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
