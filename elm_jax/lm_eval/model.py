"""The model that lm-eval calls `elm`: a run's base with its experts, behind lm-eval's three questions.

A context goes to the encoder and a continuation to the decoder, each tokenised alone, as lm-eval's own
encoder-decoder models have it. Unlike them a continuation ends with end-of-sequence, which counts: so scores
are those of `elm_jax.score_choices`; `eos=False` gives lm-eval's.
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
from elm_jax.evaluation.expert_stacks import Stack, stacks
from elm_jax.experts.lookup import BASE, home
from elm_jax.lm_eval import selection
from elm_jax.lm_eval.selection import Routing
from elm_jax.records import PromptedExample, Selection
from elm_jax.scoring import generator, scorer
from elm_jax.scoring.buckets import Row
from elm_jax.scoring.decoding import NO_NUMBERS
from elm_jax.scoring.scorer import BATCH_TOKENS, Rated
from elm_jax.session import opening

# lm-eval's own models are imported above, though unused: the harness lists them only where its registry is
# empty, which `elm` in it would prevent.
MAX_STACKED_EXPERTS = 64  # experts that are held together


@register_model("elm")
class ElmLM(LM):
    """A run with one expert for all requests, with a router that chooses by task, or with the base alone.

    `run` is the run's directory, `expert` an expert's id in it or `base`. With `router` the first `queries`
    distinct contexts of every task vote, and `experts` of the winners are averaged; experts trained on one of
    the datasets in `exclude`, joined by +, are passed over, since lm-eval's names of tasks do not say what
    they were trained on. Contexts longer than `max_length` tokens lose their beginning, and answers are of
    `max_gen_toks` at most where a task does not say; both are the run's own lengths without these. Batches
    hold `batch_tokens`; lm-eval's batch size and device are not looked at.
    """

    def __init__(
        self,
        run: storage.PathLike,
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
                f"The model elm takes run, expert, router, experts, queries, exclude, eos, max_length, "
                f"max_gen_toks and batch_tokens, but {unknown[0]!r} came."
            )
        if expert is not None and router is not None:
            raise UserError(
                f"Either an expert or a router is wanted, but expert={expert} and router={router} came."
            )
        named = exclude.split("+") if isinstance(exclude, str) else exclude
        self.routing = None
        if router is not None:
            default = Routing()
            self.routing = Routing(str(router), experts, queries or default.queries, tuple(named))
            selection.require_unlabelled_router(self.routing)
        self.run = opening.open_run(run)
        self.expert = BASE if expert is None else str(expert)
        if self.expert != BASE:
            home(self.run.workspace, self.expert).spec(self.expert)  # says so if there is none
        gate = self.routing and selection.load_gate(self.run, self.routing)
        self.gated = {gate.id: gate} if gate else {}
        if gate:
            self.expert, self.routing = gate.id, None
        self.eos = eos
        self.max_length = max_length or self.run.lengths.prompt
        self.max_gen_toks = max_gen_toks or self.run.lengths.answer
        self.batch_tokens = batch_tokens
        self.selections: dict[str, Selection] = {}
        """What the router chose, by lm-eval's task."""
        self._serving: dict[tuple[str, str], str] = {}

    @property
    def tokenizer_name(self) -> str:
        """Names the vocabulary, for lm-eval's cache of requests."""
        return self.run.pieces.fingerprint

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns for every (context, continuation) its score in nats, and whether greedy decoding gives it.

        A context that is empty is end-of-sequence alone.
        """
        asked = [request.args for request in requests]
        rows = [
            Row(prompt, [answer])
            for prompt, answer in zip(
                self._contexts([context for context, _ in asked]),
                self._continuations([continuation for _, continuation in asked]),
                strict=True,
            )
        ]
        rated = self._rated(rows, self._experts(requests), "loglikelihood", disable_tqdm)
        told = [(float(each.scores[0]), bool(each.greedy[0])) for each in rated]
        self._remember("loglikelihood", asked, told)
        return told

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns for every text the score in nats of all of its tokens.

        As lm-eval's own encoder-decoder models have it: the decoder takes windows of at most `max_length`
        tokens, the encoder the token before each (before the first, end-of-sequence), and more of the text
        where a window is shorter.
        """
        asked = [request.args for request in requests]
        prefix = self.run.pieces.eos
        rows, experts, owner = [], [], []
        serving = self._experts(requests)
        for number, tokens in enumerate(self._continuations([text for (text,) in asked])):
            windows = utils.get_rolling_token_windows(tokens, prefix, self.max_length, context_len=1)
            for before, window in map(utils.make_disjoint_window, windows):
                rows.append(Row(before, [window]))
                experts.append(serving[number])
                owner.append(number)
        sums = np.zeros(len(requests))
        rated = self._rated(rows, experts, "loglikelihood_rolling", disable_tqdm)
        np.add.at(sums, owner, [float(each.scores[0]) for each in rated])
        told = sums.tolist()
        self._remember("loglikelihood_rolling", asked, told)
        return told

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns what is written greedily to every (context, options), up to the first of `until`.

        Raises a UserError for options that ask for sampling or beams.
        """
        asked = [request.args for request in requests]
        lengths = [self._length(options) for _, options in asked]
        prompts = self._contexts([context for context, _ in asked])
        experts = self._experts(requests)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for length in sorted(set(lengths)):
                of_length = [number for number, wanted in enumerate(lengths) if wanted == length]
                for stack, pairs in self._served([experts[number] for number in of_length]):
                    written = generator.generate_rows(
                        self.run.base.config,
                        stack.params,
                        [prompts[number] for number in of_length],
                        length,
                        self.run.pieces.eos,
                        stack.experts,
                        pairs,
                        batch_tokens=self.batch_tokens,
                        stacked=stack.stacked,
                        progress=_shared_progress(bar),
                    )
                    for (row, expert), tokens in zip(pairs.tolist(), written, strict=True):
                        if NO_NUMBERS in tokens:
                            raise _not_finite(stack, expert)
                        texts[of_length[row]] = self.run.pieces.decode(tokens[tokens != PAD].tolist())
        told = [_cut_at(text, options.get("until")) for text, (_, options) in zip(texts, asked, strict=True)]
        self._remember("generate_until", asked, told)
        return told

    def _rated(
        self, rows: Sequence[Row], experts: Sequence[str], what: str, disable_tqdm: bool
    ) -> list[Rated]:
        found: dict[int, Rated] = {}
        with tqdm(total=len(rows), desc=what, disable=disable_tqdm) as bar:
            for stack, pairs in self._served(experts):
                rated = scorer.rate_rows(
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
                    found[row] = each
        return [found[row] for row in range(len(rows))]

    def _served(self, experts: Sequence[str]) -> Iterator[tuple[Stack, Int[np.ndarray, "P 2"]]]:
        """Yields experts laid side by side, and (row, expert) of theirs; `experts` has that of every row."""
        for stack in stacks(self.run, experts, MAX_STACKED_EXPERTS, self.gated):
            pairs = [
                (row, stack.places[expert]) for row, expert in enumerate(experts) if expert in stack.places
            ]
            yield stack, np.array(pairs, np.int64).reshape(-1, 2)

    def _experts(self, requests: Sequence[Any]) -> list[str]:
        """Returns the expert of every request; a router's choice for a task and a context is kept."""
        if self.routing is None:
            return [self.expert] * len(requests)
        asked = [(request.task_name or "", request.args[0]) for request in requests]
        for task in dict.fromkeys(task for task, _ in asked):
            self._route(task, [request for request in requests if (request.task_name or "") == task])
        return [self._serving[key] for key in asked]

    def _route(self, task: str, requests: Sequence[Any]) -> None:
        choices: dict[str, list[str]] = {}
        for request in requests:
            context, *rest = request.args
            choices.setdefault(context, []).extend(each for each in rest if isinstance(each, str))
        # An empty context, of a score without its prompt, has no vote.
        new = [context for context in choices if context and (task, context) not in self._serving]
        settled = self.selections.get(task)
        if new:
            assert self.routing is not None
            examples = [
                PromptedExample(str(number), context, "", tuple(choices[context]))
                for number, context in enumerate(new)
            ]
            serving, settled = selection.select_experts(self.run, task, examples, self.routing)
            self.selections.setdefault(task, settled)
            self._serving |= {(task, context): expert for context, expert in serving.items()}
        if ("" in choices) and (task, "") not in self._serving:
            if settled is None:
                raise UserError(
                    f"A router is to choose for {task!r} by its contexts, but all of them are empty. Name an "
                    "expert instead, expert=ID."
                )
            self._serving[task, ""] = max(settled.weights, key=lambda expert: settled.weights[expert])

    def _contexts(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = self.run.pieces
        end = [pieces.eos] if pieces.input_eos else []
        kept = self.max_length - len(end)
        # An empty context is read as end-of-sequence alone, whatever the base was trained on.
        return [[*ids[max(0, len(ids) - kept) :], *end] or [pieces.eos] for ids in pieces.encode_all(texts)]

    def _continuations(self, texts: Sequence[str]) -> list[list[int]]:
        end = [self.run.pieces.eos] if self.eos else []
        return [[*ids, *end] for ids in self.run.pieces.encode_all(texts)]

    def _length(self, options: dict[str, Any]) -> int:
        """Returns how many tokens an answer may have, by any of the names that tasks have for it."""
        greedy = not options.get("do_sample") and options.get("num_beams", 1) == 1
        if not greedy or float(options.get("temperature") or 0.0) > 0.0:
            raise UserError(
                f"Answers are written greedily, but the task asks for {options}. Give --gen_kwargs "
                "do_sample=False,temperature=0."
            )
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        return int(next((options[name] for name in names if options.get(name)), self.max_gen_toks))

    def _remember(self, question: str, asked: Sequence[Any], told: Sequence[Any]) -> None:
        """Gives the answers to lm-eval's cache."""
        for request, answer in zip(asked, told, strict=True):
            self.cache_hook.add_partial(question, request, answer)


def _cut_at(text: str, stops: str | Sequence[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or ():
        if stop:
            text = text.split(stop)[0]
    return text


def _shared_progress(bar: Any) -> scorer.Progress:
    """Returns what moves a bar on that several calls share."""
    before = bar.n

    def advance(done: int, _: int) -> None:
        bar.update(before + done - bar.n)

    return advance


def _not_finite(stack: Stack, place: int) -> UserError:
    name = next(name for name, own in stack.places.items() if own == place)
    return UserError(
        f"Numbers are wanted, but {name!r} gives none: its weights hold NaN or infinity. Train it again, "
        "or name another."
    )
