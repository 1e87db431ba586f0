"""Starts T5X's own train.py, eval.py or infer.py, unchanged, with our gin files on its search path.

    python -m elm_jax.t5x.launch train --gin_file=gin/t5x/prompt_expert.gin --gin.MODEL_DIR="'out'" …

The flags after the script's name are T5X's own; on several hosts those of `elm train` too, --multiprocess and
--coordinator_address, --process_count and --process_index where the cluster does not say these.
"""

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.launch import hosts, interrupts
from elm_jax.t5x import budgets, imports, preflight

SCRIPTS = ("train", "eval", "infer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of T5X's scripts with the arguments; a UserError is one sentence and code 2, Ctrl-C is 130."""
    with interrupts.exit_on_signals(to_process_end=arguments is None):
        try:
            run_script(sys.argv[1:] if arguments is None else arguments)
        except UserError as error:
            # Gin adds where it was called from, which does not help the user.
            print(str(error).partition("\n  In call to configurable")[0], file=sys.stderr)
            raise SystemExit(2) from None


def run_script(arguments: Sequence[str]) -> None:
    """Runs one of T5X's scripts as `__main__`, since its gin files refer to that name.

    Args:
        arguments: The script's name and its flags.

    Raises:
        UserError: If T5X is missing, the first argument is not one of `SCRIPTS`, or the run cannot be what it
            says (`preflight`).
    """
    if not arguments or arguments[0] not in SCRIPTS:
        got = repr(arguments[0]) if arguments else "nothing"
        raise UserError(
            f"Expected one of T5X's scripts first, {', '.join(SCRIPTS)}, got {got}. Fix: give a script "
            "and its flags."
        )
    imports.require_t5x()
    address, arguments = _take_address(arguments)
    arguments = [*arguments, *_check(arguments)]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if address is not None:
        hosts.join(address)
    imports.import_t5x()
    script = importlib.util.find_spec(f"t5x.{arguments[0]}")
    assert script is not None
    assert script.origin is not None

    import gin

    gin.add_config_file_search_path(str(storage.SHIPPED))
    previous, sys.argv = sys.argv, [script.origin, *arguments[1:]]
    try:
        runpy.run_path(script.origin, run_name="__main__")
    finally:
        sys.argv = previous


def _take_address(arguments: Sequence[str]) -> tuple[hosts.HostAddress | None, list[str]]:
    """Returns how this process finds the others if there are any, and the flags that are T5X's own."""
    if "--multiprocess" not in arguments:
        return None, list(arguments)
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--multiprocess", action="store_true")
    parser.add_argument("--coordinator_address")
    parser.add_argument("--process_count", type=int)
    parser.add_argument("--process_index", type=int)
    given, rest = parser.parse_known_args(arguments)
    return hosts.HostAddress(given.coordinator_address, given.process_count, given.process_index), rest


def _check(arguments: Sequence[str]) -> list[str]:
    """Refuses what would fail later, and returns flags with the paper's budget where the recipe has none."""
    recipe = preflight.read_recipe(arguments[1:])
    preflight.require_runnable(recipe)
    if arguments[0] != "train":
        return []
    macros = preflight.get_literals(recipe)
    source = preflight.read_source(recipe)
    found = budgets.complete_budget(macros, source, macros.get("TASK_FILES", ()))
    return [f"--gin.{name}={value!r}" for name, value in found.items()]


if __name__ == "__main__":
    main()
