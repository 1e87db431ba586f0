"""A summary: the scores of a run turned into one report.

Everything on the pages is in the report. Datasets that a method's expert was trained on are no zero-shot
evidence: they are shown and marked, and left out whole of its means, gaps and comparisons.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import Report, Selection, TaskScores
from elm_jax.reporting import metrics, significance, table_layout

ScoresByMethod = Mapping[str, Sequence[TaskScores]]
ORACLE = "oracle"


def build_report(
    scores: Sequence[TaskScores],
    selections: Sequence[Selection],
    environment: Mapping[str, Any],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    baseline: str | None = "base",
    experts_matrix: Iterable[metrics.CorrectCount] = (),
    families: Mapping[str, str] | None = None,
    methods: Sequence[Mapping[str, Any]] = (),
    generated: Sequence[Mapping[str, Any]] = (),
    examples: Sequence[Mapping[str, Any]] = (),
    samples: int = 2000,
    seed: int = 0,
) -> Report:
    """Returns the report of some methods on the same tasks.

    Args:
      scores: every method on every task; `TaskScores.method` names the method.
      selections: what the routers chose.
      environment: versions, devices, seeds and times, JSON-like; a `note` in it opens the page.
      pairs: the pairs of methods to compare. By default every method with the baseline, except those picked
        in hindsight: they were picked on these very rows, so no p value holds for them. A pair without a
        dataset that neither saw is left out.
      baseline: the method that others are compared with, and from which the oracle's gap is counted.
      experts_matrix: every expert on every task, for the heat map; `Count.method` is the expert's id. It is
        read once, from front to back.
      families: family of an expert's id or of its dataset, to group the heat map by.
      methods: what methods are: method, router, merge, labels ("none", "few", "hindsight"), note.
      generated: what was made of answers in free text, one a method, task and prompt.
      examples: rows to look at, as `Report.examples` has them.
      samples: bootstrap samples of each comparison.
      seed: the seed of the bootstrap.

    Raises:
      UserError: no scores, methods scored on different tasks, an unknown method in `pairs` or `baseline`.
    """
    found = _by_method(scores)
    if not found and not generated:
        raise UserError("A report wants the scores of one method at least, but none came.")
    every = dict.fromkeys([*found, *(row["method"] for row in generated)])
    described = table_layout.describe_methods(list(every), methods)
    found = {row["method"]: found[row["method"]] for row in described if row["method"] in found}
    labels = {row["method"]: row["labels"] for row in described}
    if not found:
        baseline = None
    if baseline is not None:
        baseline = names.resolve(baseline, found, kind="method", where="the scores to report")
    if pairs is None:
        usable = [method for method in found if labels[method] != "hindsight"]
        pairs = [(method, baseline) for method in usable if baseline and method != baseline]
    for method in (method for pair in pairs for method in pair):
        names.resolve(method, found, kind="method", where="the scores to report")
    oracle = next((row["method"] for row in described if ORACLE in (row["router"], row["method"])), None)
    oracle = oracle if oracle in found else None
    families = families or {}
    matrix = tuple(_matrix_row(count, families) for count in experts_matrix)
    in_hindsight: dict[tuple[str, str], dict[str, float]] = {}
    for row in matrix:
        if not row["seen"]:
            in_hindsight.setdefault((row["task"], row["prompt"]), {})[row["expert"]] = row["accuracy"]
    return Report(
        rows=tuple(_row(task) for of_method in found.values() for task in of_method),
        means=_means(found, labels, baseline, oracle, samples=samples, seed=seed),
        comparisons=compare_pairs(
            [(found[a], found[b]) for a, b in pairs], labels, samples=samples, seed=seed
        ),
        selections=tuple(_selection(selection, in_hindsight) for selection in selections),
        environment=_plain(environment),
        tasks=tuple(
            _task(method, dataset, prompts)
            for method, of_method in found.items()
            for dataset, prompts in metrics.by_dataset(of_method).items()
        ),
        matrix=matrix,
        methods=described,
        generated=tuple(_plain(row) for row in generated),
        examples=tuple(_plain(row) for row in examples),
    )


def zero_shot_scores(scores: Sequence[TaskScores]) -> list[TaskScores]:
    """Returns one method's scores without the datasets that it saw, under whatever prompt."""
    seen = {names.split_id(task.task)[0] for task in scores if task.seen}
    return [task for task in scores if names.split_id(task.task)[0] not in seen]


def common_zero_shot(
    a: Sequence[TaskScores], b: Sequence[TaskScores]
) -> tuple[list[TaskScores], list[TaskScores]]:
    """Returns the scores of two methods on the datasets that neither saw."""
    unseen = {task.task for task in zero_shot_scores(a)} & {task.task for task in zero_shot_scores(b)}
    return [task for task in a if task.task in unseen], [task for task in b if task.task in unseen]


def compare_pairs(
    pairs: Sequence[tuple[Sequence[TaskScores], Sequence[TaskScores]]],
    labels: Mapping[str, str],
    *,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Any], ...]:
    """Compares each pair on the datasets that neither saw; p values are corrected for all pairs together."""
    rows = []
    for a, b in (common_zero_shot(*pair) for pair in pairs):
        if not a:
            continue
        bootstrap = significance.paired_difference(a, b, samples=samples, seed=seed)
        coin = significance.mcnemar_test(a, b)
        both = {labels.get(bootstrap.a, "none"), labels.get(bootstrap.b, "none")}
        rows.append(
            {
                **asdict(bootstrap),
                "better_a": coin.better_a,
                "better_b": coin.better_b,
                "p_mcnemar": coin.p,
                "tasks": len(metrics.by_dataset(a)),
                "labels": max(both, key=list(table_layout.LABEL_BLOCKS).index),
            }
        )
    corrected = significance.holm_correction(row["p"] for row in rows)
    coins = significance.holm_correction(row["p_mcnemar"] for row in rows)
    return tuple(
        {**row, "p_holm": p, "p_mcnemar_holm": p_coin, "comparisons": len(rows)}
        for row, p, p_coin in zip(rows, corrected, coins, strict=True)
    )


