"""TFDS: rows come back from files written with the real builders' names, versions and features.

TensorFlow takes long to import, so all that needs it is in this file.
"""

import os
import warnings

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting.render import render
from elm_jax.prompting.template_files import load_templates
from elm_jax.tasks import raw_rows, rendering, source_choice, sources, specs
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import all_datasets
from tests.shared_data import TEMPLATES

NLI = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 0, "label": 0}
ARTICLE = {"document": "A long story.", "summary": "Short."}
# One row of every builder that the catalogue names, in the builder's own columns.
ROWS = {
    "trec:1.0.0": {"label-coarse": 3, "label-fine": 4, "text": "Who was it ?"},
    "cos_e:0.0.1": {
        "id": "1",
        "question": "Where?",
        "choices": ["here", "there", "home", "away", "up"],
        "answer": "home",
        "abstractive_explanation": "It is so.",
        "extractive_explanation": "so",
    },
    "cosmos_qa:1.0.0": {
        "context": "He slept.",
        "question": "Why?",
        **{f"answer{n}": f"reason {n}" for n in range(4)},
        "label": 2,
        "id": "1",
    },
    "qasc:0.1.0": {
        "id": "1",
        "question": "What melts?",
        "choices": {"text": ["ice", "wood"], "label": ["A", "B"]},
        "answerKey": "A",
        "fact1": "Heat melts.",
        "fact2": "Ice melts.",
        "combinedfact": "Heat melts ice.",
        "formatted_question": "What melts? (A) ice (B) wood",
    },
    "imdb_reviews/plain_text:1.0.0": {"text": "Good.", "label": 1},
    "paws_wiki/labeled_final_tokenized:1.1.0": {"sentence1": "a", "sentence2": "b", "label": 1},
    "glue/qqp:2.0.0": {"question1": "a?", "question2": "b?", "label": 1, "idx": 0},
    "glue/mrpc:2.0.0": {"sentence1": "a", "sentence2": "Zoë", "label": 1, "idx": 0},
    "ag_news_subset:1.0.0": {"label": 2, "title": "Up", "description": "Shares rose."},
    "wiki_bio:0.1.0": {
        "input_text": {
            "table": {"column_header": ["name", "born"], "row_number": [1, 1], "content": ["Ann", "1900"]},
            "context": "ann",
        },
        "target_text": "Ann was born in 1900.",
    },
    "cnn_dailymail:3.4.0": {"article": "Long.", "highlights": "Short.", "publisher": "cnn", "id": "1"},
    "gigaword:1.2.0": ARTICLE,
    "multi_news:2.1.0": {"document": "One. ||||| Two.", "summary": "Both."},
    "samsum:1.0.0": {"dialogue": "A: hi\nB: ho", "summary": "They greet.", "id": "1"},
    "xsum:1.1.0": ARTICLE,
    "hellaswag:1.1.0": {
        "context": "He runs.",
        "endings": ["a", "b", "c", "d"],
        "activity_label": "Sport",
        "label": 3,
        "split_type": "indomain",
        "source_id": "1",
    },
    **{
        f"anli/r{n}:0.1.0": {"uid": "1", "context": "It rains.", "hypothesis": "It is wet.", "label": 2}
        for n in (1, 2, 3)
    },
    "super_glue/copa:1.0.2": {
        "premise": "It rained.",
        "choice1": "He got wet.",
        "choice2": "He ate.",
        "question": "effect",
        "idx": 0,
        "label": 0,
    },
    "super_glue/cb:1.0.2": NLI,
    "super_glue/rte:1.0.2": NLI,
    "super_glue/wsc.fixed:1.0.2": {
        "text": "Ann said she would.",
        "span1_index": 0,
        "span2_index": 2,
        "span1_text": "Ann",
        "span2_text": "she",
        "idx": 0,
        "label": 1,
    },
    "super_glue/wic:1.0.2": {
        "word": "bank",
        "sentence1": "The bank.",
        "sentence2": "A bank.",
        "start1": 4,
        "start2": 2,
        "end1": 8,
        "end2": 6,
        "idx": 0,
        "label": 0,
    },
    "winogrande:1.2.0": {"sentence": "Ann saw _.", "option1": "Bo", "option2": "Cy", "label": 1},
}
# What the templates should get where that is not the row itself.
ADAPTED = {
    "trec": {
        "text": "Who was it ?",
        "label_coarse": 3,  # HUM
        "label_fine": 4,  # ind
        "coarse_label": 3,  # HUM in the hub's order
        "fine_label": 29,  # HUM:ind
    },
    "ag_news": {"text": "Up Shares rose.", "label": 2},
    "anli_r1": {"premise": "It rains.", "hypothesis": "It is wet.", "label": 2},
    "anli_r2": {"premise": "It rains.", "hypothesis": "It is wet.", "label": 2},
    "anli_r3": {"premise": "It rains.", "hypothesis": "It is wet.", "label": 2},
    "winogrande": {"sentence": "Ann saw _.", "option1": "Bo", "option2": "Cy", "answer": "2"},
    "hellaswag": {
        "ctx": "He runs.",
        "endings": ["a", "b", "c", "d"],
        "activity_label": "Sport",
        "label": "3",
    },
}
BACKED = {
    name: next(source for source in dataset.sources if source.kind == "tfds")
    for name, dataset in all_datasets().items()
    if any(source.kind == "tfds" for source in dataset.sources)
}


