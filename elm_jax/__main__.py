"""`python -m elm_jax` is `elm`."""

from elm_jax.cli import main

main()
