"""Table of merging methods: every way to make several experts one, by name.

All are called alike, by `merger.merge(name, experts, weights=None, base=None, **options) -> Expert`, and are
judged beforehand by `plan.plan`. What they can merge:

                     bottleneck    lora          ia3     full    needs
    average          factors       factors       values  values
    concatenate      side by side  side by side  no      no
    task_arithmetic  adapters=     ΔW            ΔW      ΔW      the base, for full experts and norm scales
    ties             adapters=     ΔW            ΔW      ΔW      the same
    dare             adapters=     ΔW            ΔW      ΔW      the same
    slerp            adapters=     ΔW            ΔW      ΔW      the same; the order of experts matters
    regmean          no            ΔW            ΔW      ΔW      Gram matrices of inputs
    fisher           adapters=     ΔW            ΔW      ΔW      squared gradients

An adapter has no ΔW. Where `adapters=` stands, methods refuse bottlenecks unless this option, "average" or
"concatenate", says how adapters are merged; then only norm scales, which have a ΔW, go by the method.
"""

from collections.abc import Mapping

from elm_jax import names
from elm_jax.merging import (
    average,
    concatenate,
    dare,
    fisher,
    regmean,
    slerp,
    task_arithmetic,
    ties,
)
from elm_jax.merging.method import Method

METHODS: Mapping[str, Method] = {
    "average": average.METHOD,
    "concatenate": concatenate.METHOD,
    "task_arithmetic": task_arithmetic.METHOD,
    "ties": ties.METHOD,
    "dare": dare.METHOD,
    "slerp": slerp.METHOD,
    "regmean": regmean.METHOD,
    "fisher": fisher.METHOD,
}


def find(name: str) -> Method:
    """Returns the method of that name, or an error with the nearest names."""
    return METHODS[names.resolve(name, METHODS, kind="merging method", where="the table of methods")]
