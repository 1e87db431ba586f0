"""The launcher of T5X: its own train.py, eval.py or infer.py, unchanged, where our gin files are found.

    python -m elm_jax.t5x.launch train --gin_file=gin/t5x/prompt_expert.gin --gin.MODEL_DIR="'out'" …

What follows the script's name are T5X's own flags.
"""

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.t5x import imports

SCRIPTS = ("train", "eval", "infer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of T5X's scripts as `__main__`, which its gin files refer to; a UserError ends with code 2."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        # Gin adds where it was called from, which helps nobody who can mend the mistake.
        print(str(error).partition("\n  In call to configurable")[0], file=sys.stderr)
        raise SystemExit(2) from None


def run(arguments: Sequence[str]) -> None:
    """Runs one of T5X's scripts with its flags.

    Raises a UserError where T5X is absent, or the first argument is no script of its.
    """
    if not arguments or arguments[0] not in SCRIPTS:
        came = repr(arguments[0]) if arguments else "nothing"
        raise UserError(
            f"One of T5X's scripts is wanted first, {', '.join(SCRIPTS)}, then its flags, but {came} came."
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    imports.load()
    script = importlib.util.find_spec(f"t5x.{arguments[0]}")
    assert script is not None
    assert script.origin is not None

    import gin

    gin.add_config_file_search_path(str(storage.SHIPPED))
    given, sys.argv = sys.argv, [script.origin, *arguments[1:]]
    try:
        runpy.run_path(script.origin, run_name="__main__")
    finally:
        sys.argv = given


if __name__ == "__main__":
    main()
