"""Table of merge methods: the built-in ones, each registered by its own file.

                     bottleneck    lora          ia3     full    needs
    average          factors       factors       values  values
    concatenate      side by side  side by side  no      no
    task_arithmetic  adapters=     ΔW            ΔW      ΔW      the base, for full experts and norm scales
    ties             adapters=     ΔW            ΔW      ΔW      the same
    dare             adapters=     ΔW            ΔW      ΔW      the same
    della            adapters=     ΔW            ΔW      ΔW      the same
    breadcrumbs      adapters=     ΔW            ΔW      ΔW      the same
    model_stock      adapters=     ΔW            ΔW      ΔW      the same
    sce              adapters=     ΔW            ΔW      ΔW      the same
    consensus        adapters=     ΔW            ΔW      ΔW      the same
    slerp            adapters=     ΔW            ΔW      ΔW      the same; the order of experts matters
    tsvm             no            ΔW            no      ΔW      the same; what is no matrix is averaged
    iso_c            no            ΔW            no      ΔW      the same
    iso_cts          no            ΔW            no      ΔW      the same
    knots            no            ΔW            no      ΔW      the same
    wudi             no            ΔW            no      ΔW      the same; what is no kernel is averaged
    regmean          no            ΔW            ΔW      ΔW      Gram matrices of inputs
    fisher           adapters=     ΔW            ΔW      ΔW      squared gradients; the first is the target

DoRA, VeRA and soft prompts are averaged, and nothing else: what a method on changes made of them could not be
written as one of them.

An adapter has no ΔW. Where `adapters=` stands, methods refuse bottlenecks unless this option, "average" or
"concatenate", says how adapters are merged; then only norm scales, which have a ΔW, go by the method.

A method of one's own is registered in the same way: `registry.register_merge`.
"""

from elm_jax import names
from elm_jax.merging import (
    average,
    breadcrumbs,
    concatenate,
    consensus,
    dare,
    della,
    fisher,
    iso_c,
    iso_cts,
    knots,
    model_stock,
    regmean,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsvm,
    wudi,
)
from elm_jax.merging.method import MergeMethod
from elm_jax.merging.registry import MERGES, register_merge

__all__ = ["MERGES", "find_merge", "register_merge"]

BUILT_IN = (
    average,
    breadcrumbs,
    concatenate,
    consensus,
    dare,
    della,
    fisher,
    iso_c,
    iso_cts,
    knots,
    model_stock,
    regmean,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsvm,
    wudi,
)
"""The files of the built-in methods; importing one registers it."""


def find_merge(name: str) -> MergeMethod:
    """Returns the method of that name.

    Raises:
        UserError: If there is none; it names the nearest ones.
    """
    return MERGES[names.resolve(name, MERGES, kind="merging method", where="the registry")]
