"""The embedded suite: eighteen tiny datasets in six families of skill, made by code from a seed.

It shows the method at work from end to end in two minutes on a CPU: a base trained from scratch on
`make_statements`, one expert per (training dataset, prompt), and unseen datasets whose wording is new but
whose skill some expert has. Its wordings were chosen while watching experts transfer to the unseen tasks, so
that so small a model can learn it: an accuracy here shows that the code works, not how good the method is,
and says nothing about the paper's numbers, whose tasks and models are others.

Every prompt puts the subject of its fact in quotation marks, by which a tiny model finds it.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.prompting.template_files import load_templates
from elm_jax.records import TaskSpec
from elm_jax.tasks import mini_words as words

PROMPTS_DIR = Path(__file__).parent / "mini_prompts"
"""Holds `<dataset>/templates.yaml`, in PromptSource's format, for every dataset of the suite."""

# Both are multiples of 2, 3 and 4, so that the right choice is in every position equally often.
SPLITS = {"train": 288, "validation": 96}


@dataclass(frozen=True)
class MiniDataset:
    """How the rows of one dataset are made: its facts, each with several values of the other columns.

    Attributes:
        name: Name of the dataset.
        family: The skill that it needs.
        unseen: Whether it is for evaluation only.
        subject: Column of a fact's subject.
        facts: The facts.
        carriers: Columns without information, and their words.
        choices: Choices of a row.
        answers: The choices, if they are the same in every row; the prompts then name them.
    """

    name: str
    family: str
    unseen: bool
    subject: str
    facts: words.Facts
    carriers: tuple[tuple[str, tuple[str, ...]], ...]
    choices: int
    answers: tuple[str, ...] = ()


_NAME = ("name", words.NAMES)
_OPINIONS = ("good", "bad")
_SIZES = ("bigger", "smaller")
_OUTING = (_NAME, ("activity", words.ACTIVITIES))

DATASETS: dict[str, MiniDataset] = {
    dataset.name: dataset
    for dataset in (
        MiniDataset("mini_taxonomy_kind", "taxonomy", False, "thing", words.WORD_CATEGORIES, (_NAME,), 3),
        MiniDataset("mini_taxonomy_group", "taxonomy", False, "thing", words.WORD_CATEGORIES, (_NAME,), 2),
        MiniDataset("mini_taxonomy_label", "taxonomy", True, "thing", words.WORD_CATEGORIES, (_NAME,), 4),
        MiniDataset("mini_opposite_word", "opposites", False, "word", words.OPPOSITE_OF, (_NAME,), 3),
        MiniDataset(
            "mini_opposite_turn", "opposites", False, "word", words.OPPOSITE_OF, (("noun", words.NOUNS),), 2
        ),
        MiniDataset("mini_opposite_swap", "opposites", True, "word", words.OPPOSITE_OF, (_NAME,), 4),
        MiniDataset(
            "mini_sentiment_film",
            "sentiment",
            False,
            "words",
            words.OPINION_OF_PAIR,
            (("part", words.FILM_PARTS),),
            2,
            _OPINIONS,
        ),
        MiniDataset(
            "mini_sentiment_meal",
            "sentiment",
            False,
            "words",
            words.OPINION_OF_PAIR,
            (("part", words.MEAL_PARTS),),
            2,
            _OPINIONS,
        ),
        MiniDataset(
            "mini_sentiment_hotel",
            "sentiment",
            True,
            "words",
            words.OPINION_OF_PAIR,
            (("part", words.HOTEL_PARTS),),
            2,
            _OPINIONS,
        ),
        MiniDataset(
            "mini_size_animal", "comparison", False, "thing", words.SIZES_OF_ANIMALS, (_NAME,), 2, _SIZES
        ),
        MiniDataset(
            "mini_size_thing", "comparison", False, "thing", words.SIZES_OF_THINGS, (_NAME,), 2, _SIZES
        ),
        MiniDataset(
            "mini_size_suitcase",
            "comparison",
            True,
            "thing",
            words.SIZES_OF_ANIMALS + words.SIZES_OF_THINGS,
            (_NAME,),
            2,
            _SIZES,
        ),
        MiniDataset("mini_calendar_day", "calendar", False, "day", words.DAY_AFTER, _OUTING, 3),
        MiniDataset("mini_calendar_month", "calendar", False, "month", words.MONTH_AFTER, _OUTING, 3),
        MiniDataset(
            "mini_calendar_next", "calendar", True, "time", words.DAY_AFTER + words.MONTH_AFTER, _OUTING, 4
        ),
        MiniDataset("mini_spelling_first", "spelling", False, "word", words.LETTER_OF, (_NAME,), 3),
        MiniDataset("mini_spelling_list", "spelling", False, "word", words.LETTER_OF, (_NAME,), 2),
        MiniDataset("mini_spelling_page", "spelling", True, "word", words.LETTER_OF, (_NAME,), 4),
    )
}


