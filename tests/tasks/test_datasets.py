"""The catalogue is the paper's: its datasets, prompts, metrics, sources, and how its experts were trained."""

import contextlib
import json
from collections import Counter

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.prompting.template_files import load_templates
from elm_jax.tasks import datasets, original, task_templates
from elm_jax.tasks.datasets import Training
from tests.shared_data import SHARED, TEMPLATES

EXPERTS = SHARED / "reference" / "experts.json"
ROWS = SHARED / "reference" / "datasets.json"
METRICS = {
    "accuracy": "accuracy",
    "rougeL": "rouge_l",
    "em": "exact_match",
    "bleu": "bleu",
    "rouge1": "rouge_1",
    "bertscore": "bert_score",
}
FIELDS = {
    "epochs": "epochs",
    "lr": "rate",
    "batch": "batch",
    "max_source_length": "source_length",
    "max_target_length": "target_length",
    "max_train_samples": "rows",
    "max_train_samples_per_prompt": "rows",
}
ALL = datasets.all_datasets()


def of(group):
    return {name: dataset for name, dataset in ALL.items() if dataset.group == group}


@pytest.mark.parametrize(
    ("group", "count", "prompts"),
    [("train", 36, 296), ("unseen", 11, 113), ("bigbench", 13, 13), ("targets", 9, 16)],
)
def test_a_group_has_the_papers_datasets_and_prompts(group, count, prompts):
    assert len(of(group)) == count
    assert sum(len(dataset.prompts) for dataset in of(group).values()) == prompts


def test_training_datasets_are_in_the_papers_eight_categories():
    assert Counter(dataset.family for dataset in of("train").values()) == {
        "extractive_qa": 4,
        "topic_classification": 3,
        "sentiment": 5,
        "summarization": 5,
        "structure_to_text": 2,
        "multiple_choice_qa": 12,
        "paraphrase_identification": 3,
        "closed_book_qa": 2,
    }


def test_prompts_are_scored_as_in_the_paper():
    metrics = Counter(metric for dataset in of("train").values() for metric in dataset.prompts.values())
    assert metrics == {"accuracy": 182, "rouge_l": 82, "exact_match": 32}
    assert {metric for each in of("unseen").values() for metric in each.prompts.values()} == {"accuracy"}


def test_prompts_keep_the_spaces_at_their_ends():
    spaced = {
        (name, prompt) for name, each in ALL.items() for prompt in each.prompts if prompt != prompt.strip()
    }
    assert spaced == {
        ("dbpedia_14", "given_a_choice_of_categories "),
        ("imdb", "Sentiment with choices "),
        ("rotten_tomatoes", "Sentiment with choices "),
        ("quoref", "Read And Extract "),
    }


def test_an_expert_is_trained_as_its_dataset_or_its_own_exception_says():
    quartz = ALL["quartz"]
    usual = Training(5, 1e-4, 8, 256, 128, 50_000)
    assert datasets.training(quartz, "answer_question_below") == usual
    assert datasets.training(quartz, "use_info_from_paragraph_question").epochs == 10
    assert datasets.training(quartz, "read_passage_below_choose").batch == 4
    assert quartz.dataset_expert == Training(5, 3e-4, 8, 256, 128, 1250)
    assert datasets.training(ALL["covid_qa"], "covid_qa_deepset") == Training(50, 1e-4, 8, 512, 256, 100_000)
    with pytest.raises(UserError, match="'hellaswag'"):
        datasets.training(ALL["hellaswag"], "how_ends")


def test_ten_target_prompts_and_every_training_prompt_have_an_expert():
    assert sum(len(dataset.experts) for dataset in of("targets").values()) == 10
    assert sum(len(dataset.experts) for dataset in of("train").values()) == 296
    assert not any(dataset.experts for group in ("unseen", "bigbench") for dataset in of(group).values())


