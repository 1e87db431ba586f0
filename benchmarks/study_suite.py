"""The tasks of the study: the embedded suite's facts, asked harder and otherwise than its own tasks ask.

Twelve datasets of three wordings, in two sets. The `crowded` ones ask what an expert of the suite was
trained to answer, beside a sentence that says nothing of it, and with more choices. The `turned` ones ask it
the other way round (a thing of a kind, the day before, the opposite of the opposite), so that an expert that
answers by what its prompts look like is worse than guessing where its habitual answer stands among the
choices.

The wordings were written before any method was scored on them, and are not to be changed: `FROZEN` is their
digest, which a test holds. Rows, names and choices are drawn from a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from elm_jax import define_task, storage
from elm_jax.tasks import mini_words as words
from elm_jax.tasks.mini_words import Facts

FROZEN = "2ab53d88dc37915e"
ROWS = 48
"""Of each dataset: a multiple of 2, 3 and 4, so that the right choice is in every position equally often."""


@dataclass(frozen=True)
class StudyDataset:
    """What the rows of one dataset are made of.

    Attributes:
        name: of the dataset.
        family: the skill of the suite that it needs.
        facts: subjects with right answers; one subject may have several.
        wordings: its prompts by name.
        choices: of a row, where `answers` are not the same in all.
        answers: the choices of all rows, if they are the same.
        lure: subject -> what is always among the choices, and wrong.
    """

    name: str
    family: str
    facts: Facts
    wordings: dict[str, str]
    choices: int = 2
    answers: tuple[str, ...] = ()
    lure: dict[str, str] = field(default_factory=dict)


def _turn(facts: Facts) -> Facts:
    return tuple((answer, subject) for subject, answer in facts)


_TIMES = words.DAY_AFTER + words.MONTH_AFTER
_SIZES = words.SIZES_OF_ANIMALS + words.SIZES_OF_THINGS

CROWDED = (
    StudyDataset(
        "study_taxonomy_crowd",
        "taxonomy",
        words.WORD_CATEGORIES,
        {
            "looks at": '{{ other }} looks at the {{ noun }} . {{ name }} looks at the " {{ subject }} " . '
            "what sort of thing does {{ name }} look at ?",
            "here are two": 'here are the {{ noun }} of {{ name }} and the " {{ subject }} " . to which kind '
            'does the " {{ subject }} " belong ?',
            "they like": '{{ name }} and {{ other }} like the " {{ subject }} " . say which sort of thing '
            "they like .",
        },
        choices=6,
    ),
    StudyDataset(
        "study_opposite_crowd",
        "opposites",
        words.OPPOSITE_OF,
        {
            "wants": '{{ other }} has a {{ noun }} . {{ name }} wants the opposite of " {{ subject }} " . '
            "what does {{ name }} want ?",
            "never was": 'the {{ noun }} of {{ name }} was never " {{ subject }} " but the opposite . it was',
            "said to": '{{ name }} said to {{ other }} : find the opposite of " {{ subject }} " .',
        },
        choices=6,
    ),
    StudyDataset(
        "study_sentiment_crowd",
        "sentiment",
        words.OPINION_OF_PAIR,
        {
            "someone wrote": '{{ other }} looks at the {{ noun }} . {{ name }} wrote : " the {{ part }} was '
            '{{ subject }} " . is the opinion of {{ name }} good or bad ?',
            "thinks": '{{ name }} thinks : " the {{ part }} was {{ subject }} " . so {{ name }} thinks that '
            "it was",
            "tell": 'tell {{ other }} what {{ name }} said of the {{ part }} : " it was {{ subject }} " . '
            "this means",
        },
        answers=("good", "bad"),
    ),
    StudyDataset(
        "study_size_crowd",
        "comparison",
        _SIZES,
        {
            "two compare": '{{ name }} and {{ other }} compare the " {{ subject }} " with a suitcase . the '
            '" {{ subject }} " is',
            "it is here": 'here is the {{ noun }} of {{ other }} . is the " {{ subject }} " of {{ name }} '
            "bigger or smaller than a suitcase ?",
            "tell the size": 'tell {{ name }} the size of the " {{ subject }} " next to a suitcase . it is',
        },
        answers=("bigger", "smaller"),
    ),
    StudyDataset(
        "study_calendar_crowd",
        "calendar",
        _TIMES,
        {
            "that follows": '{{ other }} will {{ activity }} now . {{ name }} will {{ activity }} in the '
            'time that follows " {{ subject }} " . which time is that ?',
            "is over now": 'time is over for " {{ subject }} " . {{ name }} asks {{ other }} what comes '
            "next .",
            "comes after": 'what comes after " {{ subject }} " ? {{ name }} must say it .',
        },
        choices=6,
    ),
    StudyDataset(
        "study_spelling_crowd",
        "spelling",
        words.LETTER_OF,
        {
            "writes in a list": '{{ other }} has a list of words . {{ name }} writes " {{ subject }} " . its '
            "first letter is",
            "at the start": 'which letter does {{ name }} write at the start of " {{ subject }} " ?',
            "asks for a page": '{{ name }} asks {{ other }} : under which letter is " {{ subject }} " ?',
        },
        choices=6,
    ),
)  # fmt: skip

TURNED = (
    StudyDataset(
        "study_taxonomy_member",
        "taxonomy",
        _turn(words.WORD_CATEGORIES),
        {
            "wants one": '{{ name }} wants a thing of the kind " {{ subject }} " . which one is it ?',
            "belongs to": 'which one belongs to the kind " {{ subject }} " ? {{ name }} must choose .',
            "was drawn": '{{ name }} drew a thing of the kind " {{ subject }} " . it was the',
        },
        choices=4,
    ),
    StudyDataset(
        "study_opposite_twice",
        "opposites",
        tuple((word, word) for word, _ in words.OPPOSITE_OF),
        {
            "of the opposite": '{{ name }} says the opposite of the opposite of " {{ subject }} " . which '
            "word is that ?",
            "is not": 'the {{ noun }} is not the opposite of " {{ subject }} " . so the {{ noun }} is',
            "two times": 'find the opposite of " {{ subject }} " . which word is the opposite of that , asks '
            "{{ name }} ?",
        },
        choices=4,
        lure=dict(words.OPPOSITE_OF),
    ),
    StudyDataset(
        "study_sentiment_words",
        "sentiment",
        _turn(words.OPINION_OF_PAIR),
        {
            "said of it": 'the opinion of {{ name }} is " {{ subject }} " . of the {{ part }} {{ name }} '
            "said that it was",
            "calls it": '{{ name }} calls the {{ part }} " {{ subject }} " . so the {{ part }} was',
            "review says": 'the review says that the {{ part }} was " {{ subject }} " : {{ name }} wrote '
            "that it was",
        },
        choices=2,
    ),
    StudyDataset(
        "study_size_which",
        "comparison",
        _turn(_SIZES),
        {
            "which one": 'which one is " {{ subject }} " than a suitcase , asks {{ name }} ?',
            "looks for": '{{ name }} looks for a thing that is " {{ subject }} " than a suitcase . it is the',
            "here are two": 'here are two things . tell {{ name }} which is " {{ subject }} " than a '
            "suitcase .",
        },
        choices=2,
    ),
    StudyDataset(
        "study_calendar_before",
        "calendar",
        _turn(_TIMES),
        {
            "in the time before": '{{ name }} will {{ activity }} in the time before " {{ subject }} " . '
            "which time is that ?",
            "comes before": 'what comes before " {{ subject }} " , asks {{ name }} .',
            "must wait": '{{ name }} must {{ activity }} before " {{ subject }} " comes . which time is it '
            "now ?",
        },
        choices=4,
        lure=dict(_TIMES),
    ),
    StudyDataset(
        "study_spelling_word",
        "spelling",
        _turn(words.LETTER_OF),
        {
            "starts with": 'which word starts with the letter " {{ subject }} " , asks {{ name }} ?',
            "on the page": '{{ name }} looks at the page of " {{ subject }} " in the dictionary . which word '
            "is there ?",
            "name a word": 'name a word for {{ name }} that begins with " {{ subject }} " .',
        },
        choices=4,
    ),
)  # fmt: skip

DATASETS = (*CROWDED, *TURNED)
CARRIERS = {
    "name": words.NAMES,
    "other": words.NAMES,
    "noun": words.NOUNS,
    "part": words.FILM_PARTS + words.MEAL_PARTS + words.HOTEL_PARTS,
    "activity": words.ACTIVITIES,
}


def digest_wordings() -> str:
    """Returns the digest of everything that the wordings and choices are made of."""
    return storage.fingerprint(
        [[each.name, each.wordings, each.choices, each.answers, each.facts, each.lure] for each in DATASETS]
    )


def define_study_tasks(seed: int, rows: int = ROWS) -> list[str]:
    """Defines the study's tasks in this process, with rows of a seed; returns the datasets' names."""
    for made in DATASETS:
        expression = " ||| ".join(made.answers) or "{{ choices | join(' ||| ') }}"
        define_task(
            made.name,
            rows=make_rows(made, seed, rows),
            prompts={
                name: (f"{text} ||| {{{{ answer_choices[label] }}}}", expression)
                for name, text in made.wordings.items()
            },
            family=made.family,
        )
    return [made.name for made in DATASETS]


def make_rows(made: StudyDataset, seed: int, count: int = ROWS) -> list[dict[str, Any]]:
    """Returns the rows of a dataset: its columns, and `label`, the place of the right choice.

    Answers are drawn so that each of a dataset's fixed ones, or each subject, comes equally often, give or
    take one, and every place is right equally often.
    """
    rng = Random(f"{seed}/{made.name}")
    by_group: dict[str, list[tuple[str, str]]] = {}
    for subject, answer in rng.sample(made.facts, len(made.facts)):
        by_group.setdefault(answer if made.answers else subject, []).append((subject, answer))
    groups = rng.sample(list(by_group.values()), len(by_group))
    chosen = [groups[turn % len(groups)] for turn in range(count)]
    facts = [own[turn // len(groups) % len(own)] for turn, own in enumerate(chosen)]
    places = [turn % made.choices for turn in range(count)]
    rng.shuffle(places)
    found = []
    for (subject, answer), place in zip(facts, places, strict=True):
        name, other = rng.sample(CARRIERS["name"], 2)
        row: dict[str, Any] = {key: rng.choice(CARRIERS[key]) for key in ("noun", "part", "activity")}
        row |= {"name": name, "other": other, "subject": subject}
        if made.answers:
            row |= {"choices": list(made.answers), "label": made.answers.index(answer)}
        else:
            shown = _draw_wrong(made, subject, answer, rng)
            shown.insert(place, answer)
            row |= {"choices": shown, "label": place}
        found.append(row)
    rng.shuffle(found)
    return found


def _draw_wrong(made: StudyDataset, subject: str, answer: str, rng: Random) -> list[str]:
    """Returns wrong choices: the lure, and answers of other subjects, days for a day."""
    kin: Sequence[str] = sorted({other for _, other in made.facts})
    kin = next((cycle for cycle in (words.DAYS, words.MONTHS) if answer in cycle), kin)
    right = {other for own, other in made.facts if own == subject}
    lures = [made.lure[subject]] if subject in made.lure else []
    wrong = [other for other in kin if other not in {*right, *lures, subject}]
    return rng.sample([*lures, *rng.sample(wrong, made.choices - 1 - len(lures))], made.choices - 1)
