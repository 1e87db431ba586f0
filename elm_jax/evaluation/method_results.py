"""Method results: what the methods of an evaluation make of scores and answers, as a report takes them.

What worked on a task may have been trained on the task's own dataset; then the result is marked as seen, and
is no zero-shot one. Rows that a method was shown with their labels count for none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from elm_jax.data.tokenized_rows import get_row_counts
from elm_jax.evaluation import derived_experts, generation, ranking
from elm_jax.evaluation.ensembles import Ensemble
from elm_jax.evaluation.generation import GeneratedAnswers
from elm_jax.evaluation.methods import EvaluationMethod
from elm_jax.evaluation.ranking import ScoreStore
from elm_jax.evaluation.results_cache import Cell, TaskScorer
from elm_jax.evaluation.scorer_selection import ScorerSelection
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE_SCORER, DescribedLibrary, library_finder
from elm_jax.records import PromptedExample, TaskScores
from elm_jax.reporting import metrics
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.reporting.records import (
    EqualChoices,
    GeneratedResult,
    MethodAnswer,
    RowExample,
    TaskRows,
)
from elm_jax.session.workspace import Run

MAX_SHOWN_EXAMPLES = 200  # rows of a report to look at


@dataclass(repr=False)
class MethodResults:
    """Everything that was scored or written, and what the methods chose.

    Attributes:
        run: with the libraries.
        tasks: that were evaluated.
        experts: that methods chose among.
        methods: in the order of tables.
        selection: what they chose.
        scores: of ranked tasks.
        answers: to tasks in free text.
    """

    run: Run
    tasks: Sequence[EvaluationTask]
    experts: Sequence[str]
    methods: Sequence[EvaluationMethod]
    selection: ScorerSelection
    scores: ScoreStore
    answers: Mapping[Cell, GeneratedAnswers]

    def __repr__(self) -> str:
        return f"MethodResults({len(self.methods)} methods on {len(self.tasks)} tasks)"

    @property
    def ranked_tasks(self) -> list[EvaluationTask]:
        """The tasks with answer choices."""
        return [task for task in self.tasks if task.is_ranked]

    @property
    def generated_tasks(self) -> list[EvaluationTask]:
        """The tasks that are answered in free text."""
        return [task for task in self.tasks if not task.is_ranked]

    @cached_property
    def best_single(self) -> str:
        """The expert with the best macro mean over the tasks that can be ranked, or over the others.

        It is one that was trained on none of their datasets, if there is any.
        """
        tasks = self.ranked_tasks or self.generated_tasks
        unseen = [expert for expert in self.experts if not any(self.is_seen(task, expert) for task in tasks)]
        candidates = unseen or self.experts
        if self.ranked_tasks:
            return best_single_expert(self._counts, candidates, [task.id for task in tasks])
        return max(candidates, key=lambda expert: sum(self._value(task, expert) for task in tasks))

    @cached_property
    def oracle(self) -> dict[str, str]:
        """Each task's best expert among those not trained on its dataset, or among all if there is none."""
        candidates = {}
        for task in self.tasks:
            unseen = [expert for expert in self.experts if not self.is_seen(task, expert)]
            candidates[task.id] = unseen or self.experts
        best = best_expert_by_task(self._counts, {task.id: candidates[task.id] for task in self.ranked_tasks})
        for task in self.generated_tasks:
            best[task.id] = max(candidates[task.id], key=lambda expert, task=task: self._value(task, expert))
        return best

    def scorer(self, method: EvaluationMethod, task: EvaluationTask) -> TaskScorer:
        """Returns what a method chose for a task, in hindsight too."""
        if method.router == "best_single":
            return self.best_single
        if method.router == "oracle":
            return self.oracle[task.id]
        return self.selection.scorers[method.name][task.id]

    def is_seen(self, task: EvaluationTask, scorer: TaskScorer) -> bool:
        """Returns whether anything that was chosen for a task was trained on the task's dataset."""
        several = scorer.members if isinstance(scorer, Ensemble) else scorer
        scorers = {several} if isinstance(several, str) else set(several)
        return any(task.spec.dataset in self._training_datasets(name) for name in scorers)

    def scores_by_method(self) -> list[TaskScores]:
        """Returns every method's scores of every task with answer choices."""
        return [
            replace(self._scores(method, task), seen=self.is_seen(task, self.scorer(method, task)))
            for method in self.methods
            for task in self.ranked_tasks
        ]

    def correct_counts(self) -> Iterator[CorrectCount]:
        """Yields how much every expert got right of every task with answer choices."""
        for expert in self.experts:
            for task in self.ranked_tasks:
                yield replace(self._counts[task.id, expert], seen=self.is_seen(task, expert))

    def equal_choices(self) -> list[EqualChoices]:
        """Returns the tasks with rows that no scorer can get right by knowing the answer."""
        return [
            EqualChoices(
                task=task.spec.dataset,
                prompt=task.spec.prompt,
                n=len(task.examples),
                equal=task.equal,
                example=task.equal_example,
                single=len(task.single),
            )
            for task in self.ranked_tasks
            if task.equal or task.single
        ]

    def task_rows(self) -> list[TaskRows]:
        """Returns what became of the rows of every task."""
        return [
            TaskRows(
                task.spec.dataset,
                task.spec.prompt,
                each.read,
                each.used,
                {str(reason): count for reason, count in each.left_out.items()},
                each.cut,
            )
            for task in self.tasks
            for each in (get_row_counts(task.examples),)
        ]

    def generated(self) -> list[GeneratedResult]:
        """Returns how good every method's answers are to every task in free text."""
        return [
            self._generated_result(method, task) for method in self.methods for task in self.generated_tasks
        ]

    def examples(self, first: EvaluationMethod | None, most: int = MAX_SHOWN_EXAMPLES) -> list[RowExample]:
        """Returns some rows of every task with what the methods made of them.

        Those that `first` got wrong come first. Every task has as many, as far as it has them.
        """
        by_task = [
            list(self._examples(task, first, most)) for task in (*self.ranked_tasks, *self.generated_tasks)
        ]
        each = max(1, most // max(1, len(by_task)))
        some = [row for own in by_task for row in own[:each]][:most]
        return sorted(some, key=lambda row: first is not None and row.answers[first.name].right)

    def _examples(
        self, task: EvaluationTask, first: EvaluationMethod | None, most: int
    ) -> Iterator[RowExample]:
        results = {
            method.name: self._scores(method, task) if task.is_ranked else self._answers(method, task)
            for method in self.methods
        }
        places = {row: at for at, row in enumerate(next(iter(results.values())).row_ids)}
        examples = [example for example in task.examples if example.row_id in places]
        if first is not None:
            own = results[first.name]
            examples.sort(key=lambda example: _answer(own, example, places[example.row_id]).right)
        for example in examples[:most]:
            yield RowExample(
                task=task.spec.dataset,
                prompt=task.spec.prompt,
                row=example.row_id,
                input=example.input,
                choices=tuple(example.choices),
                target=example.target,
                answers={
                    name: _answer(own, example, places[example.row_id]) for name, own in results.items()
                },
            )

    def _generated_result(self, method: EvaluationMethod, task: EvaluationTask) -> GeneratedResult:
        answers = self._answers(method, task)
        return GeneratedResult(
            method=method.name,
            task=task.spec.dataset,
            prompt=task.spec.prompt,
            n=len(answers.row_ids),
            measure=answers.metric.measure,
            value=answers.metric.value,
            low=answers.metric.low,
            high=answers.metric.high,
            seen=self.is_seen(task, self.scorer(method, task)),
        )

    def _scores(self, method: EvaluationMethod, task: EvaluationTask) -> TaskScores:
        scores = ranking.load_or_compute_scores(self.scores, task.id, self.scorer(method, task), method.name)
        return ranking.drop_rows(scores, self._left_out(task))

    @cached_property
    def _counts(self) -> dict[tuple[str, str], CorrectCount]:
        """How much every expert got right of every task; of their rows no more than one cell's are held."""
        return {
            (task.id, expert): self.scores.count(Cell(task.id, expert), self._left_out(task))
            for expert in self.experts
            for task in self.ranked_tasks
        }

    def _answers(self, method: EvaluationMethod, task: EvaluationTask) -> GeneratedAnswers:
        scorer, left_out = self.scorer(method, task), self._left_out(task)
        if isinstance(scorer, Ensemble):
            raise TypeError(f"ensemble {method.name!r} writes no text, and is refused before a task of text")
        parts = {cell: self.answers[cell] for cell in ranking.available_cells(self.answers, task.id, scorer)}
        if isinstance(scorer, str) and not left_out:
            return parts[Cell(task.id, scorer)]
        return generation.assemble_answers(self.run, parts, task, scorer, left_out)

    def _left_out(self, task: EvaluationTask) -> Sequence[str]:
        return (*self.selection.left_out.get(task.id, ()), *task.single)

    def _value(self, task: EvaluationTask, expert: str) -> float:
        return self.answers[Cell(task.id, expert)].metric.value

    @cached_property
    def _library_of(self) -> Callable[[str], Library]:
        return library_finder(self.run.workspace)

    @cached_property
    def _library(self) -> Library:
        return DescribedLibrary.open(self.run.workspace.library)

    def _training_datasets(self, scorer: str) -> set[str]:
        """Returns the datasets that what works on a task was trained on."""
        if scorer not in self._datasets:
            if scorer == BASE_SCORER:
                return set()  # also where there is no library
            if scorer in self.selection.composites:
                found = derived_experts.training_datasets(self._library, self.selection.composites[scorer])
            elif scorer in self.selection.gates:
                gate = self.selection.gates[scorer]
                each = [set(self._library.spec(expert).datasets) for expert in gate.experts]
                found = {name for own in each if not own & set(gate.excluded) for name in own}
            else:
                found = set(self._library_of(scorer).spec(scorer).datasets)
            self._datasets[scorer] = found
        return self._datasets[scorer]

    @cached_property
    def _datasets(self) -> dict[str, set[str]]:
        return {}


def best_single_expert(
    counts: Mapping[tuple[str, str], CorrectCount], experts: Sequence[str], tasks: Sequence[str]
) -> str:
    """Returns the expert with the best macro mean over the tasks, first of equals: chosen in hindsight."""
    return max(experts, key=lambda expert: metrics.macro_accuracy([counts[task, expert] for task in tasks]))


def best_expert_by_task(
    counts: Mapping[tuple[str, str], CorrectCount], experts: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Returns each task's best expert among those it may have, the first of equals: the oracle."""
    return {
        task: max(own, key=lambda expert, task=task: counts[task, expert].right / counts[task, expert].n)
        for task, own in experts.items()
    }


def _answer(result: TaskScores | GeneratedAnswers, example: PromptedExample, place: int) -> MethodAnswer:
    """Returns what a method answered to the row at a place of its result."""
    if isinstance(result, TaskScores):
        prediction = result.predictions[place]
        scores = tuple(result.scores[place])
        is_right = prediction == result.labels[place] and scores.count(scores[prediction]) == 1
        return MethodAnswer(example.choices[prediction], is_right, scores)
    text = result.predictions[place]
    is_right = any(text.strip() == answer.strip() for answer in example.answers)
    return MethodAnswer(text, is_right, None)
