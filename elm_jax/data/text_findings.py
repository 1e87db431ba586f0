"""Text findings: what is wrong with rendered rows, whatever they are tokenised with."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from elm_jax.data import token_losses
from elm_jax.data.findings import Tally, TaskFinding, format_rows
from elm_jax.records import PromptedExample

MAJORITY_LABEL_SHARE = 0.95
MIN_LABELLED_ROWS = 20  # labelled rows, for their share to mean anything


class RowTextChecker:
    """Looks at rows that come block by block, and keeps some bytes of each.

    Args:
        truncate: Characters that are kept of a value; None is no limit.
    """

    def __init__(self, truncate: int | None) -> None:
        self._truncate = truncate
        self._labels: Counter[int] = Counter()
        self._cut, self._changed = Tally[str](), Tally[str]()
        self._repeated, self._single, self._decomposed = Tally[str](), Tally[str](), Tally[str]()
        self._composed = 0
        self._duplicates, self._contradicting = Tally[tuple[int, str]](), 0
        # A row is told by 8 bytes of its input and choices, and by those of its target.
        self._rows: dict[int, int] = {}
        self._places, self._targets = array("q"), array("q")

    def add(
        self,
        examples: Sequence[PromptedExample],
        places: Sequence[int],
        uncut: Sequence[PromptedExample | None],
    ) -> None:
        """Looks at the next rows.

        Args:
            examples: The rows.
            places: The place of each among all rows.
            uncut: Each rendered without the limit of characters; None if it cannot be.
        """
        for example, place, whole in zip(examples, places, uncut, strict=True):
            self._compare(example, whole)
            self._count_choice_faults(example)
            composed, decomposed = token_losses.find_unicode_forms(
                (example.input, example.target, *example.choices)
            )
            self._composed += composed
            if decomposed:
                self._decomposed.add(example.row_id)
            self._look_for_duplicate(example, place)

    def findings(self, name_row: Callable[[int], str]) -> Iterator[TaskFinding]:
        """Yields what was found.

        Args:
            name_row: Returns the id of the row at a place.
        """
        yield from self._find_one_sided()
        yield from self._find_changed()
        if self._duplicates.first is not None:
            rows, (earlier, later) = self._duplicates.rows, self._duplicates.first
            other = f", {self._contradicting:,} of them with another target" if self._contradicting else ""
            yield TaskFinding(
                "duplicates",
                rows,
                f"{format_rows(rows, 'has', 'have')} the input and choices of an earlier one{other} "
                f"({later} has those of {name_row(earlier)}).",
            )
        yield from self._find_choice_faults()
        if self._decomposed.rows and self._composed:
            yield TaskFinding(
                "unicode",
                self._decomposed.rows,
                f"{format_rows(self._decomposed.rows, 'has', 'have')} letters and their marks as two "
                f"characters (Unicode's NFD), and {self._composed:,} as one (NFC): they look the same and "
                f"are different texts. {self._decomposed.first} is the first.",
            )

    def _compare(self, example: PromptedExample, whole: PromptedExample | None) -> None:
        if whole is not None and (example.input, example.target) == (whole.input, whole.target):
            return
        lengths = (len(whole.input), len(whole.target)) if whole else (0, 0)
        is_cut = self._truncate is not None and max(lengths) > self._truncate
        (self._cut if is_cut else self._changed).add(example.row_id)

    def _count_choice_faults(self, example: PromptedExample) -> None:
        if len(example.choices) > 1 and example.label is not None:
            self._labels[example.label] += 1
        if len(example.choices) == 1:
            self._single.add(example.row_id)
        if len(set(example.choices)) < len(example.choices):
            twice = next(choice for choice in example.choices if example.choices.count(choice) > 1)
            self._repeated.add(f"in {example.row_id}, the first, it is {twice!r:.100}")

    def _look_for_duplicate(self, example: PromptedExample, place: int) -> None:
        earlier = self._rows.setdefault(hash((example.input, example.choices)), len(self._places))
        target = hash(example.target)
        if earlier < len(self._places):
            self._duplicates.add((self._places[earlier], example.row_id))
            self._contradicting += target != self._targets[earlier]
        self._places.append(place)
        self._targets.append(target)

    def _find_one_sided(self) -> Iterator[TaskFinding]:
        labelled = self._labels.total()
        if labelled < 2:
            return
        label, count = self._labels.most_common(1)[0]
        if count == labelled or (labelled >= MIN_LABELLED_ROWS and count / labelled >= MAJORITY_LABEL_SHARE):
            share = "all" if count == labelled else f"{count / labelled:.0%}"
            yield TaskFinding(
                "one-sided",
                labelled,
                f"Choice {label + 1} is the right one in {share} of {format_rows(labelled)}: always choosing "
                "it needs no reading.",
            )

    def _find_changed(self) -> Iterator[TaskFinding]:
        if self._cut.rows:
            yield TaskFinding(
                "over-long",
                self._cut.rows,
                f"{format_rows(self._cut.rows, 'has', 'have')} a text of more than {self._truncate:,} "
                f"characters, which is cut ({self._cut.first} is the first).",
            )
        if self._changed.rows:
            yield TaskFinding(
                "truncation",
                self._changed.rows,
                f"{format_rows(self._changed.rows, 'is', 'are')} another text with the limit of characters "
                f"than without it, though nothing is longer ({self._changed.first} is the first): the "
                "filter that cuts values changes what the template computes. Fix: put expressions in "
                "parentheses.",
            )

    def _find_choice_faults(self) -> Iterator[TaskFinding]:
        if self._repeated.rows:
            yield TaskFinding(
                "repeated-choices",
                self._repeated.rows,
                f"{format_rows(self._repeated.rows, 'has', 'have')} a choice more than once: "
                f"{self._repeated.first}.",
            )
        if self._single.rows:
            yield TaskFinding(
                "single-choice",
                self._single.rows,
                f"{format_rows(self._single.rows, 'has', 'have')} a single choice, which is right whatever "
                f"the model says ({self._single.first} is the first).",
            )