def test_every_split_that_is_read_has_its_size_and_a_source():
    for dataset in ALL.values():
        assert dataset.sources
        for split in {dataset.split, dataset.evaluate or dataset.split}:
            assert split in dataset.splits
            assert all(
                split in source.files
                for source in dataset.sources
                if len(dataset.sources) == 1 and source.files
            )
        if dataset.group != "targets":
            assert all(dataset.splits.values())
        assert dataset.label is None or dataset.label in dataset.columns
        for source in dataset.sources:
            assert set(source.splits) | set(source.files) <= set(dataset.splits)
            assert set(source.lacks) <= set(dataset.columns)


def test_a_dataset_that_cannot_be_fetched_says_what_to_do():
    for dataset in ALL.values():
        fetched = [each for each in dataset.sources if each.kind in ("hub", "tfds") and not each.manual]
        assert fetched or dataset.sources[0].manual or dataset.sources[0].kind == "ct0"
    assert "form" in ALL["story_cloze"].sources[0].manual


def test_the_switches_of_the_catalogue_are_known():
    assert {switch for dataset in ALL.values() for switch in dataset.faithful} == set(
        original.ROW_SWITCHES
    ) - {"empty_renderings"}
    assert sum("first_rows" in dataset.faithful for dataset in ALL.values()) == 10


@pytest.mark.shared_data
def test_prompts_configurations_and_metrics_are_the_references():
    facts = json.loads(EXPERTS.read_text())
    for group, key in [("train", "train"), ("unseen", "unseen_eval"), ("targets", "targets")]:
        assert set(of(group)) == set(facts[key])
        for name, dataset in of(group).items():
            fact = facts[key][name]
            assert list(dataset.prompts) == fact["prompts"]
            details = fact.get("prompt_details", {})
            for prompt, metric in dataset.prompts.items():
                told = details[prompt]["seen_metric"] if details else fact.get("metric_in_code", "accuracy")
                assert metric == METRICS[told]
            if group != "targets":
                assert dataset.templates == fact["promptsource"]
                assert dataset.config == (None if fact["config"] == "none" else fact["config"])
    assert set(of("bigbench")) == set(facts["bigbench"])
    for category, members in facts["categories"].items():
        assert {name for name, each in of("train").items() if each.family == category} == set(members)


@pytest.mark.shared_data
def test_training_and_its_exceptions_are_the_references():
    def told(fact, base=None):
        fields = {FIELDS[name]: value for name, value in fact.items() if name in FIELDS}
        # TREC's configurations leave the cap to the code's default.
        return {"target_length": 128, **(base or {}), **fields} | (
            {"rows": 10_000} if fields.get("rows", 0) is None else {}
        )

    facts = json.loads(EXPERTS.read_text())
    for name, dataset in of("train").items():
        fact = facts["train"][name]
        usual = told(fact["pe_hyperparameters"])
        exceptions = fact.get("pe_hyperparameter_exceptions", {})
        assert set(dataset.exceptions) == set(exceptions)
        for prompt in dataset.prompts:
            wanted = told(exceptions.get(prompt, {}), usual)
            assert datasets.training(dataset, prompt) == Training(**wanted)
        expert = fact["de_adapter_config"]
        assert dataset.dataset_expert == (Training(**told(expert)) if expert else None)
    for name, dataset in of("targets").items():
        fact = facts["targets"][name]
        assert set(dataset.experts) == set(fact.get("expert_trained_on", []))
        if "expert_hyperparameters" in fact:
            assert dataset.training == Training(**told(fact["expert_hyperparameters"]))


