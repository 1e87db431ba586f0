"""Hosts: the processes of one job, each with its own devices, that run the same command together."""

import os
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from elm_jax.errors import UserError

T = TypeVar("T")
SILENCE = 60  # seconds without a sign of life after which a process counts as lost


@dataclass(frozen=True)
class Hosts:
    """How a process finds the others; what is None the surroundings say, as on a TPU pod or under Slurm."""

    coordinator: str | None = None  # address and port of the first process
    count: int | None = None
    index: int | None = None


def join(hosts: Hosts) -> None:
    """Joins the job, before any device is used; a UserError if the others cannot be found.

    Where a process is lost the others end within two minutes, with a message, instead of waiting for it.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address=hosts.coordinator,
            num_processes=hosts.count,
            process_id=hosts.index,
            heartbeat_timeout_seconds=SILENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "The other processes of the job are wanted, but cannot be found "
            f"({str(error).splitlines()[0]}). Give --coordinator_address, --process_count and "
            "--process_index, or run without --multiprocess."
        ) from error


@contextmanager
def together(*expected: type[BaseException]) -> Generator[None, None, None]:
    """Ends a process of several at once when it fails, with a message, so that no other waits for it.

    Leaving in the usual way would wait for the others, which wait for this one. What is `expected` happens to
    all of them alike and goes on its way; so does everything where there is one process.
    """
    try:
        yield
    except expected:
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, UserError):
            told = str(error)
        elif (reason := _of_others(error)) is not None:
            told = (
                "another process of the job ended, or cannot be reached. Run the same command in all "
                f"processes again to go on from the last checkpoint. ({reason})"
            )
        else:
            told = "".join(traceback.format_exception(error))
        print(f"elm: process {jax.process_index()}: {told}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def _of_others(error: BaseException | None) -> str | None:
    """Returns what the runtime said where an error, or what led to it, is of its traffic with the others."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or "gloo" in str(error).lower():
            return (str(error).splitlines() or [""])[0][:300]
        error = error.__cause__ or error.__context__
    return None


def meet(where: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def share(items: Sequence[T], cost: Callable[[T], int]) -> list[T]:
    """Returns this process's part of the items, a stretch of them that costs about as much as every other's.

    All processes must come with the same items in the same order.
    """
    return part(items, [cost(item) for item in items], jax.process_count(), jax.process_index())


def part(items: Sequence[T], costs: Sequence[int], count: int, index: int) -> list[T]:
    """Returns one of `count` stretches of like costs: that of the items whose middle falls into it.

    >>> [part("abcd", [3, 1, 1, 1], 2, index) for index in range(2)]
    [['a'], ['b', 'c', 'd']]
    """
    total, before, found = float(sum(costs)), 0.0, []
    for item, cost in zip(items, costs, strict=True):
        middle = before + cost / 2
        if min(count - 1, int(middle * count / total) if total else 0) == index:
            found.append(item)
        before += cost
    return found


def is_first() -> bool:
    """Says whether this process is the one that shows progress and writes results."""
    return jax.process_index() == 0