def load_rows(spec, split, data_dir):
    return raw_rows.load_rows(spec, Source(data_dir=data_dir, splits={spec.dataset: split}))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data directory with one row of every builder, as TFDS writes it."""
    pytest.importorskip("importlib_resources", reason="TFDS writes nothing without importlib_resources")
    directory = tmp_path_factory.mktemp("tfds")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own
        import tensorflow_datasets as tfds

        for full, row in ROWS.items():
            name, _, version = full.partition(":")
            features = tfds.builder(full, data_dir=directory / "none").info.features
            base, _, config = name.partition("/")
            tfds.dataset_builders.store_as_tfds_dataset(
                name=base,
                config=config or None,
                version=version,
                features=features,
                # Winogrande's is called so: the catalogue's name of it is train.
                split_datasets={"train_xl" if base == "winogrande" else "train": [("0", row)]}
                | {"validation": [("0", row), ("1", row)]},
                data_dir=directory,
                disable_shuffling=True,
            )
    return directory


@pytest.fixture(autouse=True)
def quiet_tensorflow():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spec_of(name):
    return next(spec for spec in specs.task_specs() if spec.dataset == name)


def test_the_rows_are_of_every_builder_that_the_catalogue_names():
    assert set(ROWS) == {source.name for source in BACKED.values()}


@pytest.mark.parametrize("name", BACKED)
def test_a_builders_row_becomes_the_templates(data_dir, name):
    dataset = all_datasets()[name]
    assert source_choice.choose_source(dataset, data_dir) == BACKED[name]
    split = "train" if "train" in dataset.splits else dataset.split
    (row,) = load_rows(spec_of(name), split, data_dir)
    assert row.pop("row_id") == f"{name}/{split}/0"
    own = ROWS[BACKED[name].name]
    wanted = ADAPTED.get(name) or {column: own[column] for column in dataset.columns}
    assert row == wanted
    assert all(type(row[column]) is type(value) for column, value in wanted.items())


@pytest.mark.shared_data
@pytest.mark.parametrize("name", BACKED)
def test_every_prompt_renders_a_builders_row(data_dir, name):
    dataset = all_datasets()[name]
    rows = load_rows(spec_of(name), "train", data_dir)
    found = load_templates(TEMPLATES, dataset.templates)
    for prompt in dataset.prompts:
        if found[prompt].columns & set(BACKED[name].lacks):
            with pytest.raises(UserError, match="'ctx_a'"):
                render(rows, found[prompt])
            continue
        made = render(rows, found[prompt])
        # TREC's fine-grained prompts are each for one coarse class; this row's is HUM.
        if name == "trec" and "fine_grained" in prompt and not ("HUM" in prompt or "open" in prompt):
            assert not made.examples
            assert sum(made.counts.left_out.values()) == 1
            continue
        if prompt.startswith("Negation"):  # its target is a choice and a word
            assert made.counts.left_out == {"outside choices": 1}
            made = render(rows, found[prompt], is_ranked=False)
        (example,) = made.examples
        assert example.input
        assert example.target


def test_rows_are_taken_in_any_order_and_numbered_as_they_are_stored(data_dir):
    opened = sources.open_split(all_datasets()["glue_mrpc"], "validation", data_dir)
    assert opened.count == 2
    assert opened.origin == "tfds:glue/mrpc:2.0.0/validation"
    assert len(list(opened.take([1, 0]))) == 2


def test_files_that_can_be_read_at_random_give_the_same_rows(data_dir, tmp_path):
    import tensorflow_datasets as tfds

    rows = [{"text": f"row {n}", "label": n % 2} for n in range(9)]
    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    for file_format in ("array_record", "tfrecord"):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="imdb_reviews",
            config="plain_text",
            version="1.0.0",
            features=features,
            split_datasets={"train": [(number, row) for number, row in enumerate(rows)]},
            data_dir=tmp_path / file_format,
            file_format=file_format,
            disable_shuffling=True,
        )
        opened = sources.open_split(all_datasets()["imdb"], "train", tmp_path / file_format)
        assert opened.count == 9
        taken = list(opened.take([7, 0, 3]))
        assert [(row["text"], int(row["label"])) for row in taken] == [
            (b"row 7", 1),
            (b"row 0", 0),
            (b"row 3", 1),
        ]
        assert list(opened.take([])) == []


def test_a_split_that_the_files_lack_is_an_error(data_dir):
    with pytest.raises(UserError, match=r"No split named 'test' in TFDS's 'glue/mrpc:2.0.0'"):
        sources.open_split(all_datasets()["glue_mrpc"], "test", data_dir)


def test_a_damaged_directory_is_one_sentence(data_dir, tmp_path):
    place = tmp_path / "glue" / "mrpc" / "2.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"to prepare 'glue/mrpc:2.0.0'"):
        sources.open_split(all_datasets()["glue_mrpc"], "train", tmp_path)


@pytest.mark.shared_data
def test_unlabelled_rows_are_refused(data_dir, tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.builder("winogrande:1.2.0", data_dir=tmp_path / "none").info.features
    hidden = {**ROWS["winogrande:1.2.0"], "label": -1}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="winogrande",
        version="1.2.0",
        features=features,
        split_datasets={"test": [("0", hidden)]},
        data_dir=tmp_path,
    )
    source = Source(data_dir=tmp_path, templates_dir=TEMPLATES, splits={"winogrande": "test"})
    with pytest.raises(UserError, match=r"expected a label, got answer=''"):
        rendering.examples(specs.find_task("winogrande/Replace"), source=source)
