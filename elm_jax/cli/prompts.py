"""`elm prompts`: PromptSource's templates."""

from typing import Annotated

import typer

from elm_jax.cli.help_texts import Command, make_group
from elm_jax.cli.options import AsJson, TemplatesDir
from elm_jax.cli.output import print_json

app = make_group("PromptSource's templates.")


@app.command("fetch", cls=Command)
def prompts_fetch(
    cache: Annotated[
        str | None, typer.Option(help="Directory to write them to; default: elm_jax's cache.")
    ] = None,
    index: Annotated[str | None, typer.Option(help="Package index; default: pip's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download PromptSource's templates into elm_jax's cache.

    They come from the package index; nothing is installed.

    Example: elm prompts fetch
    """
    from elm_jax.prompting import archive

    fetched = archive.fetch_templates(cache=cache, index=index)
    if as_json:
        print_json({"directory": str(fetched.directory), "new": fetched.new})
        return
    print(f"Templates of {fetched.datasets} datasets {'are now' if fetched.new else 'were already'} at")
    print(fetched.directory)


@app.command("list", cls=Command)
def prompts_list(
    dataset: Annotated[str | None, typer.Argument(help="A dataset's folder: its templates by name.")] = None,
    templates_dir: TemplatesDir = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets that have templates, or one's templates.

    Example: elm prompts list ag_news
    """
    from elm_jax.prompting import archive

    if dataset:
        listing = {
            name: each.answer_choices
            for name, each in archive.load_cached_templates(dataset, templates_dir).items()
        }
    else:
        listing = archive.count_templates(templates_dir)
    if as_json:
        print_json(listing)
        return
    for name, choices in listing.items():
        print(name if choices is None else f"{name:<40} {choices}")
