"""Places: which expert stands where in the group that trains, and which are waiting, finished or failed.

A group has so many places, and a program compiled for that many. When an expert has taken its last step, the
next one waiting takes its place; nothing is compiled again. Everything here is decided by round numbers and
the jobs alone, so a run that was killed puts every expert where it would have stood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from elm_jax.telemetry.events import Failure


@dataclass(frozen=True)
class Place:
    """An expert that trains, and how far it has come."""

    expert: str
    step: int = 0  # steps done
    taken: tuple[int, ...] = ()  # examples of the next step that batches have had
    alone: int = 0  # steps before which it shares no row, for something in one was not finite
    best: float | None = None  # what its best step was worth, where it was validated


@dataclass(frozen=True)
class Places:
    """Where all experts of a run stand between two rounds."""

    at: tuple[Place | None, ...]
    waiting: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    round: int = 0  # rounds done
    steps: int = 0  # done, of all experts


def opened(experts: Sequence[str], count: int) -> Places:
    """Returns `count` free places, before which all experts wait."""
    return Places((None,) * count, tuple(experts))


def filled(places: Places) -> tuple[Places, dict[int, str]]:
    """Puts those who wait into the free places, in their order; returns who came where."""
    free = [number for number, place in enumerate(places.at) if place is None]
    came = dict(zip(free, places.waiting, strict=False))
    at = tuple(Place(came[number]) if number in came else place for number, place in enumerate(places.at))
    return replace(places, at=at, waiting=places.waiting[len(came) :]), came


def stepped(places: Places, taken: Mapping[int, Sequence[int]], whole: Sequence[int]) -> Places:
    """Returns the places after one more round, which took examples by place and made some steps whole."""

    def after(number: int, place: Place | None) -> Place | None:
        if place is None:
            return None
        if number in whole:
            return replace(place, step=place.step + 1, taken=())
        return replace(place, taken=(*place.taken, *taken.get(number, ())))

    at = tuple(after(number, place) for number, place in enumerate(places.at))
    return replace(places, at=at, round=places.round + 1, steps=places.steps + len(whole))


def judged(places: Places, number: int, best: float) -> Places:
    """Notes what the best step of the expert at a place was worth."""
    place = places.at[number]
    return _with(places, number, place and replace(place, best=best))


def finished(places: Places, number: int) -> Places:
    """Frees the place of an expert that is done."""
    return replace(_with(places, number, None), finished=(*places.finished, _expert(places, number)))


def retried(places: Places, number: int, step: int, alone: int) -> Places:
    """Takes the expert at a place back to where it had done so many steps, to go on in rows of its own."""
    place = places.at[number]
    if place is None:
        raise ValueError(f"place {number} is free")
    back = replace(place, step=step, taken=(), alone=alone)
    return replace(_with(places, number, back), steps=places.steps - (place.step - step))


def failed(places: Places, number: int, failure: Failure) -> Places:
    """Frees the place of an expert that was stopped."""
    return replace(_with(places, number, None), failed=(*places.failed, failure))


def is_over(places: Places) -> bool:
    """Says whether nothing is left to train."""
    return not places.waiting and all(place is None for place in places.at)


def to_json(places: Places) -> dict[str, Any]:
    """Returns the places as plain values."""
    return asdict(places)


def from_json(told: Mapping[str, Any]) -> Places:
    """Returns the places that `to_json` told."""
    return Places(
        tuple(place and Place(**dict(place, taken=tuple(place["taken"]))) for place in told["at"]),
        tuple(told["waiting"]),
        tuple(told["finished"]),
        tuple(Failure(each["expert"], each["step"], tuple(each["rows"])) for each in told["failed"]),
        told["round"],
        told["steps"],
    )


def _expert(places: Places, number: int) -> str:
    place = places.at[number]
    if place is None:
        raise ValueError(f"place {number} is free")
    return place.expert


def _with(places: Places, number: int, place: Place | None) -> Places:
    return replace(places, at=(*places.at[:number], place, *places.at[number + 1 :]))
