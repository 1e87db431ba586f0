"""The model that lm-eval calls `elm`: a run's base with its experts, behind lm-eval's three kinds of request.

A context goes to the encoder and a continuation to the decoder, each tokenised alone, as in lm-eval's own
encoder-decoder models. Unlike there, a continuation ends with end-of-sequence, which is scored too, so that
scores are those of `elm_jax.score_choices`; `eos=False` gives lm-eval's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
import numpy as np
from jaxtyping import Int
from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from elm_jax import storage
from elm_jax.axes import PAD
from elm_jax.errors import UserError
from elm_jax.evaluation.evaluate import check_methods
from elm_jax.evaluation.expert_stacks import ExpertStack, load_stacks
from elm_jax.evaluation.methods import EvaluationMethod
from elm_jax.experts.key_texts import QUERIES_PER_TASK
from elm_jax.experts.lookup import BASE_SCORER
from elm_jax.lm_eval import selection
from elm_jax.lm_eval.selection import Routing
from elm_jax.records import PromptedExample, Selection
from elm_jax.routing.run_inputs import RoutingInputs
from elm_jax.scoring import generator, scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.scoring.decoding import NAN_TOKEN
from elm_jax.scoring.scorer import BATCH_TOKENS, ChoiceScores
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace

# The import of lm-eval's own models looks unused: the harness imports them only if its registry is empty,
# which `elm` in it would prevent.
MAX_STACKED_EXPERTS = 64  # experts in memory at once


@register_model("elm")
class ElmLM(LM):
    """A run's base alone, with one expert, or with a router that chooses experts for each task.

    Args:
        run: An open run, or its directory.
        expert: An expert's id, for all requests, or `base`.
        router: A router, or a method as `elm evaluate` takes it, such as `roe:experts=3+ties`. The first
            `queries` distinct contexts of each task vote.
        experts: Experts of a task that the router chooses, unless the method says it.
        queries: Contexts that vote; default: as many as `elm evaluate` takes.
        exclude: Datasets, joined by +. Experts trained on one of them are not chosen, since lm-eval's names
            of tasks do not say what experts were trained on.
        eos: Whether continuations end with end-of-sequence.
        max_length: Tokens of a context at most, of which the last are kept; default: the run's.
        max_gen_toks: Tokens of an answer at most, if the task does not say; default: the run's.
        batch_tokens: Tokens of a batch.
        **others: lm-eval's batch size and device, which are ignored.

    Raises:
        UserError: If there is no such run, expert or router, or an argument is unknown.
    """

    def __init__(
        self,
        run: Run | storage.PathLike,
        expert: str | None = None,
        router: str | None = None,
        experts: int = 1,
        queries: int | None = None,
        exclude: str | Sequence[str] = (),
        eos: bool = True,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(others) - {"batch_size", "max_batch_size", "device"})
        if unknown:
            raise UserError(
                "Expected run, expert, router, experts, queries, exclude, eos, max_length, max_gen_toks or "
                f"batch_tokens as arguments of the model elm, got {unknown[0]!r}. Fix: leave it out."
            )
        if expert is not None and router is not None:
            raise UserError(
                f"Expected an expert or a router, got expert={expert} and router={router}. Fix: give one."
            )
        workspace = run.workspace if isinstance(run, Run) else Workspace.at(run)
        check_methods(workspace, [router or BASE_SCORER])  # before the base is read
        method = selection.parse_method(router or BASE_SCORER, experts)
        if expert is not None and str(expert) != BASE_SCORER:
            method = EvaluationMethod(str(expert), "fixed", {"expert": str(expert)})
        self.run = opening.ensure_open(run)
        datasets = exclude.split("+") if isinstance(exclude, str) else exclude
        self.routing = Routing(method, queries or QUERIES_PER_TASK, tuple(datasets))
        self.routing_inputs = RoutingInputs(self.run)
        self.expert, self.gates = selection.find_one_expert(self.run, self.routing)
        self.eos = eos
        self.max_length = max_length or self.run.lengths.prompt
        self.max_gen_toks = max_gen_toks or self.run.lengths.answer
        self.batch_tokens = batch_tokens
        self.selections: dict[str, Selection] = {}
        """The router's choices, by lm-eval's task."""
        self._expert_by_context: dict[tuple[str, str], str] = {}

    def __repr__(self) -> str:
        return f"elm({self.routing.method.name!r})"

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's fingerprint, for lm-eval's cache of requests."""
        return self.run.tokenizer.fingerprint

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the score in nats of each (context, continuation), and whether greedy decoding gives it.

        An empty context is end-of-sequence alone.
        """
        arguments = [request.args for request in requests]
        rows = [
            PromptWithChoices(prompt, [answer])
            for prompt, answer in zip(
                self._encode_contexts([context for context, _ in arguments]),
                self._encode_continuations([continuation for _, continuation in arguments]),
                strict=True,
            )
        ]
        scores = self._score(rows, self._choose_experts(requests), "loglikelihood", disable_tqdm)
        answers = [(float(each.scores[0]), bool(each.greedy[0])) for each in scores]
        self._add_to_cache("loglikelihood", arguments, answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the score in nats of all tokens of each text.

        As in lm-eval's own encoder-decoder models, the decoder gets windows of at most `max_length` tokens,
        and the encoder the token before each window (end-of-sequence before the first), or more of the text
        if a window is shorter.
        """
        arguments = [request.args for request in requests]
        prefix = self.run.tokenizer.eos
        rows, experts, owner = [], [], []
        experts_of_texts = self._choose_experts(requests)
        for number, tokens in enumerate(self._encode_continuations([text for (text,) in arguments])):
            windows = utils.get_rolling_token_windows(tokens, prefix, self.max_length, context_len=1)
            for before, window in map(utils.make_disjoint_window, windows):
                rows.append(PromptWithChoices(before, [window]))
                experts.append(experts_of_texts[number])
                owner.append(number)
        sums = np.zeros(len(requests))
        scores = self._score(rows, experts, "loglikelihood_rolling", disable_tqdm)
        np.add.at(sums, owner, [float(each.scores[0]) for each in scores])
        answers = sums.tolist()
        self._add_to_cache("loglikelihood_rolling", arguments, answers)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the greedily decoded answer to each (context, options), cut at the first text of `until`.

        Raises:
            UserError: If options ask for sampling or beams.
        """
        arguments = [request.args for request in requests]
        limits = [self._max_answer_tokens(options) for _, options in arguments]
        prompts = self._encode_contexts([context for context, _ in arguments])
        experts = self._choose_experts(requests)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for limit in sorted(set(limits)):
                same_limit = [number for number, own in enumerate(limits) if own == limit]
                for stack, pairs in self._load_stacks([experts[number] for number in same_limit]):
                    written = generator.generate_rows(
                        self.run.base.config,
                        stack.params,
                        [prompts[number] for number in same_limit],
                        generator.AnswerLimit(limit, self.run.tokenizer.eos),
                        stack.experts,
                        pairs,
                        batch_tokens=self.batch_tokens,
                        stacked=stack.stacked,
                        progress=_shared_progress(bar),
                    )
                    for (row, expert), tokens in zip(pairs.tolist(), written, strict=True):
                        if NAN_TOKEN in tokens:
                            raise _not_finite(stack, expert)
                        texts[same_limit[row]] = self.run.tokenizer.decode(tokens[tokens != PAD].tolist())
        stops = [options.get("until") for _, options in arguments]
        answers = list(map(_truncate_at_stop, texts, stops))
        self._add_to_cache("generate_until", arguments, answers)
        return answers

    def _score(
        self, rows: Sequence[PromptWithChoices], experts: Sequence[str], title: str, disable_tqdm: bool
    ) -> list[ChoiceScores]:
        by_row: dict[int, ChoiceScores] = {}
        with tqdm(total=len(rows), desc=title, disable=disable_tqdm) as bar:
            for stack, pairs in self._load_stacks(experts):
                rated = scorer.score_rows_and_greedy(
                    self.run.base.config,
                    stack.params,
                    rows,
                    stack.experts,
                    pairs,
                    batch_tokens=self.batch_tokens,
                    stacked=stack.stacked,
                    progress=_shared_progress(bar),
                )
                for (row, expert), each in zip(pairs.tolist(), rated, strict=True):
                    if not np.isfinite(each.scores).all():
                        raise _not_finite(stack, expert)
                    by_row[row] = each
        return [by_row[row] for row in range(len(rows))]

    def _load_stacks(self, experts: Sequence[str]) -> Iterator[tuple[ExpertStack, Int[np.ndarray, "P 2"]]]:
        """Yields stacks of experts, each with its pairs (row, expert).

        Args:
            experts: The expert of each row.
        """
        for stack in load_stacks(self.run, experts, MAX_STACKED_EXPERTS, self.gates):
            pairs = [
                (row, stack.slots[expert]) for row, expert in enumerate(experts) if expert in stack.slots
            ]
            yield stack, np.array(pairs, np.int64).reshape(-1, 2)

    def _choose_experts(self, requests: Sequence[Any]) -> list[str]:
        """Returns the expert of each request; a router chooses once for a task and a context."""
        if self.expert is not None:
            return [self.expert] * len(requests)
        keys = [(request.task_name or "", request.args[0]) for request in requests]
        for task in dict.fromkeys(task for task, _ in keys):
            self._route_task(task, [request for request in requests if (request.task_name or "") == task])
        return [self._expert_by_context[key] for key in keys]

    def _route_task(self, task: str, requests: Sequence[Any]) -> None:
        choices: dict[str, list[str]] = {}
        for request in requests:
            context, *rest = request.args
            choices.setdefault(context, []).extend(each for each in rest if isinstance(each, str))
        # An empty context does not vote: it is there to score a continuation without its prompt.
        new = [context for context in choices if context and (task, context) not in self._expert_by_context]
        chosen = self.selections.get(task)
        if new:
            examples = [
                PromptedExample(str(number), context, "", tuple(choices[context]))
                for number, context in enumerate(new)
            ]
            expert_by_input, chosen = selection.select_experts(
                self.routing_inputs, task, examples, self.routing
            )
            self.selections.setdefault(task, chosen)
            self._expert_by_context |= {
                (task, context): expert for context, expert in expert_by_input.items()
            }
        if ("" in choices) and (task, "") not in self._expert_by_context:
            if chosen is None:
                raise UserError(
                    f"Expected contexts of {task!r} for the router, got empty ones. Fix: name an expert, "
                    "expert=ID."
                )
            weights = chosen.weights
            self._expert_by_context[task, ""] = max(weights, key=lambda expert: weights[expert])

    def _encode_contexts(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self.run.tokenizer
        end = [tokenizer.eos] if tokenizer.input_eos else []
        limit = self.max_length - len(end)
        encoded = tokenizer.encode_all(texts)
        # A context comes once for each of its continuations.
        lengths = [len(ids) for ids in dict(zip(texts, encoded, strict=True)).values()]
        if cut := [length for length in lengths if length > limit]:
            self.run.stages.console.print(
                f"{len(cut)} of {len(lengths)} contexts have more than {self.max_length} tokens and lose "
                f"their beginning, {sum(cut) - limit * len(cut)} of {sum(lengths)} tokens in all; "
                f"max_length={max(cut) + len(end)} keeps them."
            )
        # An empty context is end-of-sequence alone, even if the base was trained without.
        return [[*ids[max(0, len(ids) - limit) :], *end] or [tokenizer.eos] for ids in encoded]

    def _encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        end = [self.run.tokenizer.eos] if self.eos else []
        return [[*ids, *end] for ids in self.run.tokenizer.encode_all(texts)]

    def _max_answer_tokens(self, options: dict[str, Any]) -> int:
        """Returns how many tokens an answer may have; tasks have several names for it."""
        greedy = not options.get("do_sample") and options.get("num_beams", 1) == 1
        if not greedy or float(options.get("temperature") or 0.0) > 0.0:
            raise UserError(
                f"Expected greedy decoding, got {options}. Fix: give --gen_kwargs "
                "do_sample=False,temperature=0."
            )
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        return int(next((options[name] for name in names if options.get(name)), self.max_gen_toks))

    def _add_to_cache(self, kind: str, arguments: Sequence[Any], answers: Sequence[Any]) -> None:
        """Adds answers to lm-eval's cache."""
        for each, answer in zip(arguments, answers, strict=True):
            self.cache_hook.add_partial(kind, each, answer)


def _truncate_at_stop(text: str, stops: str | Sequence[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or ():
        if stop:
            text = text.split(stop)[0]
    return text


def _shared_progress(bar: Any) -> scorer.OnProgress:
    """Returns a callback that advances a progress bar that several calls share."""
    before = bar.n

    def advance(done: int, _: int) -> None:
        bar.update(before + done - bar.n)

    return advance


def _not_finite(stack: ExpertStack, slot: int) -> UserError:
    name = next(name for name, own in stack.slots.items() if own == slot)
    return UserError(
        f"Expected finite scores, got NaN or infinity from {name!r}. Fix: train it again, or name another "
        "expert."
    )
