"""Names in a gin file are registered with SeqIO under names that T5X finds."""

import shutil

import pytest

from elm_jax.errors import UserError
from elm_jax.t5x.registry import register_with_seqio
from elm_jax.tasks import rendering, seqio_tasks, specs
from elm_jax.tokenizers import sentencepiece

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own
seqio = pytest.importorskip("seqio")
DATASET = "mini_taxonomy_kind"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    found = [spec for spec in specs.task_specs("mini") if spec.dataset == DATASET]
    texts = [example.input for spec in found for example in rendering.examples(spec, "train").examples]
    file = tmp_path_factory.mktemp("v") / "m.model"
    sentencepiece.train(texts, file, 200, kind="word")
    return seqio.SentencePieceVocabulary(str(file), extra_ids=16)


@pytest.fixture(autouse=True)
def _nothing_registered():
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in list(registry.names()):
            registry.remove(name)


@pytest.mark.parametrize(
    ("name", "seqio_name"),
    [
        (f"{DATASET}/what kind of thing", f"{DATASET}_what_kind_of_thing"),
        (f"{DATASET}/what kind of thing_score_eval", f"{DATASET}_what_kind_of_thing_score_eval"),
        (f"{DATASET}_what_kind_of_thing", f"{DATASET}_what_kind_of_thing"),
        (DATASET, DATASET),
        (f"{DATASET}_score_eval", f"{DATASET}_score_eval"),
    ],
)
def test_our_names_become_names_of_seqio(name, seqio_name, words):
    assert register_with_seqio(name, words) == seqio_name
    assert seqio_name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    task = seqio.get_mixture_or_task(seqio_name)
    assert task.output_features["inputs"].vocabulary == words
    assert len(seqio.TaskRegistry.names()) <= 4  # of this dataset alone: two prompts and their twins


def test_named_tasks_are_one_mixture_for_the_multitask_baseline(words):
    tasks = (DATASET, "mini_size_thing", "mini-unseen")
    assert register_with_seqio(seqio_tasks.MULTITASK, words, tasks=tasks) == seqio_tasks.MULTITASK
    mixed = {task.name for task in seqio.get_mixture_or_task(seqio_tasks.MULTITASK).tasks}
    wanted = [
        spec for spec in specs.task_specs("mini") if spec.dataset in tasks or spec.group == "mini-unseen"
    ]
    assert mixed == set(seqio_tasks.make_seqio_names(wanted).values())


def test_registering_twice_changes_nothing(words):
    assert register_with_seqio(DATASET, words) == register_with_seqio(DATASET, words)
    assert len(seqio.get_mixture_or_task(DATASET).tasks) == 2


def test_a_task_that_the_gin_file_registered_itself_is_not_replaced(words):
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"])
    features = {"targets": seqio.Feature(words)}
    task = seqio.TaskRegistry.add("by_hand", source, output_features=features, preprocessors=[])
    assert register_with_seqio("by_hand", words) == "by_hand"
    assert seqio.TaskRegistry.get("by_hand") is task


def register_by_hand(name, words, splits=("train",), rows=None):
    """Registers a task as a module of the user's does."""
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, list(splits), rows)
    features = {each: seqio.Feature(words) for each in ("inputs", "targets")}
    return seqio.TaskRegistry.add(name, source, output_features=features, preprocessors=[])


def test_a_users_task_of_the_name_of_ours_is_never_replaced(words):
    named = f"{DATASET}_what_kind_of_thing"
    theirs = register_by_hand(named, words)
    assert register_with_seqio(named, words) == named
    for other in (f"{DATASET}/what kind of thing", DATASET):  # which are ours
        with pytest.raises(UserError, match=f"{named!r} to be free"):
            register_with_seqio(other, words)
    assert seqio.TaskRegistry.get(named) is theirs


def test_a_module_is_imported_before_names_are_looked_up(words, tmp_path, monkeypatch):
    (tmp_path / "their_tasks.py").write_text(
        "import seqio\n"
        "source = seqio.FunctionDataSource(lambda split, shuffle_files: None, ['train'])\n"
        "seqio.TaskRegistry.add('theirs', source, preprocessors=[], output_features={})\n"
    )
    monkeypatch.chdir(tmp_path)
    assert register_with_seqio("theirs", words, module="their_tasks") == "theirs"


def test_ours_theirs_and_mixtures_are_mixed_at_t0s_rates(words):
    register_by_hand("counted", words, rows={"train": 70})
    register_by_hand("uncounted", words)
    seqio.MixtureRegistry.add("mixed", [("counted", 1.0)])
    tasks = ("mini_size_animal/than a dog", "counted", "uncounted", "mixed")
    mixture = seqio.get_mixture_or_task(register_with_seqio(seqio_tasks.MULTITASK, words, tasks=tasks))
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    # The embedded suite's datasets have 288 rows each; `counted` comes by itself and through the mixture.
    assert rates == {"mini_size_animal_than_a_dog": 288, "counted": 70 + 70, "uncounted": 500_000}


def test_a_group_is_the_mixture_of_its_tasks_and_its_twin_of_those_with_choices(words):
    wanted = [spec.id for spec in specs.task_specs("mini-unseen")]
    called = seqio_tasks.make_seqio_names(specs.task_specs("mini-unseen"))
    for suffix in ("", "_score_eval"):
        mixture = seqio.get_mixture_or_task(register_with_seqio(f"mini-unseen{suffix}", words))
        assert {task.name for task in mixture.tasks} == {called[task] + suffix for task in wanted}
    assert len(seqio.get_mixture_or_task(register_with_seqio("mini_score_eval", words)).tasks) == len(
        specs.task_specs("mini")
    )


def test_a_split_that_a_task_lacks_is_refused(words):
    assert register_with_seqio(f"{DATASET}_score_eval", words, split="evaluation")
    register_by_hand("theirs", words, splits=["train", "dev"])
    with pytest.raises(UserError, match=r"split 'evaluation' of 'theirs', got train, dev"):
        register_with_seqio(seqio_tasks.MULTITASK, words, tasks=(DATASET, "theirs"), split="evaluation")


def test_another_vocabulary_or_the_same_by_another_path_is_refused(words, tmp_path):
    copied = shutil.copy(words.sentencepiece_model_file, tmp_path / "copied.model")
    for other in (seqio.SentencePieceVocabulary(str(copied), 16), seqio.ByteVocabulary()):
        seqio.TaskRegistry.remove("theirs")
        register_by_hand("theirs", other)
        with pytest.raises(UserError, match="VOCABULARY_FILE"):
            register_with_seqio("theirs", words)


def test_no_tasks_for_the_mixture_of_several_is_one_sentence(words):
    with pytest.raises(UserError, match="TASKS"):
        register_with_seqio(seqio_tasks.MULTITASK, words)


@pytest.mark.parametrize("options", [{}, {"tasks": ("mini_taxonmy_kind",)}])
def test_an_unknown_name_is_answered_with_the_nearest(words, options):
    with pytest.raises(UserError, match=r"'mini_taxonmy_kind'.*'mini_taxonomy_kind'"):
        register_with_seqio("mini_taxonmy_kind", words, **options)
    assert seqio.TaskRegistry.names() == set()


def test_a_name_that_is_not_of_the_tasks_is_refused(words):
    with pytest.raises(UserError, match="'mini_size_thing'"):
        register_with_seqio("mini_size_thing", words, tasks=(DATASET,))
