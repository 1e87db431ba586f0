"""Summary: the scores of a run turned into one report.

Everything on the pages is in the report. Datasets that a method's expert was trained on are no zero-shot
evidence: they are shown and marked, and left out whole of its means, gaps and comparisons.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import Selection, TaskScores
from elm_jax.reporting import metrics, significance, table_layout
from elm_jax.reporting.records import (
    ChosenExperts,
    Comparison,
    DatasetResult,
    EqualChoices,
    ExpertResult,
    GeneratedResult,
    KeyMap,
    MethodDescription,
    MethodMean,
    PromptResult,
    Report,
    RowExample,
    TaskRows,
)

ScoresByMethod = Mapping[str, Sequence[TaskScores]]
ORACLE, OWN = "oracle", "own"


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of.

    Attributes:
        scores: every method on every task with answer choices; `TaskScores.method` names the method.
        selections: what the routers chose.
        environment: versions, devices, seeds and times, JSON-like; a `note` in it opens the page.
        methods: what methods are; one that is not described is known by its name.
        generated: every method on every task that is answered in free text.
        examples: rows to look at.
        equal_choices: prompts with choices that no scorer can tell apart.
        task_rows: what became of the rows of every prompt.
        expert_counts: every expert on every task, for the heat map; `CorrectCount.method` is the expert's id.
            It is read once, from front to back.
        families: family of an expert's id or of its dataset, to group the heat map by.
        made_of: what rows and experts were, JSON-like, which is kept beside the report.
        key_map: where keys and queries lie.
    """

    scores: Sequence[TaskScores] = ()
    selections: Sequence[Selection] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[MethodDescription] = ()
    generated: Sequence[GeneratedResult] = ()
    examples: Sequence[RowExample] = ()
    equal_choices: Sequence[EqualChoices] = ()
    task_rows: Sequence[TaskRows] = ()
    expert_counts: Iterable[metrics.CorrectCount] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    made_of: Mapping[str, Any] = field(default_factory=dict)
    key_map: KeyMap | None = None


@dataclass(frozen=True)
class PairedTest:
    """How two methods are compared; see `significance.paired_difference`.

    Attributes:
        samples: of the bootstrap.
        seed: of the bootstrap.
        over: what a difference is to hold over, rows or rows and prompts.
    """

    samples: int = 2000
    seed: int = 0
    over: significance.Over = "rows"


def build_report(
    inputs: ReportInputs,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    baseline: str | None = "base",
    test: PairedTest | None = None,
) -> Report:
    """Returns the report of some methods on the same tasks.

    Args:
        inputs: scores, answers and what belongs to them.
        pairs: the pairs of methods to compare; default: every method with the baseline, except those picked
            in hindsight: they were picked on these very rows, so no p value holds for them. A pair without a
            dataset that neither saw is left out.
        baseline: the method that others are compared with, and from which the oracle's gap is counted.
        test: of each comparison.

    Returns:
        The report, with methods in blocks by the labels that they saw.

    Raises:
        UserError: no scores, methods scored on different tasks, an unknown method in `pairs` or `baseline`.
    """
    test = test or PairedTest()
    scores = _group_by_method(inputs.scores)
    if not scores and not inputs.generated:
        raise UserError("Expected the scores of a method, got none. Fix: evaluate one task at least.")
    every = dict.fromkeys([*scores, *(row.method for row in inputs.generated)])
    described = inputs.methods
    if _is_about_seen(described):
        described = [_mark_seen(row, scores.get(row.method, ())) for row in described]
    methods = table_layout.describe_methods(list(every), described)
    scores = {row.method: scores[row.method] for row in methods if row.method in scores}
    labels = {row.method: row.labels for row in methods}
    counted = clear_seen_for_own_method(scores, methods)
    if not scores:
        baseline = None
    if baseline is not None:
        baseline = names.resolve(baseline, scores, kind="method", where="the scores to report")
    if pairs is None:
        usable = [method for method in scores if labels[method] != "hindsight"]
        pairs = [(method, baseline) for method in usable if baseline and method != baseline]
    for method in (method for pair in pairs for method in pair):
        names.resolve(method, scores, kind="method", where="the scores to report")
    oracle = next((row.method for row in methods if ORACLE in (row.router, row.method)), None)
    ends = (counted[baseline], counted[oracle]) if baseline and oracle in scores else None
    left_out = {
        names.task_id(rows.task, rows.prompt): sum(rows.left_out.values()) for rows in inputs.task_rows
    }
    matrix = tuple(_expert_result(count, inputs.families) for count in inputs.expert_counts)
    return Report(
        rows=tuple(_prompt_result(task, left_out) for of_method in scores.values() for task in of_method),
        means=tuple(_method_mean(own, labels[method], ends, test) for method, own in counted.items()),
        comparisons=compare_pairs([(counted[a], counted[b]) for a, b in pairs], labels, test),
        selections=_chosen_experts(inputs.selections, matrix),
        environment=json.loads(json.dumps(inputs.environment, default=str)),
        tasks=tuple(
            _dataset_result(method, dataset, prompts)
            for method, of_method in scores.items()
            for dataset, prompts in metrics.group_by_dataset(of_method).items()
        ),
        matrix=matrix,
        methods=methods,
        generated=tuple(inputs.generated),
        examples=tuple(inputs.examples),
        equal_choices=tuple(inputs.equal_choices),
        task_rows=tuple(inputs.task_rows),
        tied_with_best=find_tied_with_best(counted, labels, test),
        key_map=inputs.key_map,
    )


