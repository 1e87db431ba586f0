"""SeqIO: every task is in its registry, says what `prepare` says, and is ranked by its own Evaluator.

TensorFlow takes long to import, so all that needs SeqIO is in this file.
"""

import dataclasses
import re
import socket
import sys
import warnings

import numpy as np
import pytest

import elm_jax
from elm_jax.data import prepare, seqio_rows, task_rows, task_selection, tokenized_rows
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample
from elm_jax.tasks import data_source, raw_rows, rendering, seqio_metrics, seqio_tasks, sources, specs
from elm_jax.tasks.datasets import all_datasets
from elm_jax.tokenizers import sentencepiece
from tests.shared_data import TEMPLATES

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own warnings
MINI = "mini_taxonomy_kind/what kind of thing"
LENGTHS = {"inputs": 12, "targets": 3}


@pytest.fixture(scope="module")
def seqio():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import seqio
    return seqio


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    found = rendering.examples(specs.find_task(MINI), "train").examples
    texts = [text for example in found for text in (example.input, *example.choices)]
    file = tmp_path_factory.mktemp("v") / "m.model"
    sentencepiece.train(texts, file, 400, kind="word")
    return file


@pytest.fixture(scope="module")
def registered(seqio, words):
    return elm_jax.register_tasks(specs.task_specs("mini"), vocabulary=words, multitask=("mini-train",))


def rows_of(dataset):
    return list(dataset.as_numpy_iterator())