def _by_method(scores: Sequence[TaskScores]) -> dict[str, list[TaskScores]]:
    """Groups scores by method and refuses methods that were not scored on the same tasks, each once."""
    methods: dict[str, list[TaskScores]] = {}
    for task in scores:
        methods.setdefault(task.method, []).append(task)
    first = next(iter(methods), "")
    wanted = {task.task for task in methods.get(first, ())}
    for method, of_method in methods.items():
        found = [task.task for task in of_method]
        if len(set(found)) != len(found):
            twice = next(task for task in found if found.count(task) > 1)
            raise UserError(f"Task {twice!r} has two scores by {method!r}; a report wants one.")
        if wanted ^ set(found):
            task = min(wanted ^ set(found))
            lacking, having = (method, first) if task in wanted else (first, method)
            raise UserError(
                f"Methods of one report are scored on the same tasks, but {lacking!r} lacks {task!r}, which "
                f"{having!r} has. Score it, or leave it out."
            )
    return methods


def _row(task: TaskScores) -> dict[str, Any]:
    dataset, prompt = names.split_id(task.task)
    return {
        "method": task.method,
        "task": dataset,
        "prompt": prompt,
        **asdict(metrics.accuracy(task)),
        "chance": metrics.chance_accuracy(task),
        "seen": task.seen,
    }


def _task(method: str, dataset: str, prompts: Sequence[TaskScores]) -> dict[str, Any]:
    guess = sum(metrics.chance_accuracy(prompt) for prompt in prompts) / len(prompts)
    over_prompts = {"method": method, "task": dataset, **asdict(metrics.macro_mean(prompts)), "chance": guess}
    seen = any(prompt.seen for prompt in prompts)
    return {**over_prompts, **asdict(metrics.prompt_spread(prompts)), "seen": seen}


def _means(
    methods: ScoresByMethod,
    labels: Mapping[str, str],
    baseline: str | None,
    oracle: str | None,
    *,
    samples: int,
    seed: int,
) -> tuple[dict[str, Any], ...]:
    rows = []
    for method, of_method in methods.items():
        own = zero_shot_scores(of_method)
        macro, micro = (metrics.macro_mean(own), metrics.micro_mean(own)) if own else (None, None)
        used, every = metrics.by_dataset(own), metrics.by_dataset(of_method)
        share = None
        if baseline and oracle:
            share = _gap_share(own, methods[baseline], methods[oracle], samples=samples, seed=seed)
        rows.append(
            {
                "method": method,
                "labels": labels[method],
                "macro": macro and macro.accuracy,
                "low": macro and macro.low,
                "high": macro and macro.high,
                "n": macro.n if macro else 0,
                "micro": micro and micro.accuracy,
                "micro_low": micro and micro.low,
                "micro_high": micro and micro.high,
                "gap_share": share and share.share,
                "gap_low": share and share.low,
                "gap_high": share and share.high,
                "left_out": [dataset for dataset in every if dataset not in used],
            }
        )
    return tuple(rows)


def _gap_share(
    own: Sequence[TaskScores],
    baseline: Sequence[TaskScores],
    oracle: Sequence[TaskScores],
    *,
    samples: int,
    seed: int,
) -> significance.GapClosed | None:
    sides = [own, zero_shot_scores(baseline), zero_shot_scores(oracle)]
    common = set.intersection(*({task.task for task in side} for side in sides))
    sides = [[task for task in side if task.task in common] for side in sides]
    return significance.gap_closed(*sides, samples=samples, seed=seed) if common else None


def _selection(
    selection: Selection, in_hindsight: Mapping[tuple[str, str], Mapping[str, float]]
) -> dict[str, Any]:
    """Returns one choice with its votes, how near the voters were, and its rank in hindsight if known.

    `in_hindsight` has every task's accuracies by expert.
    """
    if not selection.weights:
        raise UserError(f"The selection for task {selection.task!r} by {selection.router!r} has no expert.")
    dataset, prompt = names.split_id(selection.task)
    expert = max(selection.weights, key=lambda name: (selection.weights[name], selection.votes.get(name, 0)))
    near = [similarity for winner, similarity in selection.nearest if winner == expert]
    of_task = in_hindsight.get((dataset, prompt), {})
    own = of_task.get(expert)
    return {
        "task": dataset,
        "prompt": prompt,
        "router": selection.router,
        "expert": expert,
        "votes": selection.votes.get(expert, 0),
        "queries": len(selection.queries),
        "weights": {name: float(weight) for name, weight in selection.weights.items()},
        "voters": {name: int(votes) for name, votes in selection.votes.items()},
        "similarity": sum(near) / len(near) if near else None,
        "rank": None if own is None else 1 + sum(other > own for other in of_task.values()),
        "ranked": len(of_task),
    }


def _matrix_row(count: metrics.CorrectCount, families: Mapping[str, str]) -> dict[str, Any]:
    dataset, prompt = names.split_id(count.task)
    family = families.get(count.method) or families.get(count.method.partition("/")[0])
    return {
        "expert": count.method,
        "family": family,
        "task": dataset,
        "prompt": prompt,
        **asdict(metrics.accuracy(count)),
        "seen": count.seen,
    }


def _plain(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(value, default=str))
