"""Published figures: what others measured on the paper's tasks, to stand beside a run, each with its source.

They are the means over all prompts and rows of each dataset, in percent, of other code on other machines.
Only rows are here whose every cell could be read in the source: the paper's rows of its best single expert,
its oracle and its dataset experts are not among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PAPER = "Kim et al. 2023, The CoT Collection, arXiv 2305.14045, Table 3"
PAPER_TASKS = (
    "super_glue_rte",
    "super_glue_cb",
    "anli_r1",
    "anli_r2",
    "anli_r3",
    "super_glue_copa",
    "hellaswag",
    "story_cloze",
    "winogrande",
    "super_glue_wsc.fixed",
    "super_glue_wic",
)
PAPER_ACCURACIES: dict[str, tuple[float, ...]] = {
    "T5-LM 3B": (53.03, 34.34, 32.89, 33.76, 33.82, 54.88, 27.00, 48.16, 50.64, 54.09, 50.30),
    "T0-3B": (60.61, 48.81, 35.10, 33.27, 33.52, 75.13, 27.18, 84.91, 50.91, 65.00, 51.27),
    "RoE-3B": (
        *(64.01, 43.57, 35.49, 34.64, 31.22),
        *(79.25, 34.60, 86.33, 61.60, 62.21, 52.97),
    ),
    "T0-11B": (80.83, 70.12, 43.56, 38.68, 41.26, 90.02, 33.58, 92.40, 59.94, 61.45, 56.58),
    "GPT-3 175B": (63.50, 46.40, 34.60, 35.40, 34.50, 91.00, 78.90, 83.20, 70.20, 65.40, 45.92),
}
"""Model -> accuracies in the order of `PAPER_TASKS`."""
PRINTED_OTHERWISE = "RoE-3B’s mean is printed as 53.48, but its cells average 53.26"


@dataclass(frozen=True)
class PublishedModel:
    """One model's published accuracies, as fractions."""

    model: str
    cells: dict[str, float]
    macro: float | None  # the mean of the cells; None where the table has columns that were not published


def published_rows(tasks: Sequence[str]) -> list[PublishedModel]:
    """Returns what was published on some of these datasets; nothing where none is the paper's."""
    shared = [task for task in tasks if task in PAPER_TASKS]
    if not shared:
        return []
    found = []
    for model, figures in PAPER_ACCURACIES.items():
        cells = {task: figures[PAPER_TASKS.index(task)] / 100 for task in shared}
        whole = len(shared) == len(tasks)
        found.append(PublishedModel(model, cells, sum(cells.values()) / len(cells) if whole else None))
    return found


def describe_published_rows(tasks: Sequence[str]) -> str:
    """Returns what must be said where published rows are shown."""
    odd = f" {PRINTED_OTHERWISE}." if set(PAPER_TASKS) <= set(tasks) else ""
    return (
        f"Published rows were not measured here but printed in {PAPER}; they are means over all rows and "
        f"prompts, and each mean is that of the cells shown.{odd}"
    )