def test_all_tasks_are_registered_without_network_or_data(seqio, words, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("registration reached for data")

    monkeypatch.setattr(socket, "socket", never)
    monkeypatch.setattr(sources, "open_split", never)
    monkeypatch.setattr(raw_rows, "load_rows", never)
    known = specs.task_specs()
    made = seqio_tasks.register_tasks(
        known, vocabulary=words, templates_dir=TEMPLATES if TEMPLATES.is_dir() else None
    )
    assert len(made.tasks) == len(known) > 450
    assert set(made.tasks.values()) | set(made.ranked.values()) <= set(seqio.TaskRegistry.names())
    assert {*made.mixtures, seqio_tasks.MULTITASK} <= set(seqio.MixtureRegistry.names())
    assert all(re.fullmatch(r"[\w\d._:#]+", name) for name in made.tasks.values())
    assert len(seqio.get_mixture_or_task("trec").tasks) == 18
    assert len(seqio.get_mixture_or_task("story_cloze_score_eval").tasks) == 5


def test_tasks_are_called_as_in_t0_and_p3(seqio, words):
    ids = [
        "glue_mrpc/want to know",
        "imdb/Sentiment with choices ",
        "super_glue_copa/C1 or C2? premise, so/because…",
        "super_glue_wsc.fixed/GPT-3 Style",
        "anli_r2/GPT-3 style",
        "cos_e/i_think",
        "story_cloze/Answer Given options",
        MINI,
    ]
    found = seqio_tasks.make_seqio_names([specs.find_task(task) for task in ids])
    assert list(found.values()) == [
        "glue_mrpc_want_to_know",
        "imdb_Sentiment_with_choices_",
        "super_glue_copa_C1_or_C2_premise_so_because_",
        "super_glue_wsc.fixed_GPT_3_Style",
        "anli_GPT_3_style_r2",
        "cos_e_v1.11_i_think",
        "story_cloze_2016_Answer_Given_options",
        "mini_taxonomy_kind_what_kind_of_thing",
    ]


def test_a_task_to_train_on_gives_what_prepare_gives_row_by_row(seqio, registered, words):
    for task in (MINI, "mini_size_animal/than a dog"):
        spec = specs.find_task(task)
        ours = tokenized_rows.tokenize_examples(
            rendering.examples(spec, "train").examples, sentencepiece.load(words), data_source.Lengths(12, 3)
        )
        theirs = rows_of(
            seqio.get_mixture_or_task(registered.tasks[task]).get_dataset(LENGTHS, "train", shuffle=False)
        )
        assert len(theirs) == len(ours.labels) == 288
        for number, row in enumerate(theirs):
            assert row["inputs"].tolist() == ours.inputs[number].tolist()
            assert row["targets"].tolist() == ours.targets[number].tolist()
            assert row["inputs_pretokenized"].decode() == ours.texts[number]
            assert row["row_id"].decode() == ours.row_ids[number]


def test_the_twin_gives_every_choice_a_row_and_marks_the_right_one(seqio, registered, words):
    spec = specs.find_task(MINI)
    examples = rendering.examples(spec, "validation").examples
    task = seqio.get_mixture_or_task(registered.ranked[MINI])
    rows = rows_of(task.get_dataset(LENGTHS, "validation", shuffle=False))
    assert len(rows) == sum(len(example.choices) for example in examples)
    for row in rows:
        number, choice = row["idx"].tolist()
        assert row["targets_pretokenized"].decode() == examples[number].choices[choice]
        assert row["is_correct"] == (choice == examples[number].label)
        assert row["weight"] == 1.0


def test_seqio_evaluates_with_its_own_evaluator(seqio, registered):
    examples = rendering.examples(specs.find_task(MINI), "validation").examples
    evaluator = seqio.Evaluator(
        registered.ranked[MINI], seqio.EncDecFeatureConverter(pack=False), async_compute_metrics=False
    )
    assert {name: len(shape) for name, shape in evaluator.model_feature_shapes.items()} == {
        "encoder_input_tokens": 1,
        "decoder_target_tokens": 1,
        "decoder_input_tokens": 1,
        "decoder_loss_weights": 1,
    }

    def right(dataset):
        """Scores the right choice best, but for the first ten rows, where all choices are equal."""
        told = rows_of(evaluator.cached_task_datasets[registered.ranked[MINI]])
        scores = [float(row["is_correct"]) * (row["idx"][0] >= 10) for row in told]
        return list(enumerate(scores))[::-1]  # SeqIO puts them in order

    metrics, _ = evaluator.evaluate(compute_metrics=True, score_fn=right)
    first = sum(example.label == 0 for example in examples[:10])
    share = 100 * (len(examples) - 10 + first) / len(examples)
    ((name, found),) = metrics.result().items()
    assert name == registered.ranked[MINI]
    assert float(getattr(found["accuracy"], "value", found["accuracy"])) == share


def test_rows_with_different_numbers_of_choices_are_ranked_together():
    targets = [
        ((0, 0), False, 1.0, 2),
        ((0, 1), True, 1.0, 4),
        ((1, 0), False, 1.0, 1),
        ((1, 1), False, 1.0, 1),
        ((1, 2), True, 1.0, 1),
        ((2, 0), True, 1.0, 1),
    ]
    scores = [-1.0, -2.0, -3.0, -2.5, -2.5, -9.0]
    # Row 0 is wrong, row 1 ties and takes the earlier wrong one, row 2 has but one choice.
    assert seqio_metrics.rank_accuracy(targets, scores) == {"accuracy": 100 / 3}
    # By the token row 0 has -0.5 and -0.5: the first, which is wrong, still.
    assert seqio_metrics.rank_accuracy(targets, scores, per_token=True) == {"accuracy": 100 / 3}
    assert seqio_metrics.rank_accuracy(targets, [-1.0, -1.9, *scores[2:]], per_token=True) == {
        "accuracy": 200 / 3
    }
    # A row of weight 2 counts twice; the order in which choices come does not count.
    heavy = [(index, correct, 2.0 if index[0] == 2 else weight, n) for index, correct, weight, n in targets]
    assert seqio_metrics.rank_accuracy(heavy[::-1], scores[::-1]) == {"accuracy": 50.0}
    with pytest.raises(UserError, match="6 choices, got 5"):
        seqio_metrics.rank_accuracy(targets, scores[:5])


def test_every_task_has_the_metric_that_the_catalogue_names(seqio, words):
    named = {
        "imdb/Sentiment with choices ": "exact_match",
        "ropes/prompt_mix": "exact_match",
        "gigaword/generate_summary_for_this": "rouge",
        "haiku/do_nothing": "rouge",
        "esnli/explain_why": "rouge",  # BERTScore needs another network
        "asset/simplification_1": "bleu",
    }
    chosen = [specs.find_task(task) for task in named]
    assert [spec.metric for spec in chosen] == [
        "accuracy",
        "exact_match",
        "rouge_l",
        "rouge_1",
        "bert_score",
        "bleu",
    ]
    made = seqio_tasks.register_tasks(chosen, vocabulary=words)
    for task, metric in named.items():
        functions = seqio.get_mixture_or_task(made.tasks[task]).metric_fns
        assert [function.__name__ for function in functions] == [metric]
    assert {spec.metric for spec in specs.task_specs()} <= set(seqio_metrics.METRICS)


def test_rouge_is_the_mean_of_its_rows():
    pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    targets = ["the cat sat on the mat", "it rains"]
    # Of cat, sat, on, mat (from mats) 4 of 5 and 4 of 6 words are shared, and in order; of pairs cat sat and
    # sat on, 2 of 4 and 2 of 5.
    told = seqio_metrics.rouge(targets, ["a cat sat on mats", "It rains!"])
    assert told["rouge1"] == told["rougeL"] == pytest.approx(100 * (8 / 11 + 1) / 2)
    assert told["rouge2"] == pytest.approx(100 * (4 / 9 + 1) / 2)
    assert seqio_metrics.rouge(["mat on sat cat"], ["cat sat on mat"])["rougeL"] == 25.0  # one word in order
    assert seqio_metrics.rouge([], []) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_bleu_is_of_all_rows_and_takes_predictions_as_predictions():
    pytest.importorskip("sacrebleu", reason="the extra generation is not installed")
    targets, told = ["a b c d e f g", "h i"], ["a b c d e f", "h i"]
    # All that was written is right, but 8 words of 9; the other way round it would not be too short.
    assert seqio_metrics.bleu(targets, told)["bleu"] == pytest.approx(100 * np.exp(1 - 9 / 8))
    # 8 of 9 words, 6 of 7 pairs, 4 of 5 triples and 3 of 4 fours are right.
    parts = [8 / 9, 6 / 7, 4 / 5, 3 / 4]
    assert seqio_metrics.bleu(told, targets)["bleu"] == pytest.approx(100 * np.prod(parts) ** 0.25)
    assert seqio_metrics.bleu([], []) == {"bleu": 0.0}
    with pytest.raises(UserError, match="each of 2 rows, got 1"):
        seqio_metrics.bleu(targets, told[:1])


@pytest.mark.parametrize(("metric", "module"), [("rouge", "rouge_score.rouge_scorer"), ("bleu", "sacrebleu")])
def test_a_package_that_is_absent_is_one_sentence_with_the_command_that_brings_it(
    metric, module, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    package = module.split(".")[0]
    with pytest.raises(UserError, match=rf"package {package} .* pip install 'rouge-score.*' 'sacrebleu"):
        getattr(seqio_metrics, metric)(["a"], ["a"])


def test_a_metric_that_seqio_cannot_be_given_is_refused_with_the_nearest(seqio, registered, words):
    task = dataclasses.replace(specs.find_task(MINI), metric="rogue_l")
    with pytest.raises(UserError, match=f"No metric named 'rogue_l' .*{MINI}.*'rouge_l'"):
        seqio_tasks.register_tasks([task], vocabulary=words)
    assert registered.tasks[MINI] in seqio.TaskRegistry.names()  # and what was there still is


def test_ranking_agrees_with_t5s_own_metric(seqio):
    metrics = pytest.importorskip("t5.evaluation.metrics", reason="t5 is not installed", exc_type=ImportError)
    rng = np.random.default_rng(0)
    for fixed in (3, None):
        targets = []
        for row in range(50):
            count = fixed or int(rng.integers(2, 6))
            right = rng.integers(count)
            targets += [
                ((row, choice), bool(choice == right), 1.0, int(rng.integers(1, 9)))
                for choice in range(count)
            ]
        scores = np.round(rng.normal(size=len(targets)), 1).tolist()  # rounded, so that some tie
        for per_token in (False, True):
            ours = seqio_metrics.rank_accuracy(targets, scores, per_token=per_token)
            for classes in {None, fixed}:
                theirs = metrics.rank_classification(
                    targets, scores, num_classes=classes, normalize_by_target_length=per_token
                )
                assert ours["accuracy"] == pytest.approx(theirs["accuracy"])


@pytest.mark.parametrize("name", ["task", "mixture"])
def test_an_iterator_that_was_saved_goes_on_where_it_was(seqio, registered, tmp_path, name):
    import tensorflow as tf

    name = registered.tasks[MINI] if name == "task" else registered.mixtures["mini_taxonomy_kind"]

    def batches():
        return seqio.get_dataset(
            name,
            {"inputs": 24, "targets": 4},
            dataset_split="train",
            shuffle=True,
            seed=3,
            feature_converter=seqio.EncDecFeatureConverter(pack=False),
            num_epochs=None,
        ).batch(4)

    whole = [batch["encoder_input_tokens"].numpy() for batch in batches().take(6)]
    iterator = iter(batches())
    for _ in range(3):
        next(iterator)
    place = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "it"))
    again = iter(batches())
    tf.train.Checkpoint(iterator=again).restore(place)
    for batch in whole[3:]:
        assert batch.shape == (4, 24)
        np.testing.assert_array_equal(next(again)["encoder_input_tokens"].numpy(), batch)


