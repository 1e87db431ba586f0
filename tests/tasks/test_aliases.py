"""Every spelling of the paper's released files leads to one id."""

import json

import pytest

from elm_jax.errors import UserError
from elm_jax.tasks import aliases, datasets, specs
from tests.shared_data import DATA

MAPPINGS = DATA / "elm_mappings"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("mrpc", "glue_mrpc"),
        ("glue_mrpc", "glue_mrpc"),
        ("glue/mrpc", "glue_mrpc"),
        ("glue_mrpc/want to know", "glue_mrpc/want to know"),
        ("glue_mrpc@want to know", "glue_mrpc/want to know"),
        ("mrpc/want to know", "glue_mrpc/want to know"),
        ("glue/mrpc/want to know", "glue_mrpc/want to know"),
        ("paws/labeled_final@Rewrite", "paws/Rewrite"),
        ("cos_e/v1.11", "cos_e"),
        ("super_glue/copa@more likely", "super_glue_copa/more likely"),
        ("anli_dev_r1@guaranteed/possible/impossible", "anli_r1/guaranteed/possible/impossible"),
        ("anli_r3@must be true", "anli_r3/must be true"),
        ("hellaswag@how_ends", "hellaswag/how_ends"),
        ("wiki_auto@simplification_1", "wiki_auto/simplification_1"),
        ("hindu_knowledge", "hindu_knowledge"),
        # the space at the end dropped, as in the directories of the experts
        ("imdb/Sentiment with choices", "imdb/Sentiment with choices "),
        ("quoref@Read And Extract", "quoref/Read And Extract "),
        # what a spreadsheet left
        ("dbpedia_14@given_a_choice_of_categories `", "dbpedia_14/given_a_choice_of_categories "),
        ("rotten_tomatoes@Sentiment with choices '", "rotten_tomatoes/Sentiment with choices "),
        (
            'super_glue/copa@"C1 or C2? premise, so/because\\u2026"',
            "super_glue_copa/C1 or C2? premise, so/because…",
        ),
    ],
)
def test_a_spelling_leads_to_its_id(spelling, name):
    assert specs.resolve_original_name(spelling) == name


def test_a_task_is_found_by_the_originals_spelling():
    assert specs.find_task("anli_dev_r2@can we infer").id == "anli_r2/can we infer"


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("mrcp", "No task or dataset named 'mrcp' .* Did you mean .*mrpc"),
        ("paws/labeled_final@Rewrit", "No prompt named 'Rewrit' in dataset 'paws' .* 'Rewrite'"),
        ("nothing@at all", "No task or dataset named 'nothing@at all'"),
        ("anli@must be true", "No task or dataset named"),  # three datasets share that folder
        ("mrpc@", "No prompt named ''"),
        ("", "No task or dataset named ''"),
    ],
)
def test_an_unknown_spelling_is_an_error_with_the_nearest(spelling, message):
    with pytest.raises(UserError, match=message):
        specs.resolve_original_name(spelling)


def test_no_two_prompts_of_a_dataset_are_the_same_once_repaired():
    for dataset in datasets.all_datasets().values():
        assert len({aliases._strip_quotes(prompt) for prompt in dataset.prompts}) == len(dataset.prompts)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("ST_choice_instance_top1_32.json", 113 + 189),
        ("oracle_sorted.json", 113 + 296),
        ("oracle_sorted_dataset_level.json", 113 + 36),
    ],
)
def test_every_name_in_the_released_mappings_leads_to_an_id_of_its_own(file, count):
    mapping = json.loads((MAPPINGS / file).read_text())
    spelled = {*mapping, *(name for ranked in mapping.values() for name in ranked)}
    resolved = {specs.resolve_original_name(name) for name in spelled}
    assert len(spelled) == len(resolved) == count
    known = {spec.id for spec in specs.task_specs()} | set(datasets.all_datasets())
    assert resolved <= known
