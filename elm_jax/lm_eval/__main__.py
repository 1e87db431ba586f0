"""The launcher of lm-eval: its own command line, unchanged, with `elm` among its models."""

import importlib.util
import sys

from elm_jax.errors import UserError

INSTALL = "Run `pip install 'elm_jax[lm-eval]'`."


def main() -> None:
    """Runs lm-eval's command with the arguments that came; a UserError ends with code 2."""
    try:
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(f"lm-eval is wanted, but it is not installed. {INSTALL}")
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

        from elm_jax.lm_eval import model

        assert model.ElmLM
        cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
