"""Routing inputs: what routers read of a run, for one or several routers and tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from elm_jax.data import task_rows, task_selection
from elm_jax.experts import compatibility, key_texts
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import DescribedLibrary
from elm_jax.records import PromptedExample, RowCounts, TaskSpec
from elm_jax.reporting.records import KeyMap
from elm_jax.routing import key_map
from elm_jax.routing.embedding import Embedder
from elm_jax.routing.gate_specs import load_read_arguments
from elm_jax.routing.index import (
    TEXT_FORMAT,
    describe_tokenization,
    embed_keys,
    load_embedder_settings,
    load_run_embedder,
    make_expert_keys,
    resolve_settings,
)
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.key_index import build_key_index, build_keyless_index, stack_keys
from elm_jax.routing.registry import Router
from elm_jax.session.workspace import Run
from elm_jax.statistics import expert_statistics


@dataclass(frozen=True)
class KeySettings:
    """How keys are made in memory, in the place of those that experts have; None is as these are.

    Attributes:
        size: How many keys each expert gets; by default as `elm index` makes.
        text_format: How inputs are written.
        embedder: "t5" or a sentence encoder.
    """

    size: int | None = None
    text_format: str | None = None
    embedder: str | None = None


@dataclass
class RoutingInputs:
    """What routers read of a run; everything is loaded or embedded once, when it is first needed.

    Attributes:
        run: The run.
        experts: Ids of experts of the library; all of them by default.
        queries_per_task: How many inputs of a task routers see.
        examples: Task id -> its prompted examples, of tasks that are rendered already.
        keep: Whether what routers choose is stored in the run.
        keys: How keys are made, if they are not the experts' own.
        options: What a method says of its experts and keys, by which its choices are stored.
        counts: What became of the rows of each task that was rendered for its queries.
    """

    run: Run
    experts: Sequence[str] | None = None
    queries_per_task: int = key_texts.QUERIES_PER_TASK
    examples: Mapping[str, Sequence[PromptedExample]] = field(default_factory=dict)
    keep: bool = True
    keys: KeySettings | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: dict[str, RowCounts] = field(default_factory=dict)
    _queries: dict[tuple[str, str | None, int | None], Queries] = field(default_factory=dict)
    _arguments: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def library(self) -> Library:
        """The run's library, whose experts have the run's vocabulary."""
        library = DescribedLibrary.open(self.run.workspace.library)
        specs = map(library.spec, self.experts or library.ids())
        compatibility.require_vocabulary(specs, self.run.tokenizer.fingerprint)
        return library

    @cached_property
    def embedder(self) -> Embedder:
        """What the keys are embedded with."""
        settings = load_embedder_settings(self.run.workspace)
        if self.keys and self.keys.embedder:
            settings = resolve_settings(self.run, settings, self.keys.embedder, None, ())
        return load_run_embedder(self.run, settings)

    @cached_property
    def key_index(self) -> KeyIndex:
        """The experts with their keys, without those that have none and can get none."""
        experts = self.experts or self.library.ids()
        usable = [
            expert
            for expert in experts
            if (self.library.has_keys(expert) and self.keys is None)
            or expert_statistics.can_have_keys(self.library.spec(expert), self.run.source)
        ]
        if usable:
            skipped = [expert for expert in experts if expert not in usable]
            expert_statistics.report_skipped_experts(self.run, skipped)
        if usable and self.keys is not None:
            return self._make_key_index(usable, self.keys)
        return build_key_index(
            self.library, usable or experts, describe_tokenization(self.run, self.embedder)
        )

    def _make_key_index(self, experts: Sequence[str], settings: KeySettings) -> KeyIndex:
        """Returns experts with keys of other settings than those that they have."""
        first = next(filter(self.library.has_keys, experts), None)
        own_format = TEXT_FORMAT if first is None else self.library.load_keys(first).text_format
        size = key_texts.KEYS_PER_EXPERT if settings.size is None else settings.size
        text_format = settings.text_format or own_format
        specs, made = [self.library.spec(expert) for expert in experts], []
        with self.run.stages.stage("embed keys", len(specs)) as advance:
            for done, spec in enumerate(specs, start=1):
                made.append(make_expert_keys(self.run, spec, self.embedder, size, text_format)[0])
                advance(done, "")
        return stack_keys(experts, [spec.datasets for spec in specs], made)

    @cached_property
    def keyless_index(self) -> KeyIndex:
        """The experts without their keys."""
        return build_keyless_index(self.library, self.experts or self.library.ids())

    @cached_property
    def index_with_composites(self) -> KeyIndex:
        """The experts and the run's composites without their keys: whatever can be named."""
        composites = Library(self.run.workspace.composites)
        others = build_keyless_index(
            composites, [expert for expert in composites.ids() if expert not in self.library]
        )
        return replace(
            self.keyless_index,
            experts=(*self.keyless_index.experts, *others.experts),
            datasets=(*self.keyless_index.datasets, *others.datasets),
        )

    def choose_index(self, router: Router) -> KeyIndex:
        """Returns the index that a router chooses from."""
        if "expert" in router.reads:
            return self.index_with_composites
        return self.key_index if router.reads_keys else self.keyless_index

    def load_arguments(self, router: Router, index: KeyIndex) -> dict[str, Any]:
        """Returns what a router reads of the index's experts, by the name of its argument."""
        arguments = self._arguments.setdefault(index.experts, {})
        arguments |= load_read_arguments(self.run, router, index.experts, known=arguments)
        return {name: value for name, value in arguments.items() if name in router.reads}

    def make_queries(
        self, spec: TaskSpec, router: Router, text_format: str | None = None, *, all_rows: bool = False
    ) -> Queries:
        """Returns a task's queries: inputs of it without labels, embedded as the keys were.

        Args:
            spec: The task.
            router: The router; one that reads neither vectors nor texts gets no queries.
            text_format: How the inputs are written; by default as the keys.
            all_rows: Whether all rows are queries, in their order, rather than a sample.
        """
        if not router.reads_keys:
            return Queries(spec.id, ())
        size = None if all_rows else self.queries_per_task
        known = (spec.id, text_format, size)
        if known not in self._queries:
            examples = self.examples.get(spec.id)
            if examples is None:
                examples = task_rows.load_examples(spec, self.run.source)
                self.counts[spec.id] = examples.counts
            if size is not None:
                examples = key_texts.sample_examples(examples, size, self.run.source.seed)
            text_format = text_format or self.key_index.text_format
            choices = task_selection.get_choices_expression(spec, self.run.source)
            texts = key_texts.format_texts(examples, text_format, choices)
            row_ids = [example.row_id for example in examples]
            self._queries[known] = self.embed_queries(spec.id, row_ids, texts, text_format)
        return self._queries[known]

    def draw_map(self) -> KeyMap | None:
        """Returns where the keys and the queries that were made so far lie; None if there are none."""
        return key_map.draw_key_map(self.key_index, list(self._queries.values())) if self._queries else None

    def embed_queries(
        self, task: str, row_ids: Sequence[str], texts: Sequence[str], text_format: str
    ) -> Queries:
        """Returns the queries of these texts, embedded as the keys were."""
        embedded = embed_keys(self.embedder, texts, text_format)
        return Queries(
            task=task,
            row_ids=tuple(row_ids),
            texts=embedded.texts,
            vectors=embedded.vectors,
            embedder=embedded.embedder,
            text_format=embedded.text_format,
        )
