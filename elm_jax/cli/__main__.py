"""`python -m elm_jax.cli` is `elm`."""

from elm_jax.cli.command_line import main

main()
