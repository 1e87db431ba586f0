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

from elm_jax.errors import UserError, describe_lack_of_memory

T = TypeVar("T")
HEARTBEAT_SECONDS = 60  # without a sign of life, after which a process counts as lost


@dataclass(frozen=True)
class HostAddress:
    """How a process finds the others; None is what the environment says, as on a TPU pod or under Slurm.

    Attributes:
        coordinator: address and port of the first process.
        count: of processes.
        index: of this process, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def join(address: HostAddress) -> None:
    """Joins the job, before any device is used.

    If a process is lost, the others end within two minutes, with a message, instead of waiting for it.

    Raises:
        UserError: the others cannot be found.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address=address.coordinator,
            num_processes=address.count,
            process_id=address.index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"Expected to find the other processes of the job, got an error ({str(error).splitlines()[0]}). "
            "Fix: give --coordinator_address, --process_count and --process_index, or run without "
            "--multiprocess."
        ) from error


@contextmanager
def exit_on_failure(*expected: type[BaseException]) -> Generator[None, None, None]:
    """Ends a process of several at once when it fails, with a message, so that no other waits for it.

    Leaving in the usual way would wait for the others, which wait for this one. An exception in `expected`
    happens to all of them alike and is raised; so is any exception if there is one process, and what a signal
    raises, since that leaves at once.
    """
    try:
        yield
    except (SystemExit, *expected):
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        lack = describe_lack_of_memory(error)
        if isinstance(error, UserError):
            message = str(error)
        elif lack is not None:
            message = lack
        elif (reason := _communication_error(error)) is not None:
            message = (
                "another process of the job ended, or cannot be reached. Run the same command in all "
                f"processes again to go on from the last checkpoint. ({reason})"
            )
        else:
            message = "".join(traceback.format_exception(error))
        print(f"elm: process {jax.process_index()}: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) or lack else 1)


def _communication_error(error: BaseException | None) -> str | None:
    """Returns the runtime's message if an error, or its cause, is of communication with the others."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or "gloo" in str(error).lower():
            return (str(error).splitlines() or [""])[0][:300]
        error = error.__cause__ or error.__context__
    return None


def barrier(name: str) -> None:
    """Waits until all processes have come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def shard_by_cost(items: Sequence[T], cost: Callable[[T], int]) -> list[T]:
    """Returns this process's part of the items, a stretch that costs about as much as every other's.

    All processes must have the same items in the same order.
    """
    return shard(items, [cost(item) for item in items], jax.process_count(), jax.process_index())


def shard(items: Sequence[T], costs: Sequence[int], count: int, index: int) -> list[T]:
    """Returns one of `count` stretches of similar costs: the items whose middle falls into it.

    >>> [shard("abcd", [3, 1, 1, 1], 2, index) for index in range(2)]
    [['a'], ['b', 'c', 'd']]
    """
    total, before, chosen = float(sum(costs)), 0.0, []
    for item, cost in zip(items, costs, strict=True):
        middle = before + cost / 2
        if min(count - 1, int(middle * count / total) if total else 0) == index:
            chosen.append(item)
        before += cost
    return chosen


def is_primary() -> bool:
    """Tells whether this process is the one that shows progress and writes results."""
    return jax.process_index() == 0
