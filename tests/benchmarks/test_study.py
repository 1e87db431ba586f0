"""The study: wordings that stay as they are, rows that are fair, and a mixed model over seeds."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from benchmarks import study, study_suite
from elm_jax.data import task_rows, task_selection
from elm_jax.evaluation.methods import parse_methods
from elm_jax.tasks import mini
from elm_jax.tasks.data_source import Source

BY_NAME = {made.name: made for made in study_suite.DATASETS}


def test_the_wordings_are_those_that_were_written_before_anything_was_scored():
    assert study_suite.digest_wordings() == study_suite.FROZEN


@pytest.mark.parametrize("name", BY_NAME)
def test_rows_of_a_dataset_have_one_right_choice_in_every_place_equally_often(name):
    made = BY_NAME[name]
    rows = study_suite.make_rows(made, seed=3)
    facts = set(made.facts)
    for row in rows:
        right = [(row["subject"], choice) in facts for choice in row["choices"]]
        assert right == [place == row["label"] for place in range(len(row["choices"]))]
        assert made.lure.get(row["subject"], row["choices"][0]) in row["choices"]
        assert row["name"] != row["other"]
    counts = Counter(row["label"] for row in rows)
    assert set(counts.values()) == {study_suite.ROWS // made.choices}
    assert rows == study_suite.make_rows(made, seed=3)
    assert rows != study_suite.make_rows(made, seed=4)


def test_the_tasks_render_and_their_words_are_those_that_the_base_reads():
    names = study_suite.define_study_tasks(seed=0, rows=6)
    specs = task_selection.select_tasks(names, evaluation=True)
    assert len(specs) == 36
    known = set(" ".join(mini.make_statements(0)).split())
    for spec in specs:
        examples = task_rows.load_examples(spec, Source())
        assert len(examples) == 6
        for example in examples:
            assert set(example.input.split()) <= known
            assert example.target in example.choices


def test_differences_of_one_dataset_kind_are_a_t_test_over_seeds():
    by_seed = np.array([0.10, 0.04, -0.02, 0.08, 0.05])
    found = study.estimate_difference(np.tile(by_seed[:, None], 4))
    expected = stats.ttest_1samp(by_seed, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(by_seed.mean())
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(interval))


def test_seeds_and_datasets_that_differ_both_widen_the_interval():
    # Mean squares by hand: seeds 2 * 0.005, datasets 2 * 0.02, rest 0; variance (0.01 + 0.04) / 4.
    found = study.estimate_difference(np.array([[0.0, 0.2], [0.1, 0.3]]))
    assert found.mean == pytest.approx(0.15)
    freedom = 0.0125**2 / (0.0025**2 + 0.01**2)
    half = np.sqrt(0.0125) * stats.t.ppf(0.975, freedom)
    assert (found.low, found.high) == pytest.approx((0.15 - half, 0.15 + half))


@pytest.mark.parametrize("deviations", [(0.05, 0.05, 0.05), (0.0, 0.05, 0.05), (0.05, 0.0, 0.02)])
def test_where_nothing_differs_the_test_rejects_one_in_twenty_at_most(deviations):
    rng = np.random.default_rng(0)
    of_seed, of_dataset, of_pair = deviations
    rejected = 0
    for _ in range(2000):
        table = rng.normal(0, of_seed, (5, 1)) + rng.normal(0, of_dataset, (1, 12))
        rejected += study.estimate_difference(table + rng.normal(0, of_pair, (5, 12))).p < 0.05
    assert rejected / 2000 < 0.065


def test_one_seed_has_a_difference_and_no_test():
    assert study.estimate_difference(np.array([[0.25, 0.75]])) == study.MixedDifference(0.5)


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "ia3"])
def test_every_method_of_the_study_is_one(kind):
    small, large = (study.list_methods(kind, few_shot=full, full=full) for full in (False, True))
    assert set(small) < set(large)
    methods = parse_methods(large)
    routers = {method.router for method in methods}
    assert ({"hilora", "genknowsub", "phatgoose"} <= routers) == (kind == "lora")
    assert {method.labels for method in parse_methods(small)} == {"none"}


def result(**accuracies):
    """What a seed left: accuracies of methods, the same on every dataset but for what the dataset adds."""
    names = [made.name for made in study_suite.DATASETS]
    return {
        "rows": 8,
        "labels": dict.fromkeys(accuracies, "none") | {"oracle": "hindsight"},
        "accuracies": {
            method: {name: value + 0.01 * place for place, name in enumerate(names)}
            for method, value in {**accuracies, "oracle": 0.9}.items()
        },
    }


def test_the_table_has_the_best_first_and_hindsight_last_and_differences_to_both_baselines():
    results = {
        1: result(base=0.30, multitask=0.50, roe=0.60),
        2: result(base=0.34, multitask=0.52, roe=0.66),
    }
    lines = study.make_table("lora", results)
    rows = [line.split(" | ") for line in lines[4:]]
    assert [row[0].strip("| ") for row in rows] == ["`roe`", "`multitask`", "`base`", "`oracle` †"]
    assert rows[0][1] == "68.5"
    assert rows[0][5].startswith("+12.0 [")
    assert rows[0][7].startswith("+31.0 [")
    assert "seeds 1, 2" in lines[0]
