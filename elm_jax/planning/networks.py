"""Networks: the shape of a recipe's base, from its size, its directory or its published name."""

import re
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models.sizes import SIZES, T5Config
from elm_jax.models.sizes import find_config as size_named
from elm_jax.weights import load, published_models
from elm_jax.weights.base_model import dtype_name

DEFAULT_SIZE = "xl"  # of the base, as the paper's, where a recipe names none


def find_network(base: Any, size: str | None, dtype: str) -> tuple[T5Config, tuple[str, ...]]:
    """Returns the network of a size, or of a base by directory or published name, and what that assumes."""
    dtype = str(dtype_name(dtype))
    if size is not None:
        return size_named(size, dtype=dtype), ()
    if base is None:
        return size_named(DEFAULT_SIZE, dtype=dtype), (f"a base of size {DEFAULT_SIZE}",)
    if (where := storage.path(base)).is_dir():
        # Its shape alone: the parameters stay unread.
        return load.FORMATS[load.detect_format(where)](where, dtype=dtype).config, ()
    return size_named(find_size(str(base)), dtype=dtype), ()


def find_size(name: str) -> str:
    """Returns the size that a published model has, by its name.

    >>> find_size("t5-xl-lm-adapt"), find_size("google/mt5-base"), find_size("T0_3B"), find_size("t5-3b")
    ('xl', 'mt5-base', 'xl', 't5-3b')
    """
    short = published_models.find_model(name).hub.rpartition("/")[2].lower()
    size = re.search(r"(small|base|large|xxl|xl|3b|11b)", short)
    letters = "".join(re.findall(r"^(?:m|um|by)?t[05]", short))
    if short.startswith("t0"):
        return "xl" if "3b" in short else "xxl"
    family = {"mt5": "mt5-", "mt0": "mt5-", "byt5": "byt5-", "umt5": "umt5-"}.get(letters, "")
    if letters == "t5" and "v1_1" not in short and "lm-adapt" not in short:
        family = "t5-"
    found = f"{family}{size[1]}" if size else ""
    if found not in SIZES:
        raise UserError(
            f"Expected to know the size of the base, got {name!r}, which does not tell it. Fix: name its "
            f"directory, or give it as --size, one of {', '.join(SIZES)}."
        )
    return found