def clear_seen_for_own_method(scores: ScoresByMethod, methods: Sequence[MethodDescription]) -> ScoresByMethod:
    """Returns what means and comparisons are over: data that nobody saw, as it is, or all of it.

    A report with the method `own` is about what experts were trained on, so that its tasks count as any do.
    """
    if not _is_about_seen(methods):
        return scores
    return {name: [replace(task, seen=False) for task in own] for name, own in scores.items()}


def _is_about_seen(methods: Sequence[MethodDescription]) -> bool:
    return any(row.router_name == OWN for row in methods)


def _mark_seen(method: MethodDescription, scores: Sequence[TaskScores]) -> MethodDescription:
    """Returns the description of a method that was trained on all of the tasks marked so."""
    return replace(method, labels="seen") if scores and all(task.seen for task in scores) else method


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
    test: PairedTest,
) -> tuple[Comparison, ...]:
    """Compares each pair on the datasets that neither saw; p values are corrected for all pairs together.

    Args:
        pairs: the scores of two methods each; a pair without such a dataset is left out.
        labels: method -> which labels it saw; see `MethodMean`.
        test: of each difference.
    """
    sides = [side for side in (common_zero_shot(*pair) for pair in pairs) if side[0]]
    differences = [
        significance.paired_difference(a, b, over=test.over, samples=test.samples, seed=test.seed)
        for a, b in sides
    ]
    mcnemar = [significance.mcnemar_test(a, b) for a, b in sides]
    corrected = significance.holm_correction(each.p for each in differences)
    corrected_mcnemar = significance.holm_correction(each.p for each in mcnemar)
    blocks = list(table_layout.LABEL_BLOCKS)
    return tuple(
        Comparison(
            **vars(difference),
            better_a=rows.better_a,
            better_b=rows.better_b,
            p_mcnemar=rows.p,
            tasks=len(metrics.group_by_dataset(a)),
            labels=max((labels.get(each, "none") for each in (difference.a, difference.b)), key=blocks.index),
            p_holm=p_holm,
            p_mcnemar_holm=p_mcnemar_holm,
            comparisons=len(sides),
            over=test.over,
        )
        for (a, _), difference, rows, p_holm, p_mcnemar_holm in zip(
            sides, differences, mcnemar, corrected, corrected_mcnemar, strict=True
        )
    )


def find_tied_with_best(
    scores: ScoresByMethod, labels: Mapping[str, str], test: PairedTest
) -> tuple[str, ...]:
    """Returns the methods that a paired test does not tell apart from the one of the highest macro mean.

    All of them saw no labels; p values are corrected for their number. A method is compared on the datasets
    that neither it nor the best saw.
    """
    fair = {name: zero_shot_scores(own) for name, own in scores.items() if labels[name] == "none"}
    most = max((len(metrics.group_by_dataset(own)) for own in fair.values()), default=0)
    whole = {name: own for name, own in fair.items() if own and len(metrics.group_by_dataset(own)) == most}
    if not whole:
        return ()
    best = max(whole, key=lambda name: metrics.macro_mean(whole[name]).accuracy)
    others = [(scores[best], scores[name]) for name in whole if name != best]
    return tuple(each.b for each in compare_pairs(others, labels, test) if each.p_holm >= 0.05)


def _group_by_method(scores: Sequence[TaskScores]) -> dict[str, list[TaskScores]]:
    """Groups scores by method and refuses methods that were not scored on the same tasks, each once."""
    methods: dict[str, list[TaskScores]] = {}
    for task in scores:
        methods.setdefault(task.method, []).append(task)
    first = next(iter(methods), "")
    expected = {task.task for task in methods.get(first, ())}
    for method, of_method in methods.items():
        tasks = [task.task for task in of_method]
        if len(set(tasks)) != len(tasks):
            twice = next(task for task in tasks if tasks.count(task) > 1)
            raise UserError(
                f"Expected one score a task and method, got two of {twice!r} by {method!r}. Fix: pass one."
            )
        if expected ^ set(tasks):
            task = min(expected ^ set(tasks))
            lacking, having = (method, first) if task in expected else (first, method)
            raise UserError(
                f"Expected all methods on the same tasks, got {task!r} by {having!r} but not by {lacking!r}. "
                "Fix: score it for both, or leave it out."
            )
    return methods


