"""One expert for each cluster of a library's experts, on the tasks of all of its members."""

import numpy as np
import pytest

from elm_jax.cli import main
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.models import paths
from elm_jax.records import Expert
from elm_jax.routing.cluster_training import train_clusters
from elm_jax.training import trainer
from tests.run_fixtures import LORA, TRAINED, add_expert
from tests.training_configs import train_config

CONFIG = train_config(kind=LORA[0], options=dict(LORA[1]), steps=2, batch_size=4)


@pytest.fixture(scope="module")
def run(make_run):
    """Experts of which the first and the last are alike, and the other two."""
    made = make_run(LORA, keyed=False)
    library = Library.open(made.workspace.library)
    for like, name in ((TRAINED[0], TRAINED[3]), (TRAINED[1], TRAINED[2])):
        flat = paths.flatten(library.load_expert(like).params)
        near = {path: (1.001 * leaf).astype(np.float32) for path, leaf in flat.items()}
        library.add(Expert(library.spec(name), paths.unflatten(near)), replace=True)
    return made


def test_each_cluster_has_an_expert_on_its_members_tasks_which_is_trained_once(run, monkeypatch):
    assert train_clusters(run, 2, CONFIG) == ["mbc2/1", "mbc2/2"]
    library = Library.open(run.workspace.library)
    tasks = [set(library.spec(f"mbc2/{number}").recipe["tasks"]) for number in (1, 2)]
    assert sorted(map(sorted, tasks)) == sorted([sorted([TRAINED[0], TRAINED[3]]), sorted(TRAINED[1:3])])
    assert library.spec("mbc2/1").datasets == ("mini_sentiment_film", "mini_size_animal")

    def never(*arguments, **options):
        raise AssertionError("experts were trained again")

    monkeypatch.setattr(trainer, "train", never)
    assert train_clusters(run, 2, CONFIG) == ["mbc2/1", "mbc2/2"]


@pytest.mark.parametrize("count", [0, 5])
def test_there_are_no_more_clusters_than_experts(run, count):
    with pytest.raises(UserError, match="from 1 to 4 clusters"):
        train_clusters(run, count, CONFIG)


@pytest.mark.parametrize("beside", [[TRAINED[0]], ["--multitask", "all"], ["--as", "dataset"]])
def test_the_command_takes_no_tasks_beside_clusters(run, beside):
    with pytest.raises(SystemExit) as end:
        main(["train", "--run", str(run.workspace.root), "--kind", "lora", "--clusters", "2", *beside])
    assert end.value.code == 2


def test_experts_of_several_shapes_are_refused(make_run):
    other = make_run(LORA, keyed=False)
    add_expert(other, TRAINED[0], "lora", {"rank": 3, "projections": ("query",)})
    with pytest.raises(UserError):
        train_clusters(other, 2, CONFIG)
