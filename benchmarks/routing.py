"""What every way to choose and combine experts is worth on the embedded suite's unseen tasks.

Run     python -m benchmarks.routing [--json FILE] [--out DIR] [--seed 0] [--kind lora]
Takes   nine minutes on two cores that other programs shared, of which it had less than half
Expect  one line a method. Which ones win is what the table is for; retrieval lies between the base and the
        oracle

The base, the tasks and the lengths are those of `elm quickstart`, and so are steps, rows and rate of the 24
experts; these are LoRA, which every router and merge can work on. With `--kind bottleneck` they are the
quickstart's very experts, and only the methods that make sense for bottlenecks are compared. Options of
methods that are not named are their defaults. All methods are scored on the same rows: those that LoraHub was
shown with their labels count for none.

Intervals are of 95 %. Every method is compared with the base, and with the multitask baseline if it has seen
no labels: differences are paired and clustered by row, and p values corrected for all of these comparisons
together (Holm). They hold for one trained base and library.

The base and the experts stay in DIR, so that a second call compares only. Without DIR nothing is kept.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.pipelines.quickstart import CONFIG, PRETRAINING
from elm_jax.records import TaskScores
from elm_jax.reporting import report_files, summary
from elm_jax.reporting.records import Report
from elm_jax.reporting.summary import PairedTest
from elm_jax.tasks import mini
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.training.config import ExpertConfig

CONFIGS = {
    "lora": replace(
        CONFIG,
        expert=ExpertConfig(
            "lora",
            {"rank": 8, "projections": ["query", "key", "value", "out", "wi_0", "wi_1", "wo"]},
            dropout=0.0,
        ),
    ),
    "bottleneck": CONFIG,
}
ROUTED = (
    "base",
    "multitask",
    "uniform+average",
    "roe",
    "roe_per_instance",
    "bm25",
    "centroid",
    "lorahub",
)
OF_LORA = ("mbc", "arrow", "spectr", "average_activation")
THREE = ("average", "concatenate")
CHANGES = ("task_arithmetic", "ties", "dare", "regmean", "fisher")
BASELINES = ("base", "multitask")
MEANS = ("method", "labels", "macro", "low", "high", "gap_share", "gap_low", "gap_high")
COMPARED = ("difference", "low", "high", "p", "p_holm")
SAMPLES = 20_000  # of the bootstrap, so that a corrected p can be small
LABELS = {"none": "", "few": " ‡", "hindsight": " †"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--out", type=Path, help="directory of the run; what is there is not made again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="lora", choices=list(CONFIGS))
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        outcome = pipeline.run_pipeline(
            train_tasks=["mini-train"],
            eval_tasks=["mini-unseen"],
            out=options.out or scratch,
            config=PipelineConfig(
                pretraining=PRETRAINING,
                training=CONFIGS[options.kind],
                lengths=Lengths(prompt=48, answer=8),
                base_texts=mini.make_statements(Source().seed),
                evaluation=EvaluationConfig(methods=methods(options.kind)),
                title="benchmarks.routing",
                seed=options.seed,
            ),
        )
        scores = report_files.read_rows(outcome.files["json"].parent, outcome.report)
    rows = table(outcome.report, scores)
    print("\n".join(lines(rows)))
    print("\n† picked in hindsight on these very rows. ‡ has seen a few labelled rows of each task.")
    if options.json:
        told = {"seed": options.seed, "kind": options.kind, "methods": rows}
        told |= {"environment": outcome.report.environment}
        options.json.write_text(json.dumps(told, indent=2) + "\n")


def methods(kind: str) -> list[str]:
    """Returns the methods that make sense for a kind of experts."""
    if kind != "lora":
        return [*ROUTED, *(f"roe:experts=3+{merge}" for merge in THREE)]
    return [
        *ROUTED,
        *OF_LORA,
        *(f"roe:experts=3+{merge}" for merge in (*THREE, *CHANGES)),
        "roe:experts=2+slerp",
    ]


def table(report: Report, scores: Mapping[str, Sequence[TaskScores]]) -> list[dict[str, Any]]:
    """Returns one row a method: its mean, the share of the gap it closes, what it differs by from others."""
    labels = {row.method: row.labels for row in report.methods}
    pairs = [(method, "base") for method in scores if method != "base" and labels[method] != "hindsight"]
    pairs += [
        (method, "multitask") for method, _ in pairs if labels[method] == "none" and method != "multitask"
    ]
    found = summary.compare_pairs([(scores[a], scores[b]) for a, b in pairs], labels, PairedTest(SAMPLES))
    told = {(row.a, row.b): {name: getattr(row, name) for name in COMPARED} for row in found}
    return [
        {name: getattr(mean, name) for name in MEANS}
        | {f"to_{b}": told.get((mean.method, b)) for b in BASELINES}
        for mean in report.means
    ]


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the table in Markdown, the best first, apart by which labels methods have seen."""
    order = list(LABELS)
    ranked = sorted(rows, key=lambda row: (order.index(row["labels"]), -row["macro"]))
    head = ["method", "accuracy, %", "of the gap closed, %"]
    for baseline in BASELINES:
        head += [f"− {baseline}, points", "p"]
    made = [f"| {' | '.join(head)} |", f"| --- {'| ---: ' * (len(head) - 1)}|"]
    for row in ranked:
        cells = [f"`{row['method']}`{LABELS[row['labels']]}", interval(row, "macro", "low", "high")]
        cells.append(interval(row, "gap_share", "gap_low", "gap_high"))
        for baseline in BASELINES:
            found = row[f"to_{baseline}"]
            cells.append(interval(found, "difference", "low", "high", sign="+") if found else "")
            p = found["p_holm"] if found else None
            cells.append("" if p is None else "< 0.01" if p < 0.01 else f"{p:.2f}")
        made.append(f"| {' | '.join(cells)} |")
    return made


def interval(row: Mapping[str, Any], value: str, low: str, high: str, *, sign: str = "") -> str:
    """Returns a share in percent with its interval."""
    found = [row[name] for name in (value, low, high)]
    shown = [None if each is None else f"{100 * each:{sign}.1f}".replace("-", "−") for each in found]
    if shown[0] is None:
        return ""
    return str(shown[0]) if shown[1] is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"


if __name__ == "__main__":
    main()
