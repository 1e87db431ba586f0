"""`python -m elm_jax.cli` is `elm`."""

from elm_jax.cli import main

main()
