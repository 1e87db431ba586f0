"""`elm run`: a whole recipe."""

from elm_jax.cli.flags import flattened
from elm_jax.cli.options import RecipeFlags, Wait
from elm_jax.cli.output import print_outcome
from elm_jax.errors import UserError


@flattened
def run(wait: Wait = False, *, recipe: RecipeFlags) -> None:
    """A whole recipe: train, index, route, merge, evaluate, report."""
    from elm_jax.launch import recipes
    from elm_jax.pipelines import pipeline

    if not recipe.gin_file:
        raise UserError(
            "Expected a recipe, got none. Fix: run elm run --gin_file=gin/recipes/NAME.gin "
            "[--gin.MACRO=VALUE ...]."
        )
    bindings = [*(recipe.gin_bindings or []), *(["WAIT = True"] if wait else [])]
    print_outcome(recipes.bind(pipeline.run_pipeline, recipe.gin_file, bindings)())
