"""Made-up scores: one builder for a single task, one for a whole run with methods, experts and selections."""

import numpy as np
import pytest

from elm_jax.records import Selection, TaskScores
from elm_jax.reporting import metrics
from elm_jax.reporting.records import KeyMap, MapPoints

METHODS = {
    "base": 0.42,
    "multitask": 0.62,
    "best_single": 0.6,
    "uniform_merge": 0.46,
    "roe_top1": 0.64,
    "roe_top3_merge": 0.68,
    "oracle": 0.75,
}
TASKS = {  # prompts, choices
    "colour": (2, 3),
    "opposite": (2, 2),
    "weekday": (3, 4),
    "plural": (2, 2),
    "sum": (2, 5),
    "rhyme": (1, 2),
}
SKILLS = ["taxonomy", "sentiment", "comparison", "calendar"]


def make_task(task, method, right, *, choices=3, row_ids=None):
    """Scores of one task: `right` says row by row whether the prediction is the label."""
    labels = tuple(row % choices for row in range(len(right)))
    predictions = tuple(
        label if ok else (label + 1) % choices for label, ok in zip(labels, right, strict=True)
    )
    return TaskScores(
        task=task,
        method=method,
        row_ids=tuple(row_ids or (f"row-{row}" for row in range(len(right)))),
        scores=tuple(tuple(-1.0 if c == p else -2.5 for c in range(choices)) for p in predictions),
        predictions=predictions,
        labels=labels,
    )


def make_run(*, rows=60, seed=0, odd=""):
    """A run like the quickstart's: 7 methods, 6 tasks, 12 experts. `odd` is put into every name of a user."""
    rng = np.random.default_rng(seed)
    experts = [f"{skill}-{n}{odd}/prompt{odd}" for skill in SKILLS for n in range(3)]
    ids = [
        (f"{dataset}{odd}/p{n}{odd}", choices)
        for dataset, (prompts, choices) in TASKS.items()
        for n in range(prompts)
    ]
    hardness = {task.split("/")[0]: rng.random(rows) for task, _ in ids}

    def answered(task, method, choices, skill):
        knows = skill + rng.normal(0, 0.06) > hardness[task.split("/")[0]] + rng.normal(0, 0.1, rows)
        return make_task(task, method, knows | (rng.random(rows) < 1 / choices), choices=choices)

    scores = [answered(t, m, c, s - 0.3) for m, s in METHODS.items() for t, c in ids]
    matrix = [answered(t, e, c, float(rng.beta(2, 4))) for e in experts for t, c in ids]
    selections = []
    for task, _ in ids:
        counts = rng.multinomial(32, rng.dirichlet(np.full(len(experts), 0.3)))
        votes = {experts[index]: int(counts[index]) for index in np.argsort(-counts)}
        top = list(votes)[:3]
        queries = tuple(f"row-{row}" for row in range(32))
        votes = {name: count for name, count in votes.items() if count}
        selections.append(Selection(task, "roe_top1", {top[0]: 1.0}, votes, queries))
        selections.append(Selection(task, "roe_top3_merge", dict.fromkeys(top, 1 / 3), votes, queries))
    families = {f"{skill}-{n}{odd}": skill + odd for skill in SKILLS for n in range(3)}
    places = rng.random((2, 4)).round(4).tolist()
    keys = [MapPoints(name, *map(tuple, places)) for name in experts]
    asked = [MapPoints(dataset + odd, *map(tuple, places)) for dataset in TASKS]
    environment = {
        "note": f"Made-up numbers{odd} of a made-up run.",
        "seed": seed,
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "devices": ["cpu:0", "cpu:1"],
        "seconds": {"train": 41.25, "evaluate": 12.5},
    }
    return {
        "scores": scores,
        "selections": selections,
        "environment": environment,
        "expert_counts": [metrics.count_correct(task) for task in matrix],
        "families": families,
        "key_map": KeyMap("embedder", (0.4, 0.25), tuple(keys), tuple(asked), 1200, 192),
    }


@pytest.fixture(scope="session", name="make_task")
def make_task_fixture():
    return make_task


@pytest.fixture(scope="session", name="make_run")
def make_run_fixture():
    return make_run


@pytest.fixture(scope="session")
def report():
    """The report of one made-up run, shared by the tests that only read it."""
    from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report

    return build_report(ReportInputs(**make_run()), test=PairedTest(200))


@pytest.fixture
def small():
    right = {"base": (1, 0, 0), "roe": (3, 2, 0), "oracle": (4, 4, 2)}
    scores = [
        make_task(task, method, [True] * n + [False] * (4 - n), choices=choices)
        for method, counts in right.items()
        for (task, choices), n in zip((("a/1", 2), ("a/2", 2), ("b/1", 4)), counts, strict=True)
    ]
    selection = Selection(
        "a/1", "roe", {"x/1": 0.75, "y/1": 0.25}, {"x/1": 5, "z/1": 2, "y/1": 1}, ("1",) * 8
    )
    from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report

    return build_report(
        ReportInputs(scores, [selection], {"seed": 3, "versions": {"jax": "0.10"}}), test=PairedTest(50)
    )
