"""The registry of a gin file: what a name stands for is registered with SeqIO, and what T5X calls it."""

import pytest

from elm_jax.errors import UserError
from elm_jax.t5x.registry import registered
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
    ("name", "called"),
    [
        (f"{DATASET}/what kind of thing", f"{DATASET}_what_kind_of_thing"),
        (f"{DATASET}/what kind of thing_score_eval", f"{DATASET}_what_kind_of_thing_score_eval"),
        (f"{DATASET}_what_kind_of_thing", f"{DATASET}_what_kind_of_thing"),
        (DATASET, DATASET),
        (f"{DATASET}_score_eval", f"{DATASET}_score_eval"),
    ],
)
def test_a_name_of_ours_becomes_one_that_seqio_has(name, called, words):
    assert registered(name, words) == called
    assert called in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    task = seqio.get_mixture_or_task(called)
    assert task.output_features["inputs"].vocabulary == words
    assert len(seqio.TaskRegistry.names()) <= 4  # of this dataset alone: two prompts and their twins


def test_named_tasks_are_one_mixture_for_the_multitask_baseline(words):
    tasks = (DATASET, "mini_size_thing", "mini-unseen")
    assert registered(seqio_tasks.MULTITASK, words, tasks=tasks) == seqio_tasks.MULTITASK
    mixed = {task.name for task in seqio.get_mixture_or_task(seqio_tasks.MULTITASK).tasks}
    wanted = [
        spec for spec in specs.task_specs("mini") if spec.dataset in tasks or spec.group == "mini-unseen"
    ]
    assert mixed == set(seqio_tasks.seqio_names(wanted).values())


def test_registering_twice_changes_nothing(words):
    assert registered(DATASET, words) == registered(DATASET, words)
    assert len(seqio.get_mixture_or_task(DATASET).tasks) == 2


def test_what_a_gin_file_imported_and_registered_itself_stays_as_it_is(words):
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"])
    features = {"targets": seqio.Feature(words)}
    task = seqio.TaskRegistry.add("by_hand", source, output_features=features, preprocessors=[])
    assert registered("by_hand", words) == "by_hand"
    assert seqio.TaskRegistry.get("by_hand") is task


@pytest.mark.parametrize("options", [{}, {"tasks": ("mini_taxonmy_kind",)}])
def test_a_name_that_nothing_has_is_answered_with_the_nearest(words, options):
    with pytest.raises(
        UserError, match=r"No task or dataset named 'mini_taxonmy_kind'.*'mini_taxonomy_kind'"
    ):
        registered("mini_taxonmy_kind", words, **options)
    assert seqio.TaskRegistry.names() == set()


def test_a_name_that_is_not_of_the_tasks_is_refused(words):
    with pytest.raises(UserError, match="No task or mixture named 'mini_size_thing' in what was registered"):
        registered("mini_size_thing", words, tasks=(DATASET,))