def task_specs() -> list[TaskSpec]:
    """Returns one task per (dataset, prompt): 24 in group "mini-train" and 12 in "mini-unseen"."""
    return [
        TaskSpec(
            id=names.task_id(dataset.name, prompt),
            dataset=dataset.name,
            prompt=prompt,
            group="mini-unseen" if dataset.unseen else "mini-train",
            split="validation" if dataset.unseen else "train",
            evaluation_split="validation",
            family=dataset.family,
        )
        for dataset in DATASETS.values()
        for prompt in load_templates(PROMPTS_DIR, dataset.name)
    ]


def make_rows(dataset: str, split: str, *, seed: int) -> list[dict[str, Any]]:
    """Returns the rows of a split: `row_id`, the columns, and `label`, the index of the right choice.

    The two splits of a seed share no (fact, carriers) pair. Within a split every fact occurs equally often
    (give or take one), and so does every position of the right choice.

    Raises:
        UserError: If the dataset or the split is unknown.
    """
    made = DATASETS[names.resolve(dataset, DATASETS, kind="dataset", where="the embedded suite")]
    if split not in SPLITS:
        raise UserError(
            f"Expected a split of the embedded suite, {' or '.join(SPLITS)}, got {split!r}. Fix: name one of "
            "them."
        )
    rng = Random(f"{seed}/{dataset}/{split}")
    start = 0 if split == "train" else SPLITS["train"]
    cells = _cells(made, Random(f"{seed}/{dataset}"))[start : start + SPLITS[split]]
    positions = [index % made.choices for index in range(len(cells))]
    rng.shuffle(positions)
    found = [
        {made.subject: subject, **carriers, **_choices(made, subject, answer, position, rng)}
        for (subject, answer, carriers), position in zip(cells, positions, strict=True)
    ]
    rng.shuffle(found)
    return [{"row_id": f"{split}-{index:03d}", **row} for index, row in enumerate(found)]


def make_statements(seed: int) -> list[str]:
    """Returns the plain sentences that teach a base the facts and the words, in an order drawn from the seed.

    They have the facts of unseen tasks, as a language model knows such facts, but not the wording of prompts.
    """
    rng = Random(f"{seed}/statements")
    told = [
        ("kind", words.WORD_CATEGORIES, ""),
        ("opposite", words.OPPOSITE_OF, ""),
        ("opinion", words.OPINION_OF_WORD, ""),
        ("size", words.SIZES_OF_ANIMALS, "dog"),
        ("size", words.SIZES_OF_THINGS, "chair"),
        ("day", words.DAY_AFTER, ""),
        ("month", words.MONTH_AFTER, ""),
        ("letter", words.LETTER_OF, ""),
    ]
    found = [
        _articles(saying.format(s=shown, a=answer, r=reference, n=rng.choice(words.NAMES)))
        for saying_of, facts, reference in told
        for subject, answer in facts
        for saying in words.SAYINGS[saying_of]
        for shown in (subject, f'" {subject} "')
    ]
    found += [
        saying.format(
            n=name,
            m=rng.choice([other for other in words.NAMES if other != name]),
            v=rng.choice(words.ACTIVITIES),
            o=noun,
        )
        for saying in words.EVERYDAY_SENTENCES.strip().splitlines()
        for name, noun in zip(words.NAMES, itertools.cycle(words.NOUNS))
    ]
    found += words.EVERYDAY_PLAIN
    rng.shuffle(found)
    return found


def _cells(made: MiniDataset, rng: Random) -> list[tuple[str, str, dict[str, str]]]:
    """Every fact in every setting, round after round over the facts, in an order drawn from `rng`."""
    columns = [column for column, _ in made.carriers]
    settings = list(itertools.product(*(values for _, values in made.carriers)))
    by_answer: dict[str, list[tuple[str, str]]] = {}
    for fact in rng.sample(made.facts, len(made.facts)):
        by_answer.setdefault(fact[1], []).append(fact)
    # One answer after another, so that a part of a round is balanced too.
    facts = [fact for some in itertools.zip_longest(*by_answer.values()) for fact in some if fact is not None]
    order = [rng.sample(settings, len(settings)) for _ in facts]
    return [
        (subject, answer, dict(zip(columns, shuffled[turn], strict=True)))
        for turn in range(len(settings))
        for (subject, answer), shuffled in zip(facts, order, strict=True)
    ]


def _choices(made: MiniDataset, subject: str, answer: str, position: int, rng: Random) -> dict[str, Any]:
    """The columns `choices` and `label`; wrong choices come from the answers the right one is drawn from."""
    if made.answers:
        return {"label": made.answers.index(answer)}
    kin: Sequence[str] = sorted({other for _, other in made.facts})
    kin = next((cycle for cycle in (words.DAYS, words.MONTHS) if answer in cycle), kin)
    shown = rng.sample([other for other in kin if other not in (answer, subject)], made.choices - 1)
    shown.insert(position, answer)
    return {"choices": shown, "label": position}


def _articles(text: str) -> str:
    return re.sub(
        r'\ba\(n\) ((" )?[a-z])', lambda found: f"a{'n' * (found[1][-1] in 'aeiou')} {found[1]}", text
    )
