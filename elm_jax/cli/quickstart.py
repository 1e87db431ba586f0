"""`elm quickstart`: the whole path on the embedded suite."""

from elm_jax.cli.options import DEFAULT_OUT, AsJson, Out, Seed, Wait
from elm_jax.cli.output import print_outcome


def quickstart(out: Out = DEFAULT_OUT, seed: Seed = 0, wait: Wait = False, as_json: AsJson = False) -> None:
    """See the whole method work on small tasks, in minutes on a CPU.

    It trains experts, routes, merges and scores them, and ends in a report.

    Example: elm quickstart --out elm_out
    """
    from elm_jax.pipelines import quickstart as quickstarts

    print_outcome(quickstarts.quickstart(out=out, seed=seed, wait=wait), as_json)