def _prompt_result(task: TaskScores, left_out: Mapping[str, int]) -> PromptResult:
    dataset, prompt = names.split_id(task.task)
    return PromptResult(
        method=task.method,
        task=dataset,
        prompt=prompt,
        **asdict(metrics.accuracy(task)),
        chance=metrics.chance_accuracy(task),
        seen=task.seen,
        tied=int((metrics.count_tied_choices(task) > 1).sum()),
        left_out=left_out.get(task.task, 0),
    )


def _dataset_result(method: str, dataset: str, prompts: Sequence[TaskScores]) -> DatasetResult:
    return DatasetResult(
        method=method,
        task=dataset,
        **asdict(metrics.macro_mean(prompts)),
        chance=sum(metrics.chance_accuracy(prompt) for prompt in prompts) / len(prompts),
        **asdict(metrics.prompt_spread(prompts)),
        seen=any(prompt.seen for prompt in prompts),
    )


def _method_mean(
    scores: Sequence[TaskScores],
    labels: str,
    ends: tuple[Sequence[TaskScores], Sequence[TaskScores]] | None,
    test: PairedTest,
) -> MethodMean:
    """Returns a method's means, and its share of the gap between baseline and oracle if there are both."""
    own = zero_shot_scores(scores)
    macro, micro = (metrics.macro_mean(own), metrics.micro_mean(own)) if own else (None, None)
    gap = _gap_closed([own, *map(zero_shot_scores, ends)], test) if ends else None
    return MethodMean(
        method=scores[0].method,
        labels=labels,
        macro=macro and macro.accuracy,
        low=macro and macro.low,
        high=macro and macro.high,
        n=macro.n if macro else 0,
        micro=micro and micro.accuracy,
        micro_low=micro and micro.low,
        micro_high=micro and micro.high,
        gap_share=gap and gap.share,
        gap_low=gap and gap.low,
        gap_high=gap and gap.high,
        left_out=tuple(
            name for name in metrics.group_by_dataset(scores) if name not in metrics.group_by_dataset(own)
        ),
    )


def _gap_closed(sides: Sequence[Sequence[TaskScores]], test: PairedTest) -> significance.GapClosed | None:
    """Returns the share of a gap over the tasks that method, baseline and oracle have in common."""
    common = set.intersection(*({task.task for task in side} for side in sides))
    if not common:
        return None
    method, baseline, oracle = ([task for task in side if task.task in common] for side in sides)
    return significance.gap_closed(method, baseline, oracle, samples=test.samples, seed=test.seed)


def _chosen_experts(
    selections: Sequence[Selection], matrix: Sequence[ExpertResult]
) -> tuple[ChosenExperts, ...]:
    accuracies: dict[tuple[str, str], dict[str, float]] = {}
    for row in matrix:
        if not row.seen:
            accuracies.setdefault((row.task, row.prompt), {})[row.expert] = row.accuracy
    return tuple(
        _chosen(selection, accuracies.get(names.split_id(selection.task), {})) for selection in selections
    )


def _chosen(selection: Selection, accuracies: Mapping[str, float]) -> ChosenExperts:
    """Returns a router's choice with its votes, and its rank by the task's `accuracies` of experts."""
    if not selection.weights:
        raise UserError(
            f"Expected an expert of router {selection.router!r} for {selection.task!r}, got none. Fix: route "
            "the task again."
        )
    dataset, prompt = names.split_id(selection.task)
    expert = max(selection.weights, key=lambda name: (selection.weights[name], selection.votes.get(name, 0)))
    similarities = [similarity for winner, similarity in selection.nearest if winner == expert]
    own = accuracies.get(expert)
    return ChosenExperts(
        task=dataset,
        prompt=prompt,
        router=selection.router,
        expert=expert,
        votes=selection.votes.get(expert, 0),
        queries=len(selection.queries),
        weights={name: float(weight) for name, weight in selection.weights.items()},
        voters={name: int(votes) for name, votes in selection.votes.items()},
        similarity=sum(similarities) / len(similarities) if similarities else None,
        rank=None if own is None else 1 + sum(other > own for other in accuracies.values()),
        ranked=len(accuracies),
    )


def _expert_result(count: metrics.CorrectCount, families: Mapping[str, str]) -> ExpertResult:
    dataset, prompt = names.split_id(count.task)
    return ExpertResult(
        expert=count.method,
        family=families.get(count.method) or families.get(count.method.partition("/")[0]),
        task=dataset,
        prompt=prompt,
        **asdict(metrics.accuracy(count)),
        seen=count.seen,
    )
