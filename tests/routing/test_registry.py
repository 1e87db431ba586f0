"""A router of one's own is registered by a decorator, and every verb then knows it."""

import json

import pytest

import elm_jax
from elm_jax import cli
from elm_jax.errors import UserError
from elm_jax.evaluation import methods
from elm_jax.routing import table
from elm_jax.routing.inputs import find_allowed_experts
from tests.run_fixtures import TRAINED, UNSEEN

FILE = """
import elm_jax
from elm_jax.routing.inputs import find_allowed_experts


@elm_jax.register_router("last")
def choose_last(queries, index, *, exclude=(), count: int = 1):
    '''The last experts of the library.'''
    allowed = find_allowed_experts(index, exclude)
    chosen = [expert for expert, may in zip(index.experts, allowed) if may][-count:]
    return elm_jax.Selection(queries.task, "last", dict.fromkeys(chosen, 1 / count), votes={}, queries=())
"""


pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


def register_nearest(**how):
    @elm_jax.register_router("nearest", **{"reads": ("vectors",), **how})
    def nearest(queries: elm_jax.Queries, index: elm_jax.KeyIndex, *, exclude=(), take: int = 1):
        """The experts of the keys with the largest product with the first query."""
        allowed = find_allowed_experts(index, exclude)[index.expert_of_row]
        order = (-(index.vectors @ queries.vectors[0])).argsort()
        best = dict.fromkeys(index.experts[index.expert_of_row[row]] for row in order if allowed[row])
        weights = dict.fromkeys(list(best)[:take], 1 / take)
        return elm_jax.Selection(queries.task, "nearest", weights, {}, queries.row_ids[:1])

    return nearest


def test_a_registered_router_chooses_for_a_task_with_its_options(run):
    register_nearest()
    found = elm_jax.route(run, UNSEEN, router="nearest", options={"take": 2}, queries=3)
    assert [selection.router for selection in found] == ["nearest_top1,take=2"] * 2
    assert all(len(selection.weights) == 2 for selection in found)
    assert all(set(selection.weights) <= set(TRAINED) for selection in found)


def test_an_evaluation_takes_it_as_a_method_with_a_merge(run, unseen):
    register_nearest()
    outcome = elm_jax.evaluate(
        run, unseen, elm_jax.EvaluationConfig(methods=["nearest:take=2+average"], queries=3)
    )
    assert {row.method for row in outcome.report.rows} == {"base", "nearest:take=2+average"}
    with pytest.raises(UserError, match=r"'tkae'.*'take'"):
        methods.parse_method("nearest:tkae=2")


def test_errors_list_it(run):
    register_nearest()
    with pytest.raises(UserError, match=r"'nearset'.*'nearest'"):
        elm_jax.route(run, UNSEEN, router="nearset")
    with pytest.raises(UserError, match=r"'arrow'.* nearest"):
        elm_jax.route(run, UNSEEN, router="arrow")


def test_the_command_line_takes_it_from_a_file_of_python(run, tmp_path, capsys):
    file, where = tmp_path / "last_router.py", str(run.workspace.root)
    file.write_text(FILE)
    how = ["--router", "last", "--option", "count=2", "--json"]
    cli.app(["route", UNSEEN, "--run", where, "--tasks", str(file), *how], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    library = elm_jax.Library.open(run.workspace.library)
    assert [list(selection["weights"]) for selection in told] == [list(library.ids()[-2:])] * 2
    cli.app(["route", "--routers", "--tasks", str(file)], standalone_mode=False)
    listed = capsys.readouterr().out
    assert "last               The last experts of the library\n" in listed
    assert "count (default: 1)" in listed


def test_the_run_remembers_the_file_so_that_an_evaluation_knows_the_router(run, tmp_path):
    file = tmp_path / "remembered_router.py"
    file.write_text(FILE.replace('router("last")', 'router("tail")'))
    elm_jax.open_run(run.workspace.root, task_files=[file])
    del table.ROUTERS["tail"]
    outcome = elm_jax.evaluate(
        run.workspace.root,
        UNSEEN,
        elm_jax.EvaluationConfig(methods=["tail:count=2+average"]),
        dry_run=True,
    )
    assert outcome is None
    assert "tail" in table.ROUTERS


@pytest.mark.parametrize("name", ["roe", "base", "multitask", "a-b", ""])
def test_a_name_that_is_taken_or_no_identifier_is_refused(name):
    with pytest.raises(UserError, match=repr(name)):
        elm_jax.register_router(name)(lambda queries, index, exclude=(): None)


def test_a_level_or_an_input_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"'tokens'.*'token'"):
        register_nearest(level="tokens")
    with pytest.raises(UserError, match=r"'vector'.*'vectors'"):
        register_nearest(reads=("vector",))


def test_the_same_function_may_be_registered_again():
    register_nearest()
    again = register_nearest()
    assert table.find_router("nearest").route is again
