"""What every way to choose and combine experts is worth on the embedded suite's unseen tasks.

Run     python -m benchmarks.routing [--json FILE] [--out DIR] [--seed 0] [--kind lora]
        python -m benchmarks.routing --cost [--experts 3000] [--json FILE], which is benchmarks/router_cost.py
Takes   25 minutes for LoRA and ten for bottlenecks, on one slow core beside other work
Expect  one line a method. Which ones win is what the table is for; retrieval lies between the base and the
        oracle

The base, the tasks and the lengths are those of `elm quickstart`, and so are steps, rows and rate of the 24
experts; these are LoRA, which every router and merge can work on. With `--kind bottleneck` they are the
quickstart's very experts, and only the methods that can work on a kind are compared. GenKnowSub has a 25th
expert of LoRA, of the sentences that the base was trained on, which no other method chooses but those in
hindsight; the multitask baseline sees its rows too. Options of methods that are not named are their defaults.
All methods are scored on the same rows: those that LoraHub and fine-tuning were shown with their labels count
for none.

Intervals are of 95 %. Every method is compared with the base, and with the multitask baseline if it has seen
no labels: differences are paired and clustered by row, and p values corrected for all of these comparisons
together (Holm). They hold for one trained base and library.

The base and the experts stay in DIR, so that a second call compares only. Without DIR nothing is kept.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks import router_cost
from elm_jax import define_task
from elm_jax.errors import UserError
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.methods import SPECIAL_ROUTERS, parse_method
from elm_jax.merging import plan
from elm_jax.merging import table as merging
from elm_jax.models import expert_layers, paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.pipelines.quickstart import CONFIG, PRETRAINING
from elm_jax.records import ExpertSpec, TaskScores
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
    "ia3": replace(CONFIG, expert=ExpertConfig("ia3", dropout=0.0)),
}
ROUTED = (
    "base",
    "multitask",
    "uniform",
    "roe",
    "roe_per_instance",
    "bm25",
    "centroid",
    "lorauter",
    "roe:experts=3+ensemble",
    "roe:experts=3+ensemble:of=log_probabilities",
    "roe:experts=3,weighting=votes+ensemble",
)
OF_LORA = ("mbc", "arrow", "spectr", "average_activation", "phatgoose", "lorauter+concatenate", "hilora")
FEW_SHOT = ("lorahub", "roe+finetune")
GENERAL = "general"
"""The dataset of the expert of general text."""
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
    parser.add_argument("--cost", action="store_true", help="what a choice costs, and nothing else")
    parser.add_argument("--experts", type=int, default=3000, help="of the library that --cost makes up")
    options = parser.parse_args()
    if options.cost:
        costs = router_cost.measure_routers(options.experts)
        print("\n".join(router_cost.table_of(costs)))
        if options.json:
            options.json.write_text(
                json.dumps({"experts": options.experts, "routers": costs}, indent=2) + "\n"
            )
        return

    with tempfile.TemporaryDirectory() as scratch:
        outcome = pipeline.run_pipeline(
            train_tasks=training_tasks(options.kind, Source().seed),
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


def methods(kind: str, *, few_shot: bool = True) -> list[str]:
    """Returns the methods that can work on a kind of experts.

    Args:
        kind: of the experts.
        few_shot: whether those are among them that see labelled rows.
    """
    texts = [*ROUTED, *(OF_LORA if kind == "lora" else ()), *(FEW_SHOT if few_shot else ())]
    spec = describe_kind(kind)
    for name in merging.MERGES:
        with suppress(UserError):  # what cannot merge this kind
            plan.require_mergeable(name, spec)
            texts.append(f"roe:experts={2 if name == 'slerp' else 3}+{name}")
    if kind != "lora":
        return texts
    return [*map(leave_general_out, texts), f'genknowsub:general="{GENERAL}/next words"']


def training_tasks(kind: str, seed: int) -> list[str]:
    """Returns what experts of a kind are trained on; the task of general text is defined for LoRA."""
    return ["mini-train", define_general_task(seed)] if kind == "lora" else ["mini-train"]


def leave_general_out(text: str) -> str:
    """Returns a method that does not choose the expert of general text."""
    method = parse_method(text)
    if method.router in SPECIAL_ROUTERS:
        return text
    router, plus, merge = text.partition("+")
    return f"{router}{',' if ':' in router else ':'}without={GENERAL}{plus}{merge}"


def shorten(name: str) -> str:
    """Returns a method's name without what `leave_general_out` put there."""
    return name.replace(f",without={GENERAL}", "").replace(f":without={GENERAL}", "")


def describe_kind(kind: str) -> ExpertSpec:
    """Returns the spec of an expert of a kind, with the parameters that it owns in a tiny network."""
    config = find_config("tiny")
    expert = CONFIGS[kind].expert
    base = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    tree = jax.eval_shape(
        lambda params: expert_layers.init_expert(kind, jax.random.key(0), params, expert.options), base
    )
    return ExpertSpec("a/one", kind, "base", tuple(sorted(paths.flatten(tree))), ("a",), 1)


def define_general_task(seed: int) -> str:
    """Defines the task of general text, the second half of every sentence of the base; returns its name."""
    split = [text.split() for text in dict.fromkeys(mini.make_statements(seed))]
    rows = [
        {"start": " ".join(words[: len(words) // 2]), "rest": " ".join(words[len(words) // 2 :])}
        for words in split
        if len(words) > 1
    ]
    define_task(GENERAL, rows=rows, prompts={"next words": "{{ start }} ||| {{ rest }}"})
    return GENERAL


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
        cells = [f"`{shorten(row['method'])}`{LABELS[row['labels']]}", interval(row, "macro", "low", "high")]
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
