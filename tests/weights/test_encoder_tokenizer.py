"""The tokenizer of a sentence encoder: where texts are cut, and how they are lower-cased."""

import json
import sys

import pytest
from etils import epath

from elm_jax.errors import UserError
from elm_jax.weights import encoder_tokenizer

DOG, DOG_UPPER, E, E_ACUTE, UNKNOWN = 5, 11, 12, 13, 1


@pytest.fixture
def place(write_encoder, tmp_path):
    write_encoder(tmp_path)
    return epath.Path(tmp_path)


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def ids(place, text, longest=None):
    return encoder_tokenizer.load_tokenizer(place, longest)[0].encode(text).ids


def test_a_text_is_cut_so_that_its_ends_stay_and_nothing_is_padded(place):
    # The file itself says 4 tokens, padded.
    assert ids(place, "the dog") == [2, 4, 5, 3]
    assert ids(place, "the dog runs! " * 9) == [2, 4, 5, 7, 8, 10, 4, 5, 3]
    assert ids(place, "") == [2, 3]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_text_is_cut_on_the_side_that_its_files_say(place, file):
    told = json.loads((place / file).read_text())
    told |= {"truncation_side": "left"} if file == "tokenizer_config.json" else {}
    told.get("truncation", {})["direction"] = "Left"
    (place / file).write_text(json.dumps(told))
    cut, whole = (
        encoder_tokenizer.load_tokenizer(place, length)[0].encode("the dog ran the cat dog").ids
        for length in (5, 20)
    )
    assert (len(cut), cut[0], cut[1:]) == (5, whole[0], whole[-4:])


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_padding_before_a_text_is_refused_where_it_moves_positions(place, file):
    told = json.loads((place / file).read_text())
    told |= {"padding_side": "left"} if file == "tokenizer_config.json" else {}
    told.get("padding", {})["direction"] = "Left"
    (place / file).write_text(json.dumps(told))
    encoder_tokenizer.load_tokenizer(place, None)
    with pytest.raises(UserError, match="to pad on the right"):
        encoder_tokenizer.load_tokenizer(place, 20)


def test_the_length_is_the_first_that_is_told_and_no_more_than_there_are_positions(place):
    assert encoder_tokenizer.load_tokenizer(place, None)[1] == 9
    assert encoder_tokenizer.load_tokenizer(place, 6)[1] == 6
    (place / "sentence_bert_config.json").unlink()
    assert encoder_tokenizer.load_tokenizer(place, None)[1] == 512
    change(place / "tokenizer_config.json", model_max_length=10**30)
    assert encoder_tokenizer.load_tokenizer(place, 20)[1] == 20
    assert encoder_tokenizer.load_tokenizer(place, None)[1] == encoder_tokenizer.DEFAULT_LENGTH


def test_the_configuration_beside_it_says_whether_case_counts(place):
    assert ids(place, "Dog é")[1:3] == [DOG, E]
    change(place / "tokenizer_config.json", do_lower_case=False)
    assert ids(place, "Dog é")[1:3] == [DOG_UPPER, E_ACUTE]
    change(place / "tokenizer_config.json", strip_accents=True)
    assert ids(place, "Dog é")[1:3] == [DOG_UPPER, E]
    change(place / "sentence_bert_config.json", do_lower_case=True)
    assert ids(place, "Dog é")[1:3] == [DOG, E]


def test_without_that_configuration_the_tokenizer_is_as_it_says_itself(place):
    (place / "tokenizer_config.json").unlink()
    assert ids(place, "Dog dog doG")[1:4] == [DOG_UPPER, DOG, UNKNOWN]


def test_a_file_that_is_absent_or_something_else_is_named(place):
    change(place / "tokenizer.json", model={"type": "Nonsense"})
    with pytest.raises(UserError, match=r"a tokenizer in .*tokenizer\.json'"):
        encoder_tokenizer.load_tokenizer(place, None)
    (place / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"Expected tokenizer\.json .* got none"):
        encoder_tokenizer.load_tokenizer(place, None)


def test_the_package_that_is_missing_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="`pip install tokenizers`"):
        encoder_tokenizer.load_tokenizer(place, None)
