"""Known models: where the published checkpoints of the T5 family lie, on the hub and in T5X's bucket.

Bucket addresses are those that T5X's documentation lists (docs/models.md); none of them was opened while this
table was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from elm_jax import hub, names

BUCKET = "gs://t5-data/pretrained_models/t5x"


@dataclass(frozen=True)
class PublishedModel:
    """One published model."""

    hub: str  # its repository on the Hugging Face hub
    bucket: str | None = None  # its T5X checkpoint
    # Whether inputs ended with the end-of-sequence token in training; T0's did not (Sanh et al., 2022).
    eos_on_input: bool = True
    revision: str | None = None  # a branch, a tag or a commit; the hub's main without it
    safetensors_only: bool = False  # whether its weights are read in no other format


def _make_family(hub: str, bucket: str | None, steps: Mapping[str, int]) -> dict[str, PublishedModel]:
    """Returns the models of a family by size; `{}` stands for the size."""
    found = {}
    for size, step in steps.items():
        at = f"{BUCKET}/{bucket.format(size)}/checkpoint_{step}" if bucket else None
        repository = hub.format(size.lower())
        found[repository.partition("/")[2]] = PublishedModel(repository, at)
    return found


_SIZE_NAMES = ("small", "base", "large", "xl", "xxl")
_FLAN_STEPS = {"small": 1198000, "base": 1184000, "large": 1164000, "xl": 1138000, "xxl": 1114000}
_T5_STEPS = {"small": 1000000, "base": 999900, "large": 1000700, "3B": 1000000, "11B": 1000000}
_T0_NAMES = ("T0", "T0_3B", "T0p", "T0pp", "T0_single_prompt", "T0_original_task_only")

PUBLISHED: Mapping[str, PublishedModel] = {
    **_make_family("google-t5/t5-{}", "t5_{}", _T5_STEPS),
    **_make_family("google/t5-v1_1-{}", "t5_1_1_{}", dict.fromkeys(_SIZE_NAMES, 1000000)),
    **_make_family("google/t5-{}-lm-adapt", "t5_1_1_lm100k_{}", dict.fromkeys(_SIZE_NAMES, 1100000)),
    **_make_family("google/flan-t5-{}", "flan_t5_{}", _FLAN_STEPS),
    **_make_family("google/mt5-{}", "mt5_{}", dict.fromkeys(_SIZE_NAMES, 1000000)),
    **_make_family("google/byt5-{}", "byt5_{}", dict.fromkeys(_SIZE_NAMES, 1000000)),
    **_make_family("bigscience/mt0-{}", None, dict.fromkeys(_SIZE_NAMES, 0)),
    **_make_family("google/umt5-{}", None, dict.fromkeys(("small", "base", "xl", "xxl"), 0)),
    **_make_family("EleutherAI/pile-t5-{}", None, dict.fromkeys(("base", "large", "xl", "xxl"), 0)),
    **{name: PublishedModel(f"google/{name}") for name in ("ul2", "flan-ul2")},
    **{name: PublishedModel(f"bigscience/{name}", eos_on_input=False) for name in _T0_NAMES},
}
# Other spellings that are in use.
ALIASES: Mapping[str, str] = {
    **{f"t5-v1_1-{size}-lm-adapt": f"t5-{size}-lm-adapt" for size in _SIZE_NAMES},
    **{f"t5_1_1_lm100k_{size}": f"t5-{size}-lm-adapt" for size in _SIZE_NAMES},
    **{name.lower().replace("_", "-"): name for name in _T0_NAMES},
}


def find_model(name: str) -> PublishedModel:
    """Returns the model of a name, a hub id or another spelling of either.

    An id of the hub that is in no table stands for itself, and so does `hf:owner/name@revision`, of which
    safetensors alone are read.

    Raises:
        UserError: If it is neither; it has the nearest names.

    >>> find_model("t5-v1_1-xl-lm-adapt").hub
    'google/t5-xl-lm-adapt'
    """
    if name.startswith(hub.HUB_PREFIX):
        repository, revision = hub.parse_address(name)
        return replace(find_model(repository), revision=revision, safetensors_only=True)
    owner, slash, short = name.rpartition("/")
    short = ALIASES.get(short, short)
    if short in PUBLISHED and owner in ("", "google", PUBLISHED[short].hub.partition("/")[0]):
        return PUBLISHED[short]
    if slash and name.count("/") == 1 and owner and short:
        return PublishedModel(name)
    where = "elm_jax's table of models, nor a directory of that name"
    return PUBLISHED[names.resolve(name, [*PUBLISHED, *ALIASES], kind="model", where=where)]


def eos_on_input(name: str) -> bool | None:
    """Says whether a base's inputs ended with end-of-sequence in training; None where its name does not tell.

    It is a name of the table, or a path whose last part is one.

    >>> eos_on_input("bigscience/T0_3B"), eos_on_input("models/t5-small/"), eos_on_input("my_base")
    (False, True, None)
    """
    if name.startswith(hub.HUB_PREFIX):
        name = hub.parse_address(name)[0]
    short = name.rstrip("/").rpartition("/")[2]
    found = PUBLISHED.get(ALIASES.get(short, short))
    return None if found is None else found.eos_on_input
