"""`elm run`: a whole recipe."""

from elm_jax.cli.flags import flattened
from elm_jax.cli.options import AsJson, RecipeFlags, Wait
from elm_jax.cli.output import print_outcome
from elm_jax.errors import UserError


@flattened
def run(wait: Wait = False, as_json: AsJson = False, *, recipe: RecipeFlags) -> None:
    """Do a whole recipe: train, index, route, merge, evaluate, report.

    Example: elm run --gin_file=gin/recipes/dream_to_story_cloze.gin --gin.DATA_DIR=data
    """
    from elm_jax.launch import recipes
    from elm_jax.pipelines import pipeline

    files = recipe.files("gin/runs/pipeline.gin")
    if not files:
        raise UserError(
            "Expected a recipe, got none. Fix: run elm run --gin_file=gin/recipes/NAME.gin "
            "[--gin.MACRO=VALUE ...], or elm run --config FILE.yaml."
        )
    bindings = [*(recipe.gin_bindings or []), *(["WAIT = True"] if wait else [])]
    outcome = recipes.bind(pipeline.run_pipeline, files, bindings)()
    recipes.write_config("run")
    print_outcome(outcome, as_json)
