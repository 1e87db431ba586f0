"""Which way to use a library is better: routers, merges and kinds of experts over several trained bases.

Run     python -m benchmarks.study --out DIR [--seeds 1 2 3 4 5] [--kinds lora bottleneck ia3] [--rows 48]
        the smallest size: --seeds 1 2 3 --kinds lora bottleneck --rows 24
Takes   22 minutes for a seed of LoRA and four for one of bottlenecks, of 24 rows, on one slow core beside
        other work
Expect  one table a kind. Which methods win is what the tables are for

The experts are those of `benchmarks.routing`, trained on the embedded suite, and the methods are its methods
(with `--few-shot` also those that see labelled rows, with `--full` every router that can choose several
experts with every merge). They are scored on the tasks of `benchmarks.study_suite`, whose wordings were
written before. Everything that is random is drawn from a seed: the base, the experts, and all rows. Seeds
from 101 on are for trying the program out, and no table that is published has them.

A method's difference to a baseline is estimated by a mixed model: the method is fixed; a seed, a dataset, and
what is left of each pair of them are random effects of the difference. The design is balanced, so that the
estimates of restricted likelihood are those of the analysis of variance. Intervals and p are of Student's t
with Satterthwaite's degrees of freedom, and hold for other seeds and for datasets like these; p is corrected
(Holm) for all differences of a kind.

Each seed of a kind is a run of its own in DIR, in a process of its own, and leaves its accuracies in
DIR/results; what is there is not made again, and a run that was stopped goes on where it was. The tables are
of the seeds that are whole in every kind that is asked for; `--table` prints them without running anything.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from benchmarks import routing, study_suite
from elm_jax.data import worker_pool
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.merging import table as merging
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.pipelines.quickstart import PRETRAINING
from elm_jax.reporting.metrics import degrees_of_freedom
from elm_jax.reporting.significance import holm_correction
from elm_jax.tasks import mini
from elm_jax.tasks.data_source import Lengths, Source

REPORT_SEEDS = (1, 2, 3, 4, 5)
SEVERAL = ("roe:experts=3", "bm25:experts=3", "centroid:experts=3", "lorauter", "mbc", "hilora", "uniform")
"""Routers that choose several experts, which `--full` crosses with all merges."""
SETS = {
    "all": study_suite.DATASETS,
    "crowded": study_suite.CROWDED,
    "turned": study_suite.TURNED,
}
BASELINES = ("multitask", "base")
HINDSIGHT = ("oracle", "best_single")

Accuracies = Mapping[str, Mapping[str, float]]
"""Method -> dataset -> accuracy."""


@dataclass(frozen=True)
class MixedDifference:
    """A mean difference over seeds and datasets with its 95 % interval and p; none of these for one seed."""

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the runs and their results")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORT_SEEDS))
    parser.add_argument("--kinds", nargs="+", default=list(routing.CONFIGS), choices=list(routing.CONFIGS))
    parser.add_argument("--rows", type=int, default=study_suite.ROWS, help="of each dataset")
    parser.add_argument("--few-shot", action="store_true", help="methods that see labelled rows, too")
    parser.add_argument("--full", action="store_true", help="every router with every merge")
    parser.add_argument("--table", action="store_true", help="print tables of what is there, run nothing")
    options = parser.parse_args()
    size = {name: getattr(options, name) for name in ("rows", "few_shot", "full")}
    if not options.table:
        for seed in options.seeds:
            for kind in options.kinds:
                if not _result_file(options.out, seed, kind).exists():
                    with worker_pool.open_pool(1) as pool:
                        pool.submit(run_seed, options.out, seed, kind, **size).result()
    for kind in options.kinds:
        found = {seed: read_result(options.out, seed, kind) for seed in options.seeds}
        whole = {seed: own for seed, own in found.items() if own is not None}
        print("\n".join(make_table(kind, whole)) if whole else f"{kind}: no seed is done.", end="\n\n")


def run_seed(out: Path, seed: int, kind: str, *, rows: int, few_shot: bool, full: bool) -> None:
    """Trains a base, its experts of a kind and their gates, scores all methods, and writes accuracies."""
    directory = out / str(seed) / kind
    _share_base(directory)
    outcome = pipeline.run_pipeline(
        train_tasks=routing.training_tasks(kind, seed),
        eval_tasks=study_suite.define_study_tasks(seed, rows),
        out=directory,
        config=PipelineConfig(
            pretraining=PRETRAINING,
            training=routing.CONFIGS[kind],
            source=Source(seed=seed),
            lengths=Lengths(prompt=48, answer=8),
            base_texts=mini.make_statements(seed),
            evaluation=EvaluationConfig(methods=list_methods(kind, few_shot=few_shot, full=full)),
            title="benchmarks.study",
            seed=seed,
        ),
    )
    by_dataset: dict[str, dict[str, list[float]]] = {}
    for row in outcome.report.rows:
        own = by_dataset.setdefault(routing.shorten(row.method), {})
        own.setdefault(row.task, []).append(row.accuracy)
    told = {
        "rows": rows,
        "labels": {routing.shorten(row.method): row.labels for row in outcome.report.methods},
        "accuracies": {
            method: {dataset: float(np.mean(each)) for dataset, each in own.items()}
            for method, own in by_dataset.items()
        },
        "environment": outcome.report.environment,
    }
    file = _result_file(out, seed, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(".part")
    whole.write_text(json.dumps(told, indent=2, default=str) + "\n")
    whole.rename(file)


def list_methods(kind: str, *, few_shot: bool = False, full: bool = False) -> list[str]:
    """Returns the methods of the study for a kind of experts."""
    found = routing.methods(kind, few_shot=few_shot)
    if not full:
        return found
    merges = [text.partition("+")[2] for text in found if text.partition("+")[2] in merging.MERGES]
    routers = [text for text in SEVERAL if kind == "lora" or text not in ("mbc", "hilora")]
    crossed = [f"{router}+{merge}" for router in routers for merge in merges if merge != "slerp"]
    if kind == "lora":
        crossed = [routing.leave_general_out(text) for text in crossed]
    return list(dict.fromkeys([*found, *crossed]))


def read_result(out: Path, seed: int, kind: str) -> dict[str, Any] | None:
    """Returns what a seed of a kind left; None if it is not done."""
    file = _result_file(out, seed, kind)
    return json.loads(file.read_text()) if file.exists() else None


def estimate_difference(differences: Float[np.ndarray, "seeds datasets"]) -> MixedDifference:
    """Returns the mean of differences with a random effect of each seed, each dataset and each pair.

    The mean's variance is (seeds + datasets - rest) / number of pairs in mean squares, and at least the
    larger of the first two.
    """
    seeds, datasets = differences.shape
    mean = float(differences.mean())
    if seeds < 2:
        return MixedDifference(mean)
    by_seed, by_dataset = differences.mean(axis=1, keepdims=True), differences.mean(axis=0, keepdims=True)
    rest = differences - by_seed - by_dataset + mean
    freedoms = (seeds - 1, datasets - 1, (seeds - 1) * (datasets - 1))
    squares = (
        datasets * float(((by_seed - mean) ** 2).sum()) / freedoms[0],
        seeds * float(((by_dataset - mean) ** 2).sum()) / freedoms[1],
        float((rest**2).sum()) / freedoms[2],
    )
    terms = [(each / differences.size, freedom) for each, freedom in zip(squares, freedoms, strict=True)]
    variance = max(terms[0][0] + terms[1][0] - terms[2][0], terms[0][0], terms[1][0])
    if not variance:
        return MixedDifference(mean, mean, mean, float(not mean))
    freedom, error = degrees_of_freedom(variance, terms), float(np.sqrt(variance))
    low, high = mean + error * stdtrit(freedom, np.array([0.025, 0.975]))
    return MixedDifference(mean, float(low), float(high), float(2 * stdtr(freedom, -abs(mean) / error)))


def make_table(kind: str, results: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Returns the table of a kind in Markdown, from the results of its seeds: the best first."""
    first = next(iter(results.values()))
    labels, methods = first["labels"], list(first["accuracies"])
    accuracies = {
        name: {
            method: np.array(
                [
                    [own["accuracies"][method][dataset.name] for dataset in datasets]
                    for own in results.values()
                ]
            )
            for method in methods
        }
        for name, datasets in SETS.items()
    }
    whole = accuracies["all"]
    pairs = [
        (method, baseline)
        for baseline in BASELINES
        for method in methods
        if method not in (baseline, *HINDSIGHT) and not (baseline == "multitask" and method == "base")
    ]
    differences = {(a, b): estimate_difference(whole[a] - whole[b]) for a, b in pairs}
    told = [difference.p for difference in differences.values()]
    corrected = [None] * len(told) if None in told else holm_correction([p for p in told if p is not None])
    p_of = dict(zip(differences, corrected, strict=True))
    seeds = ", ".join(map(str, results))
    head = ["method", *(f"{name}, %" for name in SETS), "sd of seeds"]
    for baseline in BASELINES:
        head += [f"− {baseline}, points", "p"]
    made = [
        f"{kind}: seeds {seeds}, {len(SETS['all'])} datasets of 3 wordings, {first['rows']} rows each",
        "",
        f"| {' | '.join(head)} |",
        f"| --- {'| ---: ' * (len(head) - 1)}|",
    ]
    order = list(routing.LABELS)
    for method in sorted(methods, key=lambda name: (order.index(labels[name]), -whole[name].mean())):
        cells = [f"`{method}`{routing.LABELS[labels[method]]}"]
        cells += [f"{100 * own[method].mean():.1f}" for own in accuracies.values()]
        by_seed = whole[method].mean(axis=1)
        cells.append(f"{100 * by_seed.std(ddof=1):.1f}" if len(by_seed) > 1 else "")
        for baseline in BASELINES:
            cells += format_difference(differences.get((method, baseline)), p_of.get((method, baseline)))
        made.append(f"| {' | '.join(cells)} |")
    return made


def format_difference(found: MixedDifference | None, p: float | None) -> tuple[str, str]:
    """Returns the cells of a difference and of its corrected p."""
    if found is None:
        return "", ""
    shown = routing.interval(vars(found), "mean", "low", "high", sign="+")
    return shown, "" if p is None else "< 0.01" if p < 0.01 else f"{p:.2f}"


def _result_file(out: Path, seed: int, kind: str) -> Path:
    return out / "results" / f"{seed}_{kind}.json"


def _share_base(directory: Path) -> None:
    """Takes the base of a seed from another kind's run, whose base is trained alike."""
    others = [each for each in sorted(directory.parent.glob("*/base")) if (each / "config.json").exists()]
    if others and not directory.exists():
        shutil.copytree(others[0], directory / "base")


if __name__ == "__main__":
    main()
