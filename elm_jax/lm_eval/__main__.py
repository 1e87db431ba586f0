"""Starts lm-eval's own command line with `elm` among its models, for one method or for several in one run."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.extras import install_command
from elm_jax.launch import interrupts


def main() -> None:
    """Runs lm-eval's command line; a UserError is one sentence and exit code 2.

    `--method`, which is ours and may come several times, is a method as `elm evaluate` takes it. Each is
    evaluated in its turn, over one base, with all that lm-eval is told beside it.
    """
    with interrupts.exit_on_signals(to_process_end=True):
        _evaluate()


def _evaluate() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", action="append", default=[])
    given, words = parser.parse_known_args()
    try:
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(
                f"Expected lm-eval, got no package lm_eval. Fix: run `{install_command('lm-eval')}`."
            )
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

        from elm_jax.lm_eval import model

        assert model.ElmLM
        if given.method:
            _evaluate_methods(given.method, words)
        else:
            cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _evaluate_methods(methods: Sequence[str], words: Sequence[str]) -> None:
    """Runs lm-eval's command once for each method, all of which are checked before the first.

    What lm-eval calls the model is the method's name: its tables, and the directory of its results, have it.
    """
    from lm_eval.__main__ import HarnessCLI  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import setup_logging  # pyright: ignore[reportMissingImports]

    from elm_jax.evaluation.evaluate import check_methods
    from elm_jax.evaluation.methods import parse_methods
    from elm_jax.lm_eval.model import ElmLM
    from elm_jax.session import opening
    from elm_jax.session.workspace import Workspace

    setup_logging()
    sys.argv[1:] = words
    command = HarnessCLI()
    told = command.parse_args()
    arguments = dict(getattr(told, "model_args", None) or {})
    chosen = sorted({"expert", "router"} & arguments.keys())
    if "run" not in arguments or chosen:
        got = f"{chosen[0]}=" if chosen else "none"
        raise UserError(
            f"Expected --model_args run=DIR beside --method, without an expert or a router, got {got}. Fix: "
            "name the run there, and experts and routers with --method."
        )
    check_methods(Workspace.at(arguments["run"]), methods)
    arguments["run"], where = opening.open_run(arguments["run"]), arguments["run"]
    names_of_methods = [method.name for method in parse_methods(methods)]
    models = [ElmLM(**{**arguments, "router": method}) for method in methods]
    for name, method, model in zip(names_of_methods, methods, models, strict=True):
        cache = told.use_cache and f"{told.use_cache}_{names.directory_name(name)}"
        # The model is made already; these arguments are what lm-eval writes beside its results.
        own = {**arguments, "model": name, "method": method, "run": str(where)}
        command.execute(
            argparse.Namespace(**{**vars(told), "model": model, "model_args": own, "use_cache": cache})
        )


if __name__ == "__main__":
    main()
