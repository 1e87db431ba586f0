"""`elm quickstart`: the whole path on the embedded suite."""

from elm_jax.cli.options import DEFAULT_OUT, Out, Seed, Wait
from elm_jax.cli.output import print_outcome


def quickstart(out: Out = DEFAULT_OUT, seed: Seed = 0, wait: Wait = False) -> None:
    """The whole path on the embedded suite, on a CPU, ending in a report."""
    from elm_jax.pipelines import quickstart as quickstarts

    print_outcome(quickstarts.quickstart(out=out, seed=seed, wait=wait))
