"""A merge of one's own is registered by a decorator, and every verb then knows it."""

import json

import numpy as np
import pytest

import elm_jax
from elm_jax import cli
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.merging import plan, table
from elm_jax.models import paths
from tests.run_fixtures import LORA, TRAINED

from .conftest import KINDS, LAST, NORM, QUERY, change, merge, values

FILE = """
import elm_jax


@elm_jax.register_merge("first", works_on="parameters")
def first(inputs, *, scale: float = 1.0):
    '''The first expert, scaled.'''
    return [scale * leaf for leaf in inputs.values[0]]
"""


pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(LORA)


def register_largest():
    @elm_jax.register_merge("largest")
    def largest(changes, inputs, *, scale: float = 1.0):
        """The change that is largest, value by value."""
        stacked = np.stack(list(changes))
        winner = np.abs(stacked).argmax(axis=0)[None]
        return np.float32(scale) * np.take_along_axis(stacked, winner, axis=0)[0]

    return largest


def test_a_registered_merge_works_on_the_changes_of_every_kind_with_its_options(expert, toy_base):
    register_largest()
    one, two, base = values(expert("full", "a")), values(expert("full", "b")), paths.flatten(toy_base)
    got = values(merge("largest", [expert("full", name) for name in "ab"], base=toy_base, scale=0.5))
    for path in (f"{QUERY}/kernel", LAST):
        ours, theirs = one[path] - base[path], two[path] - base[path]
        wanted = base[path] + 0.5 * np.where(np.abs(ours) >= np.abs(theirs), ours, theirs)
        np.testing.assert_allclose(got[path], wanted, rtol=1e-5, atol=1e-5)
    got = merge("largest", [expert("lora", name) for name in "ab"], rank=6)
    ours, theirs = (change(expert("lora", name), QUERY) for name in "ab")
    wanted = np.where(np.abs(ours) >= np.abs(theirs), ours, theirs)
    np.testing.assert_allclose(change(got, QUERY), wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="'bottleneck'"):
        merge("largest", [expert("bottleneck", name) for name in "ab"], base=toy_base)
    got = merge("largest", [expert("bottleneck", name) for name in "ab"], base=toy_base, adapters="average")
    assert NORM in values(got)


@pytest.mark.parametrize("kind", KINDS)
def test_a_registered_merge_of_parameters_gets_every_group(expert, kind):
    @elm_jax.register_merge("summed", works_on="parameters")
    def add(inputs):
        return [sum(map(np.asarray, leaves)) for leaves in zip(*inputs.values, strict=True)]

    one, two = expert(kind, "a"), expert(kind, "b")
    for path, value in values(merge("summed", [one, two])).items():
        np.testing.assert_allclose(value, values(one)[path] + values(two)[path], rtol=1e-6)


def test_an_evaluation_takes_it_after_a_router(run, unseen):
    register_largest()
    outcome = elm_jax.evaluate(
        run, unseen, elm_jax.EvaluationConfig(methods=["roe:experts=2+largest:scale=0.5"], queries=3)
    )
    assert {row.method for row in outcome.report.rows} == {"base", "roe:experts=2+largest:scale=0.5"}
    with pytest.raises(UserError, match=r"'scael'.*'scale'"):
        elm_jax.evaluate(run, unseen, elm_jax.EvaluationConfig(methods=["roe:experts=2+largest:scael=2"]))


def test_a_merge_is_planned_once_in_an_evaluation_as_on_the_command_line(run, unseen, monkeypatch, capsys):
    elm_jax.register_merge("once", works_on="parameters")(lambda inputs: inputs.values[0])
    planned = []
    made = plan.MergePlan

    def counted(*arguments, **fields):
        planned.append(fields["method_name"])
        return made(*arguments, **fields)

    monkeypatch.setattr(plan, "MergePlan", counted)
    elm_jax.evaluate(run, unseen[:1], elm_jax.EvaluationConfig(methods=["uniform+once"]))
    assert planned == ["once"]
    cli.app(["merge", *TRAINED[:2], "--run", str(run.workspace.root)], standalone_mode=False)
    assert planned == ["once", "average"]


def test_the_command_line_takes_it_from_a_file_of_python(run, tmp_path, capsys):
    file, where = tmp_path / "first_merge.py", str(run.workspace.root)
    file.write_text(FILE)
    asked = ["merge", *TRAINED[:2], "--method", "first", "--option", "scale=2", "--id"]
    cli.app([*asked, "mine/first", "--run", where, "--tasks", str(file)], standalone_mode=False)
    assert capsys.readouterr().out.startswith("mine/first")
    library, composites = (Library.open(each) for each in (run.workspace.library, run.workspace.composites))
    for path, value in values(composites.load_expert("mine/first")).items():
        np.testing.assert_allclose(value, 2 * values(library.load_expert(TRAINED[0]))[path], rtol=1e-6)
    cli.app(["merge", "--methods", "--json", "--tasks", str(file)], standalone_mode=False)
    told = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert told["first"]["says"] == "The first expert, scaled"
    assert list(told["first"]["options"]) == ["scale"]
    with pytest.raises(UserError, match=r"'frist'.*'first'"):
        elm_jax.merge(run, TRAINED[:2], "frist")
    del table.MERGES["first"]
    cli.app([*asked, "mine/again", "--run", where], standalone_mode=False)  # the run remembers the file


def test_an_option_that_is_described_is_checked_and_one_without_a_default_is_refused(expert):
    option = elm_jax.MergeOption(float, 0.5, "a share", "a share below 1", lambda value: value < 1)
    elm_jax.register_merge("shared", works_on="parameters", options={"share": option})(
        lambda inputs, *, share: inputs.values[0]
    )
    with pytest.raises(UserError, match=r"below 1 .*'share', got 1\.5"):
        merge("shared", [expert("ia3")], share=1.5)

    def merge_with(inputs, *, share):
        return inputs.values[0]

    with pytest.raises(UserError, match=r"'share' .*'loose'"):
        elm_jax.register_merge("loose", works_on="parameters")(merge_with)


def test_statistics_of_a_registered_merge_come_from_the_caller(run):
    elm_jax.register_merge("weighed", statistics_shape=lambda group, shape: shape)(
        lambda changes, inputs: changes[0] * inputs.statistics[0]
    )
    with pytest.raises(UserError, match="'weighed'"):
        elm_jax.merge(run, TRAINED[:2], "weighed")


@pytest.mark.parametrize("name", ["ties", "a-b", ""])
def test_a_name_that_is_taken_or_no_identifier_is_refused(name):
    with pytest.raises(UserError, match=repr(name)):
        elm_jax.register_merge(name)(lambda changes, inputs: changes[0])
