"""`elm prompts`: PromptSource's templates."""

import json
from typing import Annotated

import typer

from elm_jax.cli.options import AsJson, TemplatesDir

app = typer.Typer(help="PromptSource's templates.", no_args_is_help=True)


@app.command("fetch")
def prompts_fetch(
    cache: Annotated[
        str | None, typer.Option(help="Directory to write them to; default: elm_jax's cache.")
    ] = None,
    index: Annotated[str | None, typer.Option(help="Package index; default: pip's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download PromptSource's templates from the package index into the cache; nothing is installed."""
    from elm_jax.prompting import archive

    fetched = archive.fetch_templates(cache=cache, index=index)
    if as_json:
        print(json.dumps({"directory": str(fetched.directory), "new": fetched.new}))
        return
    print(f"Templates of {fetched.datasets} datasets {'are now' if fetched.new else 'were already'} at")
    print(fetched.directory)


@app.command("list")
def prompts_list(
    dataset: Annotated[str | None, typer.Argument(help="A dataset's folder: its templates by name.")] = None,
    templates_dir: TemplatesDir = None,
    as_json: AsJson = False,
) -> None:
    """The datasets that have templates, or one dataset's templates."""
    from elm_jax.prompting import archive

    if dataset:
        listing = {
            name: each.answer_choices
            for name, each in archive.load_cached_templates(dataset, templates_dir).items()
        }
    else:
        listing = archive.count_templates(templates_dir)
    if as_json:
        print(json.dumps(listing, ensure_ascii=False))
        return
    for name, choices in listing.items():
        print(name if choices is None else f"{name:<40} {choices}")
