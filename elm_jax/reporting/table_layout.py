"""The layout of tables of results: their columns as the paper groups them, their rows in blocks.

Tasks of the paper stand in its order under their short names; all others follow as they came. Methods stand
in blocks by which labels of the tasks they saw, so that none is read as a zero-shot method that is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from elm_jax.reporting.records import MethodDescription

PAPER_GROUPS: Mapping[str, Mapping[str, str]] = {
    "Natural language inference": {
        "super_glue_rte": "RTE",
        "super_glue_cb": "CB",
        "anli_r1": "ANLI R1",
        "anli_r2": "ANLI R2",
        "anli_r3": "ANLI R3",
    },
    "Sentence completion": {
        "super_glue_copa": "COPA",
        "hellaswag": "HellaSwag",
        "story_cloze": "StoryCloze",
    },
    "Coreference": {"winogrande": "WinoGrande", "super_glue_wsc.fixed": "WSC"},
    "Word sense": {"super_glue_wic": "WiC"},
    "BIG-bench": {
        "known_unknowns": "known unknowns",
        "logic_grid_puzzle": "logic grid",
        "strategyqa": "StrategyQA",
        "hindu_knowledge": "Hindu knowledge",
        "movie_dialog_same_or_different": "movie dialog",
        "code_line_description": "code description",
        "conceptual_combinations": "conceptual",
        "language_identification": "language",
        "vitaminc_fact_verification": "VitaminC",
        "formal_fallacies_syllogisms_negation": "syllogisms",
        "misconceptions": "misconceptions",
        "logical_deduction": "logical deduction",
        "winowhy": "WinoWhy",
    },
}
"""The paper's tasks: heading -> dataset -> short name, in the order of its tables."""
OTHER_TASKS_HEADING = "Other tasks"
LABEL_BLOCKS: Mapping[str, str] = {
    "none": "zero-shot",
    "seen": "not zero-shot: trained on these tasks",
    "few": "few-shot: chosen with a few labelled rows of the task",
    "hindsight": "hindsight: picked by the right answers of these very rows",
}
"""Which labels of its tasks a method saw -> what its block is called, in the order of blocks."""
METHOD_NOTES: Mapping[str, str] = {
    "base": "the base model without any expert",
    "multitask": "one expert trained on all training tasks together, on the same budget",
    "uniform_merge": "all experts averaged into one, each with the same weight",
    "roe_top1": "retrieval of experts: the expert with the most votes",
    "roe_top3_merge": "retrieval of experts: the three experts with the most votes, merged",
    "own": "for each task the expert that was trained on it",
    "best_single": "the one expert with the best mean over these very rows",
    "oracle": "for each task the expert that is best on these very rows",
}
"""What the methods of our runs are; others say it themselves."""
HINDSIGHT_METHODS = ("best_single", "oracle")
"""Methods picked by looking at the answers, where nothing else is said of them."""


@dataclass(frozen=True)
class TaskColumn:
    """A dataset as a column: its heading is empty where no dataset of a table is the paper's."""

    task: str
    name: str
    group: str


def task_columns(tasks: Iterable[str]) -> list[TaskColumn]:
    """Returns the datasets as columns, the paper's first and in its order.

    >>> [(column.name, column.group) for column in task_columns(["own", "story_cloze"])]
    [('StoryCloze', 'Sentence completion'), ('own', 'Other tasks')]
    """
    wanted = list(dict.fromkeys(tasks))
    found = [
        TaskColumn(task, name, group)
        for group, names in PAPER_GROUPS.items()
        for task, name in names.items()
        if task in wanted
    ]
    known = {column.task for column in found}
    return found + [
        TaskColumn(task, task, OTHER_TASKS_HEADING if found else "") for task in wanted if task not in known
    ]


def describe_methods(
    methods: Sequence[str], given: Sequence[MethodDescription]
) -> tuple[MethodDescription, ...]:
    """Returns what each method is, block by block: as `given`, or as it is known by its name.

    Args:
        methods: their names.
        given: descriptions, of any of them.
    """
    by_name = {description.method: description for description in given}
    found = [_with_defaults(by_name.get(method, MethodDescription(method))) for method in methods]
    order = list(LABEL_BLOCKS)
    return tuple(sorted(found, key=lambda description: order.index(description.labels)))


def _with_defaults(description: MethodDescription) -> MethodDescription:
    method = description.method
    labels = description.labels or ("hindsight" if method in HINDSIGHT_METHODS else "none")
    return replace(description, labels=labels, note=description.note or METHOD_NOTES.get(method, ""))