@pytest.mark.shared_data
def test_sizes_and_sources_are_the_references():
    for fact in json.loads(ROWS.read_text())["datasets"]:
        dataset = ALL[fact["elm_name"]]
        hub = [source for source in dataset.sources if source.kind == "hub"]
        if dataset.group == "targets":
            assert {source.kind for source in dataset.sources} == {"ct0"}
            continue
        if dataset.group == "bigbench":
            assert dataset.splits == {"default": fact["examples"]}
            assert (hub[0].name, hub[0].config) == (fact["hf"]["hub_id"], fact["hf"]["config"])
            continue
        for split, rows in dataset.splits.items():
            theirs = hub[0].splits.get(split, split) if hub else split
            if "[" not in theirs:  # a slice of a dataset that is all in one split
                assert rows == fact["hf"]["splits"][theirs]
        if hub:
            assert (hub[0].name, hub[0].config) == (fact["hf"]["hub_id"], fact["hf"]["config"])
        for source in dataset.sources:
            if source.kind == "tfds":
                parts = [fact["tfds"]["name"], fact["tfds"]["config"]]
                assert source.name == "/".join(filter(None, parts)) + ":" + fact["tfds"]["version"]
                assert bool(source.manual) == fact["tfds"]["manual_download"]


@pytest.mark.shared_data
def test_every_template_of_every_dataset_reads_columns_that_it_has():
    for dataset in ALL.values():
        if dataset.templates is None:
            continue
        found = load_templates(TEMPLATES, dataset.templates)
        assert set(dataset.prompts) <= set(found)
        for template in found.values():
            task_templates.require_columns(dataset, template)


MINIMAL = """\
group: mine
defaults: {family: mine, split: train}
datasets:
  reviews:
    splits: {train: 2}
    columns: [text, label]
    sources:
    - jsonl: {train: reviews.jsonl}
    template: {jinja: "{{text}} ||| {{label}}"}
    prompts: [is it good]
"""


def test_a_dataset_of_ones_own_takes_a_few_lines(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    reviews = datasets.read_catalogue_file(tmp_path / "mine.yaml")["reviews"]
    assert reviews.prompts == {"is it good": "accuracy"}
    assert reviews.sources[0].files == {"train": ("reviews.jsonl",)}
    assert reviews.training is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("columns:", "colums:", "No field named 'colums' .* dataset 'reviews' .*'columns'"),
        ("- jsonl:", "- jsnl:", "kind among jsonl, csv.* got"),
        (
            "jsonl: {train: reviews.jsonl}",
            "{jsonl: {train: a}, adapter: unchangd}",
            "No adapter named 'unchangd'",
        ),
        ("jsonl: {train: reviews.jsonl}", "{hub: a/b, revison: x}", "No field named 'revison' .*'revision'"),
        ("splits: {train: 2}", "training: {epochs: 1}", "expected rate, batch, .* of a training"),
        ("    splits: {train: 2}\n", "", "expected splits of a dataset"),
        ("prompts: [is it good]", "prompts: 5", "dataset 'reviews': expected fields"),
        ("group: mine", "groups: mine", "to hold a `group`"),
        ("group: mine", "group: !!python/object:os.system {}", "line 1: expected plain YAML"),
        ("family: mine", "family: [", "expected plain YAML"),
    ],
)
def test_a_mistake_in_a_catalogue_is_an_error_naming_file_and_place(tmp_path, old, new, message):
    (tmp_path / "mine.yaml").write_text(MINIMAL.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        datasets.read_catalogue_file(tmp_path / "mine.yaml")
    assert "mine.yaml'" in str(error.value)


def test_an_absent_catalogue_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml"):
        datasets.read_catalogue_file(tmp_path / "none.yaml")


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "splits",
    "columns",
    "sources",
    "prompts",
    "training",
    "exceptions",
    "dataset_expert",
    "experts",
    "label",
]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_values_are_a_dataset_or_a_user_error(tmp_path_factory, fields):
    file = tmp_path_factory.mktemp("any") / "mine.yaml"
    entry = {"split": "train", "family": "x", **fields}
    file.write_text(yaml.safe_dump({"group": "mine", "datasets": {"one": entry}}))
    with contextlib.suppress(UserError):
        assert set(datasets.read_catalogue_file(file)) == {"one"}
