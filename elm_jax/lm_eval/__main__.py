"""Starts lm-eval's own command line, unchanged, with `elm` among its models."""

import importlib.util
import sys

from elm_jax.errors import UserError
from elm_jax.launch import interrupts

INSTALL = "run `pip install 'elm_jax[lm-eval]'`."


def main() -> None:
    """Runs lm-eval's command line; a UserError is one sentence and exit code 2."""
    with interrupts.exit_on_signals():
        _evaluate()


def _evaluate() -> None:
    try:
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(f"Expected lm-eval, got no package lm_eval. Fix: {INSTALL}")
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

        from elm_jax.lm_eval import model

        assert model.ElmLM
        cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
