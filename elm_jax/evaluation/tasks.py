"""Tasks of an evaluation: each is rendered and tokenised once, and handed on to whatever reads its rows."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from elm_jax.data import identity, task_rows, tokenized_rows
from elm_jax.data.identity import RowsIdentity
from elm_jax.data.tokenized_rows import TokenizedRows
from elm_jax.errors import MissingDatasetRowsError, UserError
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run
from elm_jax.tasks.specs import is_ranked


@dataclass(frozen=True, repr=False)
class EvaluationTask:
    """One task with its rows.

    Attributes:
        spec: what the task is.
        examples: its prompted examples, of the split that is evaluated.
        tokens: the same as token ids.
        prompts: the prompts with their answer choices as token ids; without choices if the task is answered
            in free text.
        identity: what the rows are, which whatever is made of them carries.
        single: ids of rows with one choice, which are right whatever scores them: they count for nothing.
        equal: rows of which two choices are the same tokens.
        equal_example: two such choices.
    """

    spec: TaskSpec
    examples: Sequence[PromptedExample]
    tokens: TokenizedRows
    prompts: Sequence[PromptWithChoices]
    identity: RowsIdentity
    single: Sequence[str] = ()
    equal: int = 0
    equal_example: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The task's id, dataset/prompt."""
        return self.spec.id

    @property
    def is_ranked(self) -> bool:
        """Whether its answer choices are ranked; otherwise it is answered in free text."""
        return bool(self.prompts) and bool(self.prompts[0].answers)

    def row_ids(self, rows: Sequence[int] = ()) -> tuple[str, ...]:
        """Returns the ids of some rows by number, or of all."""
        return tuple(example.row_id for example in self.examples_of(rows))

    def examples_of(self, rows: Sequence[int] = ()) -> Sequence[PromptedExample]:
        """Returns some examples by number, or all."""
        return [self.examples[row] for row in rows] if rows else self.examples

    def __repr__(self) -> str:
        return f"EvaluationTask({self.id!r}, {len(self.examples)} rows)"


def load_tasks(run: Run, specs: Iterable[TaskSpec]) -> dict[str, EvaluationTask]:
    """Renders and tokenises tasks, of the splits that the run's source or the catalogue says.

    Args:
        run: with the source of rows and the tokenizer.
        specs: the tasks.

    Returns:
        Task id -> its rows.

    Raises:
        UserError: a task has no rows, or some of its rows have answer choices but not all, or a target is
            none of the choices, or no row has two choices.
    """
    tasks = {spec.id: _load(run, spec) for spec in specs}
    print_row_summary(run, tasks.values())
    return tasks


def print_row_summary(run: Run, tasks: Collection[EvaluationTask]) -> None:
    """Prints what became of the rows of tasks, and what of them the model does not see."""
    task_rows.print_counts(run.stages, (tokenized_rows.get_row_counts(task.examples) for task in tasks))
    task_rows.print_tokenization_report(run.stages, (task.tokens.losses for task in tasks))


def load_available(run: Run, specs: Iterable[TaskSpec]) -> tuple[dict[str, EvaluationTask], dict[str, str]]:
    """Returns the tasks whose rows can be loaded, as `load_tasks` does, and why the others' cannot."""
    loaded: dict[str, EvaluationTask] = {}
    failed: dict[str, str] = {}
    unavailable: dict[str, str] = {}
    for spec in specs:
        try:
            if spec.dataset in unavailable:  # another try would take as long as the first
                failed[spec.id] = unavailable[spec.dataset]
            else:
                loaded[spec.id] = _load(run, spec)
        except MissingDatasetRowsError as error:
            failed[spec.id] = unavailable[spec.dataset] = str(error)
    return loaded, failed


def _load(run: Run, spec: TaskSpec) -> EvaluationTask:
    examples = task_rows.load_examples(spec, run.source)
    tokens = task_rows.tokenize_task(examples, run.tokenizer, run.lengths)
    if is_ranked(spec) and any(example.choices for example in examples):
        _require_choices(spec.id, examples)
        choices = [tokenized_rows.get_choices(tokens, row) for row in range(len(examples))]
    else:
        choices = [()] * len(examples)
    prompts = [PromptWithChoices(*row) for row in zip(tokens.inputs, choices, strict=True)]
    single = [examples[row].row_id for row, own in enumerate(choices) if len(own) == 1]
    if len(single) == len(examples):
        raise UserError(
            f"Expected a row of {spec.id!r} with two answer choices or more, got one choice in all of them, "
            "which every method gets right. Fix: correct its answer_choices."
        )
    equal = [(row, pair) for row, own in enumerate(choices) if (pair := _find_equal(own))]
    example = tuple(examples[equal[0][0]].choices[place] for place in equal[0][1]) if equal else ()
    own = identity.identify_task(spec, run.source, examples, run.tokenizer, run.lengths)
    return EvaluationTask(spec, examples, tokens, prompts, own, single, len(equal), example)


def _find_equal(choices: Sequence[Sequence[int] | np.ndarray]) -> tuple[int, int] | None:
    """Returns the places of the first two choices that are the same tokens; None if all differ."""
    places: dict[bytes, int] = {}
    for place, choice in enumerate(choices):
        first = places.setdefault(np.asarray(choice, np.int32).tobytes(), place)
        if first != place:
            return first, place
    return None


def _require_choices(task: str, examples: Iterable[PromptedExample]) -> None:
    """Raises a UserError unless every row has choices with the target among them."""
    for example in examples:
        if not example.choices or example.label is None:
            problem = "no answer choices" if not example.choices else "a target outside its choices"
            raise UserError(
                f"Expected answer choices with the target among them in every row of {task!r}, got {problem} "
                f"in row {example.row_id!r}. Fix: evaluate another task; `elm tasks list` shows metrics."
            )
