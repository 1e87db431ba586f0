"""Results: what the methods of an evaluation make of scores and answers, as a report takes them.

What worked on a task may have been trained on the task's own dataset; then the result is marked as seen, and
is no zero-shot one. Rows that a method was shown with their labels count for none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from elm_jax.data import task_rows
from elm_jax.evaluation import derived_experts, generation, ranking
from elm_jax.evaluation.generation import GeneratedAnswers
from elm_jax.evaluation.methods import EvaluationMethod
from elm_jax.evaluation.ranking import ScoreStore
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.scorer_selection import ScorerSelection, TaskScorer
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE, home
from elm_jax.records import PromptedExample, TaskScores, TaskSpec
from elm_jax.reporting import metrics
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.reporting.records import GeneratedResult, MethodAnswer, RowExample
from elm_jax.session.workspace import Run

MAX_EXAMPLES = 200  # rows of a report to look at


@dataclass
class MethodResults:
    """Everything that was scored or written, and what the methods chose."""

    run: Run
    ranked: Sequence[TaskSpec]  # tasks with answer choices
    written: Sequence[TaskSpec]  # tasks that are answered in free text
    experts: Sequence[str]
    wanted: Sequence[EvaluationMethod]
    choices: ScorerSelection
    scores: ScoreStore
    answers: Mapping[Cell, GeneratedAnswers]

    @cached_property
    def best_single(self) -> str:
        """The expert with the best macro mean over the tasks that can be ranked, or over the others.

        One that was trained on none of their datasets, if there is any.
        """
        tasks = self.ranked or self.written
        unseen = [expert for expert in self.experts if not any(self.seen(spec, expert) for spec in tasks)]
        among = unseen or self.experts
        if self.ranked:
            return best_single_expert(self._counts, among, [spec.id for spec in tasks])
        return max(among, key=lambda expert: sum(self._value(spec, expert) for spec in tasks))

    @cached_property
    def oracle(self) -> dict[str, str]:
        """Each task's best expert among those not trained on its dataset, or among all if there is none."""
        may = {}
        for spec in (*self.ranked, *self.written):
            unseen = [expert for expert in self.experts if not self.seen(spec, expert)]
            may[spec.id] = unseen or self.experts
        best = best_expert_by_task(self._counts, {spec.id: may[spec.id] for spec in self.ranked})
        for spec in self.written:
            best[spec.id] = max(may[spec.id], key=lambda expert, spec=spec: self._value(spec, expert))
        return best

    def chosen(self, method: EvaluationMethod, spec: TaskSpec) -> TaskScorer:
        """Returns what a method chose for a task, be it in hindsight."""
        if method.router == "best_single":
            return self.best_single
        if method.router == "oracle":
            return self.oracle[spec.id]
        return self.choices.scorers[method.name][spec.id]

    def seen(self, spec: TaskSpec, chosen: TaskScorer) -> bool:
        """Says whether anything that was chosen for a task was trained on the task's dataset."""
        scorers = {chosen} if isinstance(chosen, str) else set(chosen)
        return any(spec.dataset in self._trained(scorer) for scorer in scorers)

    def by_method(self) -> list[TaskScores]:
        """Returns every method's scores of every task with answer choices."""
        return [
            replace(self._of(method, spec), seen=self.seen(spec, self.chosen(method, spec)))
            for method in self.wanted
            for spec in self.ranked
        ]

    def matrix(self) -> Iterator[CorrectCount]:
        """Yields how much every expert got right of every task with answer choices."""
        for expert in self.experts:
            for spec in self.ranked:
                yield replace(self._counts[spec.id, expert], seen=self.seen(spec, expert))

    def generated(self) -> list[GeneratedResult]:
        """Returns how good every method's answers are to every task without choices."""
        found = []
        for method in self.wanted:
            for spec in self.written:
                answers = self._answers(method, spec)
                found.append(
                    GeneratedResult(
                        method=method.name,
                        task=spec.dataset,
                        prompt=spec.prompt,
                        n=len(answers.row_ids),
                        measure=answers.judgement.measure,
                        value=answers.judgement.value,
                        low=answers.judgement.low,
                        high=answers.judgement.high,
                        seen=self.seen(spec, self.chosen(method, spec)),
                    )
                )
        return found

    def examples(self, first: EvaluationMethod | None, most: int = MAX_EXAMPLES) -> list[RowExample]:
        """Returns some rows of every task with what the methods made of them.

        Those that `first` got wrong come first. Every task has as many, as far as it has them.
        """
        by_task = [list(self._rows(spec, first, most)) for spec in (*self.ranked, *self.written)]
        each = max(1, most // max(1, len(by_task)))
        some = [row for own in by_task for row in own[:each]][:most]
        return sorted(some, key=lambda row: first is not None and row.answers[first.name].right)

    def _rows(self, spec: TaskSpec, first: EvaluationMethod | None, most: int) -> Iterable[RowExample]:
        of = self._of if spec in self.ranked else self._answers
        found = {method.name: of(method, spec) for method in self.wanted}
        places = {row: at for at, row in enumerate(next(iter(found.values())).row_ids)}
        examples = [
            example for example in task_rows.examples(spec, self.run.source) if example.row_id in places
        ]

        def answer(name: str, example: PromptedExample) -> MethodAnswer:
            own, at = found[name], places[example.row_id]
            prediction = own.predictions[at]
            if isinstance(own, TaskScores):
                return MethodAnswer(
                    example.choices[int(prediction)], prediction == own.labels[at], own.scores[at]
                )
            return MethodAnswer(str(prediction), str(prediction).strip() == example.target.strip(), None)

        if first is not None:
            examples.sort(key=lambda example: answer(first.name, example).right)
        for example in examples[:most]:
            yield RowExample(
                task=spec.dataset,
                prompt=spec.prompt,
                row=example.row_id,
                input=example.input,
                choices=tuple(example.choices),
                target=example.target,
                answers={name: answer(name, example) for name in found},
            )

    def _of(self, method: EvaluationMethod, spec: TaskSpec) -> TaskScores:
        found = ranking.method_scores(self.scores, spec.id, self.chosen(method, spec), method.name)
        return ranking.drop_rows(found, self.choices.left_out.get(spec.id, ()))

    @cached_property
    def _counts(self) -> dict[tuple[str, str], CorrectCount]:
        """How much every expert got right of every task; of their rows no more than one cell's are held."""
        return {
            (spec.id, expert): self.scores.count(
                Cell(spec.id, expert), self.choices.left_out.get(spec.id, ())
            )
            for expert in self.experts
            for spec in self.ranked
        }

    def _answers(self, method: EvaluationMethod, spec: TaskSpec) -> GeneratedAnswers:
        chosen = self.chosen(method, spec)
        left_out = self.choices.left_out.get(spec.id, ())
        parts = {cell: self.answers[cell] for cell in ranking.available_cells(self.answers, spec.id, chosen)}
        if isinstance(chosen, str) and not left_out:
            return parts[Cell(spec.id, chosen)]
        return generation.assemble_answers(self.run, parts, spec, method.name, chosen, left_out)

    def _value(self, spec: TaskSpec, expert: str) -> float:
        return self.answers[Cell(spec.id, expert)].judgement.value

    def _trained(self, scorer: str) -> set[str]:
        """Returns the datasets that what works on a task was trained on."""
        if scorer not in self._datasets:
            if scorer == BASE:
                return set()  # also where there is no library
            library = Library.open(self.run.workspace.library)
            if scorer in self.choices.composites:
                found = derived_experts.training_datasets(library, self.choices.composites[scorer])
            elif scorer in self.choices.gates:
                gate = self.choices.gates[scorer]
                each = [set(library.spec(expert).datasets) for expert in gate.experts]
                found = {name for own in each if not own & set(gate.excluded) for name in own}
            else:
                found = set(home(self.run.workspace, scorer).spec(scorer).datasets)
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