def test_shuffling_with_a_seed_goes_over_all_rows_and_not_a_window(seqio, registered):
    task = seqio.get_mixture_or_task(registered.tasks[MINI])
    first, again, other = (
        [row["row_id"] for row in rows_of(task.get_dataset(LENGTHS, "train", shuffle=True, seed=seed))]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_the_multitask_mixture_caps_as_t0_does(seqio, words):
    made = seqio_tasks.register_tasks(specs.task_specs("train"), vocabulary=words)
    mixture = seqio.get_mixture_or_task(seqio_tasks.MULTITASK)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert len(rates) == 296
    small, large = all_datasets()["cosmos_qa"], all_datasets()["amazon_polarity"]
    assert (small.splits["train"] or 0) < 500_000 < (large.splits["train"] or 0)
    assert rates[made.tasks["cosmos_qa/no_prompt_id"]] == small.splits["train"]
    assert rates[made.tasks["amazon_polarity/would_you_buy"]] == pytest.approx(500_000 / 9)
    capped = seqio.get_mixture_or_task(made.tasks["amazon_polarity/would_you_buy"])
    assert capped.num_input_examples("train") == 50_000  # what the paper's expert is trained on
    assert capped.num_input_examples("test") == 400_000


def test_rows_of_tasks_whose_size_nobody_knows_are_counted(seqio, words):
    pets = [{"text": text, "label": number % 2} for number, text in enumerate(["rex", "tom", "bo"])]
    prompts = {
        "kind": ("{{text}} ||| {{answer_choices[label]}}", "cat ||| dog"),
        "size": (
            "{{text}} ||| {{answer_choices[label]}}",
            "{% if label %}a ||| b{% else %}a ||| b ||| c{% endif %}",
        ),
    }
    chosen = elm_jax.define_task("pets_of_test", rows=lambda split: pets, prompts=prompts)
    made = seqio_tasks.register_tasks(chosen, vocabulary=words)
    counts = {
        (task, names is made.ranked): seqio.get_mixture_or_task(names[task]).num_input_examples("train")
        for names in (made.tasks, made.ranked)
        for task in names
    }
    # Rows 0 and 2 have three choices of a size, row 1 has two.
    assert counts == {
        ("pets_of_test/kind", False): 3,
        ("pets_of_test/size", False): 3,
        ("pets_of_test/kind", True): 6,
        ("pets_of_test/size", True): 8,
    }
    mixture = seqio.Mixture("pets", list(made.ranked.values()), seqio.mixing_rate_num_examples)
    assert [mixture.get_rate(task) for task in mixture.tasks] == [6, 8]
    task = seqio.get_mixture_or_task(made.tasks["pets_of_test/kind"])
    rows = rows_of(task.get_dataset(LENGTHS, "train", shuffle=False))
    assert [row["inputs_pretokenized"].decode() for row in rows] == ["rex", "tom", "bo"]


def test_the_split_evaluation_is_the_one_that_evaluation_reads(seqio, registered):
    task = seqio.get_mixture_or_task(registered.ranked[MINI])
    found = [
        [row["row_id"] for row in rows_of(task.get_dataset(LENGTHS, split, shuffle=False))]
        for split in (specs.find_task(MINI).evaluation_split, seqio_tasks.EVALUATION)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 3 * 96


def test_a_row_whose_target_is_none_of_its_choices_cannot_be_ranked(seqio, registered, monkeypatch):
    outside = PromptedExample("row-7", "a", "b", ("c", "d"), None)

    class Found:
        examples = (outside,)

    monkeypatch.setattr(rendering, "examples", lambda *arguments, **options: Found)
    with pytest.raises(UserError, match="row 'row-7' with a target outside its choices"):
        seqio.get_mixture_or_task(registered.ranked[MINI]).get_dataset(LENGTHS, "train", shuffle=False)


BY_HAND = """\
import functools
import seqio
import tensorflow as tf
from elm_jax.tasks import seqio_tasks, specs

words = seqio.SentencePieceVocabulary({words!r}, extra_ids=100)
feature = seqio.Feature(words, add_eos=True)


def rows(split, shuffle_files, seed=None):
    told = {{"inputs": ["what is a dog", "kind"], "targets": ["a", "dog"]}}
    return tf.data.Dataset.from_tensor_slices(told)


seqio.TaskRegistry.add(
    "by_hand",
    source=seqio.FunctionDataSource(rows, ["train"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    output_features={{"inputs": feature, "targets": feature}},
)
seqio.TaskRegistry.add(
    "texts",
    source=seqio.FunctionDataSource(rows, ["train"]),
    preprocessors=[],
    output_features={{"inputs": feature, "targets": feature}},
)
seqio.TaskRegistry.add(
    "targets_alone",
    source=seqio.FunctionDataSource(rows, ["train"]),
    preprocessors=[
        seqio.preprocessors.tokenize,
        functools.partial(seqio.preprocessors.rekey, key_map={{"targets": "targets"}}),
    ],
    output_features={{"inputs": feature, "targets": feature}},
)
seqio_tasks.register_tasks(specs.task_specs("mini"), vocabulary=words)
"""


@pytest.fixture(scope="module")
def by_hand(words, tmp_path_factory):
    file = tmp_path_factory.mktemp("m") / "tasks_by_hand.py"
    file.write_text(BY_HAND.format(words=str(words)))
    return str(file)


def test_a_task_registered_by_hand_is_prepared_through_seqio(seqio, by_hand, words, tmp_path):
    tokenizer = sentencepiece.load(words)
    how = {
        "tokenizer": tokenizer,
        "lengths": data_source.Lengths(12, 3),
        "source": data_source.Source(prepared=tmp_path),
    }
    (outcome,) = prepare.prepare_seqio_tasks(by_hand, tasks=["by_hand"], **how)
    assert (outcome.task, outcome.split, outcome.rows, outcome.made) == ("by_hand/seqio", "train", 2, True)
    assert not prepare.prepare_seqio_tasks(by_hand, tasks=["by_hand"], **how)[0].made
    (spec,) = task_selection.select_tasks(["by_hand"], how["source"])
    assert spec == task_selection.resolve_task("by_hand/seqio", how["source"])
    found = task_rows.load_examples(spec, how["source"])
    assert [(example.input, example.target) for example in found] == [("what is a dog", "a"), ("kind", "dog")]
    made = task_rows.tokenize_task(found, tokenizer, data_source.Lengths(12, 3))
    assert made.inputs[0].tolist() == [*tokenizer.encode("what is a dog"), 1]
    assert made.targets[1].tolist() == [*tokenizer.encode("dog"), 1]
    with pytest.raises(UserError, match="No task, dataset or group named 'by_hand'"):
        task_selection.select_tasks(["by_hand"])
    with pytest.raises(UserError, match="--split validation"):
        task_rows.load_examples(task_selection.make_seqio_spec("by_hand", "validation"), how["source"])


def test_rows_of_choices_are_put_together_again(seqio, by_hand, words, registered):
    tokenizer = sentencepiece.load(words)
    made = seqio_rows.load_rows(
        by_hand, registered.ranked[MINI], "validation", tokenizer, data_source.Lengths(12, 3), limit=9
    )
    examples = rendering.examples(specs.find_task(MINI), "validation").examples[:3]
    ours = tokenized_rows.tokenize_examples(examples, tokenizer, data_source.Lengths(12, 3))
    assert tuple(tokenized_rows.StoredExamples(made, "")) == examples
    for name in ("inputs", "targets", "choices"):
        assert [row.tolist() for row in getattr(made, name)] == [row.tolist() for row in getattr(ours, name)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "by_hnd"}, "No task or mixture named 'by_hnd' .*'by_hand'"),
        ({"split": "valid"}, "No split named 'valid'"),
        ({"name": "mini_taxonomy_kind"}, "a limit for 'mini_taxonomy_kind'"),
        ({"module": "no_such_module"}, "'no_such_module' to be imported"),
        (
            {"name": "texts"},
            r"'texts', .*string.* seqio\.preprocessors\.tokenize",
        ),
        ({"name": "targets_alone"}, r"'targets_alone', .* missing .*inputs"),
    ],
)
def test_what_seqio_does_not_know_is_one_sentence(seqio, by_hand, words, changed, message):
    asked = {"module": by_hand, "name": "by_hand", "split": "train", **changed}
    with pytest.raises(UserError, match=message):
        seqio_rows.load_rows(**asked, tokenizer=sentencepiece.load(words), lengths=data_source.Lengths(12, 3))


def test_another_vocabulary_than_the_tasks_is_refused(seqio, by_hand, words):
    other = sentencepiece.load(words, extra_ids=7)
    with pytest.raises(UserError, match="got another"):
        seqio_rows.load_rows(by_hand, "by_hand", "train", other, data_source.Lengths(12, 3))


def test_a_vocabulary_that_is_not_there_is_one_sentence(seqio, tmp_path):
    with pytest.raises(UserError, match=r"none\.model', got no file"):
        seqio_tasks.register_tasks(specs.task_specs("mini"), vocabulary=tmp_path / "none.model")


def test_two_tasks_of_one_name_are_refused():
    spec = specs.find_task(MINI)
    twin = dataclasses.replace(spec, id=spec.id + "!", prompt=spec.prompt.replace(" ", "-"))
    with pytest.raises(UserError, match="for 'mini_taxonomy_kind_what_kind_of_thing'"):
        seqio_tasks.make_seqio_names([spec, twin])


def test_importing_the_module_imports_neither_seqio_nor_tensorflow():
    import subprocess

    code = "import sys, elm_jax.tasks.seqio_tasks; print({'seqio', 'tensorflow'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
