"""Options of new experts: those of the library that they join, so that all can be merged."""

from elm_jax.experts.library import Library
from elm_jax.training import estimate, train
from tests.training_configs import train_config


def test_a_new_expert_has_the_librarys_width_and_its_recipe_and_the_dry_run_say_so(make_run):
    run = make_run(experts=("mini_size_animal/than a dog",), keyed=False)
    told = []
    asked = {"config": train_config(steps=1, batch_size=2, dropout=0.0), "on_estimate": told.append}
    task = "mini_sentiment_film/after the film"
    assert train.train(run, [task], dry_run=True, **asked) == []
    assert ("experts", "1 of kind bottleneck (width 4), 1 at a time") in estimate.tables(told[0])[1].rows
    train.train(run, [task], **asked)
    library = Library.open(run.workspace.library)
    assert library.spec(task).recipe["options"] == {"width": 4}
    first, second = (library.describe(expert).shapes for expert in library.ids())
    assert first == second
