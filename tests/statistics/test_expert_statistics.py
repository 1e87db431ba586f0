"""A run takes statistics of what its experts were trained on, once, and merges and routes by them."""

import jax
import numpy as np
import pytest

from elm_jax import cli
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.merging import merge, merger
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.statistics import estimators as engine
from elm_jax.statistics import expert_statistics
from elm_jax.tasks import data_source
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

ROWS = 5


@pytest.fixture
def run(tmp_path):
    """A run of a tiny base, with a LoRA expert for each of four tasks and one for two of them together."""
    workspace = Workspace.open(tmp_path / "run", create=True)
    config = find_config(
        "tiny",
        vocab_size=128,
        emb_dim=8,
        num_heads=2,
        head_dim=4,
        mlp_dim=12,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    base = base_model.make_base(config, init_params(jax.random.key(0), config))
    elm.save(workspace.base, base)
    specs = task_selection.select_tasks(["mini_sentiment_film", "mini_size_animal"])
    texts = [
        row.input for spec in specs for row in task_rows.load_examples(spec, data_source.Source(limit=20))
    ]
    sentencepiece.train(
        texts, workspace.base / opening.VOCABULARY_FILE, 96, kind="word", extra_ids=opening.EXTRA_IDS
    )
    settings.save_run_settings(
        workspace, None, data_source.Source(limit=20), data_source.Lengths(prompt=24, answer=8)
    )
    library = Library.open(workspace.library, create=True)
    rng = np.random.default_rng(0)
    recipes = {spec.id: {} for spec in specs} | {"mini_both/all": {"tasks": [spec.id for spec in specs[::2]]}}
    for name, recipe in recipes.items():
        fresh = ex.init_expert(
            "lora", jax.random.key(0), base.params, {"rank": 2, "projections": ("query", "wo")}
        )
        tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), fresh)
        spec = ExpertSpec(name, "lora", base.fingerprint, tuple(paths.flatten(tree)), ("d",), 1, recipe)
        library.add(Expert(spec, tree))
    return opening.open_run(workspace.root)


def experts_of(run):
    return list(Library.open(run.workspace.library).ids())


def rows_of(run, expert, count):
    spec = Library.open(run.workspace.library).spec(expert)
    examples = [example for _, example in expert_statistics.sample_training_rows(spec, run.source, count)]
    found = task_rows.tokenize_task(examples, run.tokenizer, run.lengths)
    return list(found.inputs), list(found.targets)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_a_merge_takes_the_statistics_that_it_wants(run, method, capsys):
    first, second = experts_of(run)[1:3]
    made = merge.merge(run, [first, second], method, rows=ROWS)
    assert f"statistics for {method}: done" in capsys.readouterr().err
    library = Library.open(run.workspace.library)
    plan = merge.plan_run_merge(run.workspace, [first, second], method)
    wanted = plan.statistics_shapes
    given = [
        expert_statistics.ESTIMATORS[method](
            run.base.config, run.base.params, library.load_expert(expert), *rows_of(run, expert, ROWS), wanted
        )
        for expert in (first, second)
    ]
    assert [{path: value.shape for path, value in own.items()} for own in given] == [dict(wanted)] * 2
    experts = [library.load_expert(first), library.load_expert(second)]
    by_hand = merger.merge(
        plan,
        experts,
        base=run.base.params,
        statistics=given,
    )
    assert made.spec == by_hand.spec
    for path, value in paths.flatten(by_hand.params).items():
        np.testing.assert_array_equal(paths.flatten(made.params)[path], value)


def test_what_was_computed_is_kept_until_expert_or_rows_change(run, monkeypatch):
    first, second = experts_of(run)[1:3]
    computed = []
    compute = engine.fisher_statistics

    def counted(config, base, expert, *rest):
        computed.append(expert.spec.id)
        return compute(config, base, expert, *rest)

    monkeypatch.setitem(expert_statistics.ESTIMATORS, "fisher", counted)
    made = [merge.merge(run, [first, second], "fisher", rows=ROWS) for _ in range(2)]
    assert computed == [first, second]
    assert made[0].spec == made[1].spec
    library = Library.open(run.workspace.library)
    other = library.load_expert(second)
    library.add(Expert(other.spec, jax.tree.map(lambda leaf: 2 * leaf, other.params)), replace=True)
    merge.merge(run, [first, second], "fisher", rows=ROWS)
    assert computed[2:] == [second]
    merge.merge(run, [first, second], "fisher", rows=ROWS + 1)
    assert computed[3:] == [first, second]
    (file, *_) = run.workspace.statistics.glob("*/*/fisher.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    merge.merge(run, [first, second], "fisher", rows=ROWS + 1)
    assert len(computed) == 6


def test_mean_inputs_are_one_for_every_projection_that_an_expert_changes(run):
    expert = experts_of(run)[1]
    found = expert_statistics.load_mean_inputs(run, expert, rows=ROWS)
    owned = Library.open(run.workspace.library).spec(expert).paths
    assert {f"{path}/lora_a" for path in found} == {path for path in owned if path.endswith("lora_a")}
    assert found["encoder/layers/mlp/wo"].shape == (1, 12)
    assert found["decoder/layers/self_attention/query"].shape == (1, 8)
    prompts, _ = rows_of(run, expert, ROWS)
    embedding = np.asarray(run.base.params["token_embedder"]["embedding"], np.float64)
    embedded = np.concatenate([embedding[np.asarray(row)] for row in prompts])
    scale = np.asarray(paths.flatten(run.base.params)["encoder/layers/pre_attention_layer_norm/scale"])[0]
    normed = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + 1e-6) * scale[None]
    np.testing.assert_allclose(
        found["encoder/layers/attention/query"][0], normed.mean(0), rtol=1e-3, atol=1e-5
    )


def test_an_expert_on_several_tasks_has_rows_of_each_of_them(run):
    spec = Library.open(run.workspace.library).spec("mini_both/all")
    found = expert_statistics.sample_training_rows(spec, run.source, ROWS)
    assert [task.id for task, _ in found] == [spec.recipe["tasks"][0]] * 3 + [spec.recipe["tasks"][1]] * 2


def test_mean_inputs_are_of_lora_alone(run):
    expert = experts_of(run)[1]
    library = Library.open(run.workspace.library)
    tree = jax.tree.map(np.asarray, ex.init_expert("ia3", jax.random.key(0), run.base.params))
    owned = tuple(paths.flatten(tree))
    library.add(Expert(ExpertSpec(expert, "ia3", run.base.fingerprint, owned, ("d",), 1), tree), replace=True)
    with pytest.raises(UserError, match=f"LoRA expert.*{expert!r}"):
        expert_statistics.load_mean_inputs(run, expert)


def test_the_command_takes_them_and_says_so(run, capsys):
    first, second = experts_of(run)[1:3]
    asked = ["merge", first, second, "--method", "regmean", "--rows", str(ROWS), "--id", "mine/both"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked, "--run", str(run.workspace.root)])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith("mine/both\n")
    assert "statistics for regmean" in said.err
    recipe = Library.open(run.workspace.composites).spec("mine/both").recipe
    assert len(recipe["statistics"]) == 2


def test_a_merged_expert_has_no_rows_of_its_own(run):
    first, second = experts_of(run)[1:3]
    made = merge.merge(run, [first, second]).spec.id
    with pytest.raises(UserError, match=f"training rows.*'{made}'"):
        merge.merge(run, [first, made], "fisher")
