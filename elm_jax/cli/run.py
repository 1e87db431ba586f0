"""`elm run`: a whole recipe."""

from elm_jax.cli.flags import flattened
from elm_jax.cli.options import RecipeFlags
from elm_jax.cli.output import print_outcome
from elm_jax.errors import UserError


@flattened
def run(*, recipe: RecipeFlags) -> None:
    """A whole recipe: train, index, route, merge, evaluate, report."""
    from elm_jax.launch import recipes
    from elm_jax.pipelines import pipeline

    if not recipe.gin_file:
        raise UserError(
            "Expected a recipe, got none. Fix: run elm run --gin_file=gin/recipes/NAME.gin "
            "[--gin.MACRO=VALUE ...]."
        )
    print_outcome(recipes.bind(pipeline.run_pipeline, recipe.gin_file, recipe.gin_bindings or [])())
