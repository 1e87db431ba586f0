"""Slots: which expert trains in which slot of a group, and which are waiting, finished or failed.

A group has a fixed number of slots, and a program compiled for that many. After an expert's last step the
next one waiting takes its slot, and nothing is compiled again. Everything here follows from the number of
batches and the jobs alone, so a run that was killed puts every expert back where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from elm_jax.telemetry.events import Failure


@dataclass(frozen=True)
class Slot:
    """An expert that trains, and how far it is.

    Attributes:
        expert: its id.
        step: steps done.
        used_examples: examples of the next step that were in a batch already, by their number in the step.
        isolated_until: step before which it shares no row, because something in a shared one was not finite.
        best_score: of its best validated step.
    """

    expert: str
    step: int = 0
    used_examples: tuple[int, ...] = ()
    isolated_until: int = 0
    best_score: float | None = None


@dataclass(frozen=True)
class SlotTable:
    """Where all experts of a run are between two batches.

    Attributes:
        slots: of the group; None is free.
        waiting: experts that have not begun.
        finished: experts that are done.
        failed: experts that were stopped.
        batches: done in the run.
        steps: done, of all experts.
    """

    slots: tuple[Slot | None, ...]
    waiting: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    batches: int = 0
    steps: int = 0


def empty_table(experts: Sequence[str], count: int) -> SlotTable:
    """Returns `count` free slots for which all experts wait."""
    return SlotTable((None,) * count, tuple(experts))


def fill_slots(table: SlotTable) -> tuple[SlotTable, dict[int, str]]:
    """Puts waiting experts into free slots, in their order; returns who came into which."""
    free = [number for number, slot in enumerate(table.slots) if slot is None]
    new = dict(zip(free, table.waiting, strict=False))
    slots = tuple(Slot(new[number]) if number in new else slot for number, slot in enumerate(table.slots))
    return replace(table, slots=slots, waiting=table.waiting[len(new) :]), new


def record_batch(table: SlotTable, used: Mapping[int, Sequence[int]], completed: Sequence[int]) -> SlotTable:
    """Returns the table after one more batch.

    Args:
        table: before it.
        used: examples that the batch had, by slot.
        completed: slots whose step the batch completed.
    """

    def after(number: int, slot: Slot | None) -> Slot | None:
        if slot is None:
            return None
        if number in completed:
            return replace(slot, step=slot.step + 1, used_examples=())
        return replace(slot, used_examples=(*slot.used_examples, *used.get(number, ())))

    slots = tuple(after(number, slot) for number, slot in enumerate(table.slots))
    return replace(table, slots=slots, batches=table.batches + 1, steps=table.steps + len(completed))


def set_best_score(table: SlotTable, number: int, score: float) -> SlotTable:
    """Notes the score of the best step of the expert in a slot."""
    return _replace_slot(table, number, replace(_slot_at(table, number), best_score=score))


def finish_expert(table: SlotTable, number: int) -> SlotTable:
    """Frees the slot of an expert that is done."""
    expert = _slot_at(table, number).expert
    return replace(_replace_slot(table, number, None), finished=(*table.finished, expert))


def rewind_expert(table: SlotTable, number: int, step: int, isolated_until: int) -> SlotTable:
    """Takes the expert in a slot back to an earlier step, to go on in rows that it does not share."""
    slot = _slot_at(table, number)
    rewound = replace(slot, step=step, used_examples=(), isolated_until=isolated_until)
    return replace(_replace_slot(table, number, rewound), steps=table.steps - (slot.step - step))


def fail_expert(table: SlotTable, number: int, failure: Failure) -> SlotTable:
    """Frees the slot of an expert that was stopped."""
    return replace(_replace_slot(table, number, None), failed=(*table.failed, failure))


def is_over(table: SlotTable) -> bool:
    """Tells whether nothing is left to train."""
    return not table.waiting and all(slot is None for slot in table.slots)


def to_json(table: SlotTable) -> dict[str, Any]:
    """Returns the table as checkpoints have it."""
    return {
        "at": [slot and _slot_to_json(slot) for slot in table.slots],
        "waiting": table.waiting,
        "finished": table.finished,
        "failed": [asdict(failure) for failure in table.failed],
        "round": table.batches,
        "steps": table.steps,
    }


def from_json(values: Mapping[str, Any]) -> SlotTable:
    """Returns the table that `to_json` was called on."""
    return SlotTable(
        tuple(slot and _slot_from_json(slot) for slot in values["at"]),
        tuple(values["waiting"]),
        tuple(values["finished"]),
        tuple(Failure(each["expert"], each["step"], tuple(each["rows"])) for each in values["failed"]),
        values["round"],
        values["steps"],
    )


def _slot_to_json(slot: Slot) -> dict[str, Any]:
    return {
        "expert": slot.expert,
        "step": slot.step,
        "taken": slot.used_examples,
        "alone": slot.isolated_until,
        "best": slot.best_score,
    }


def _slot_from_json(values: Mapping[str, Any]) -> Slot:
    return Slot(values["expert"], values["step"], tuple(values["taken"]), values["alone"], values["best"])


def _slot_at(table: SlotTable, number: int) -> Slot:
    slot = table.slots[number]
    if slot is None:
        raise ValueError(f"slot {number} is free")
    return slot


def _replace_slot(table: SlotTable, number: int, slot: Slot | None) -> SlotTable:
    return replace(table, slots=(*table.slots[:number], slot, *table.slots[number + 1 :]))
