"""SeqIO's registry: what we put there, told from what others did, and sources that count their rows."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elm_jax.errors import UserError


def make_source(read: Callable[..., Any], splits: Sequence[str], counts: Mapping[str, int]) -> Any:
    """Returns a source of SeqIO's.

    Args:
        read: Returns the rows of a split, as SeqIO's `FunctionDataSource` takes it.
        splits: The splits that there are.
        counts: Rows of a split, where they are known; others are counted when SeqIO asks.
    """
    return _classes()[0](read, splits, counts)


def add_task(name: str, source: Any, **pipeline: Any) -> None:
    """Registers a task of ours; one of ours of the same name is replaced.

    Raises:
        UserError: If somebody else registered something of that name.
    """
    import seqio

    _require_ours(name)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(name, source, **pipeline)


def add_mixture(name: str, rates: Sequence[tuple[str, float]]) -> None:
    """Registers a mixture of ours, of tasks or mixtures by name; see `add_task`."""
    import seqio

    _require_ours(name)
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, rates, mixture_cls=_classes()[1])


def find_registered(name: str) -> Any:
    """Returns the task or mixture that SeqIO has under a name; None if there is none."""
    import seqio

    known = name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    return seqio.get_mixture_or_task(name) if known else None


def is_ours(provider: Any) -> bool:
    """Says whether we registered a task or a mixture."""
    source_class, mixture_class = _classes()
    return isinstance(provider, mixture_class) or isinstance(getattr(provider, "source", None), source_class)


def _require_ours(name: str) -> None:
    there = find_registered(name)
    if there is not None and not is_ours(there):
        raise UserError(
            f"Expected the name {name!r} to be free in SeqIO's registry, got a task or mixture that another "
            "module registered. Fix: rename that one, or name it where ours is named."
        )


@functools.cache
def _classes() -> tuple[type, type]:
    """Returns the classes of our sources and mixtures, which are SeqIO's, so it is imported first."""
    import seqio

    class CountedSource(seqio.FunctionDataSource):
        def num_input_examples(self, split: str) -> int:
            counts: Any = self._num_input_examples
            if split not in counts:
                counts[split] = int(self._dataset_fn(split, False).cardinality())
            return counts[split]

    class OurMixture(seqio.Mixture):
        """Nothing of its own but its type."""

    return CountedSource, OurMixture
