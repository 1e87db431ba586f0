"""Tokenizers of the hub: the ids and texts of transformers, whatever files there are, id by id."""

import json
import pickle
import shutil
from functools import cache

import numpy as np
import pytest

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tasks import rendering, specs
from elm_jax.tokenizers import huggingface, sentencepiece

TEXTS = [
    "the dog ran to the gate because it had heard the car of its owner",
    "Ein großer Hund läuft über die Straße, nicht wahr?",
    "def f(x: int) -> int:\n    return x ** 2  # square",
    "日本語の文章です。犬が走った。 中文也可以。",
    "¿Qué? — “quoted” … 3.14 × 10⁵",
]
UNUSUAL = [
    *("", " ", "\n\t ", "  two  spaces  ", "\u00a0nbsp\u3000wide\u2009thin\u200bzero", "tab\tnew\r\nline"),
    *("<extra_id_0>", "a <extra_id_1> b", "a<extra_id_2>b", "<extra_id_999>", "<extra_id_0> <extra_id_1>"),
    *("<sep>", "a<sep>b", " <sep> ", "a newtok b", "anewtokb", "<img>x", "<pad>", "x </s> y", "<unk>"),
    *("🐕🐈‍⬛👩🏽‍🚀", "e\u0301 é ﬁ ①", "ﷺ", "שלום עולם", "ไทย ภาษา", "\ufffd\x00\x7f", "▁ ▁▁the", "ÅÅ"),
    *("A" * 300, "http://a.b/c?d=e&f=g#h", "if (a<b && c>d) { return a[i]; }", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢"),
]


@cache
def corpus():
    """2,000 texts: what the templates write, code, CJK, emoji, added tokens and white space, and mixtures."""
    rng = np.random.default_rng(0)
    parts = [*TEXTS, *UNUSUAL, *(line for text in TEXTS for line in text.split(" "))]
    spaces = ["", " ", "  ", "\n", "\t", "\u3000", "\u200b"]
    mixed = [
        "".join(rng.choice(parts) + rng.choice(spaces) for _ in range(rng.integers(1, 9)))
        for _ in range(1600)
    ]
    letters = ["".join(map(chr, rng.integers(32, 0x2FFF, rng.integers(1, 40)))) for _ in range(400)]
    found = (rendering.examples(spec).examples[:40] for spec in specs.task_specs("mini-unseen"))
    suite = [row.input for rows in found for row in rows]
    return (UNUSUAL + TEXTS + suite[:400] + letters + mixed)[:2000]


def write(place, **files):
    place.mkdir(parents=True, exist_ok=True)
    for name, told in files.items():
        (place / f"{name}.json").write_text(json.dumps(told))
    return place


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model with T5's ids."""
    file = tmp_path_factory.mktemp("pieces") / "spiece.model"
    sentencepiece.train(TEXTS * 4, file, 200, extra_ids=0)
    return file


def place_of(pieces, where, kind):
    """Makes the directory of a base as each of its libraries leaves it."""
    import transformers

    where.mkdir()
    model_type = "mt5" if kind == "mt5" else "t5"
    (where / "config.json").write_text(json.dumps({"model_type": model_type}))
    if kind == "byt5":
        (where / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
        return where
    if kind == "byt5 saved":
        tokenizer = transformers.ByT5Tokenizer()
        tokenizer.add_tokens(["<sep>", "newtok"])
        tokenizer.add_tokens(["<img>"], special_tokens=True)
        tokenizer.save_pretrained(where)
        return where
    shutil.copy(pieces, where / "spiece.model")
    told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0 if kind == "mt5" else 100}
    if kind == "few sentinels":
        told["extra_ids"] = 16
    if kind != "pieces alone":
        (where / "tokenizer_config.json").write_text(json.dumps(told))
    if kind == "added_tokens.json":
        size = sentencepiece.load(pieces).size
        (where / "added_tokens.json").write_text(
            json.dumps({"<sep>": size, "newtok": size + 1, "<img>": size + 2})
        )
        special = [*(f"<extra_id_{number}>" for number in range(100)), "<img>"]
        named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "additional_special_tokens": special}
        (where / "tokenizer_config.json").write_text(json.dumps(told | named))
        (where / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": special}))
    if kind in ("saved by 5", "saved by 5, added"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        if kind == "saved by 5, added":
            tokenizer.add_tokens(["<sep>", "newtok"])
            tokenizer.add_tokens(["<img>"], special_tokens=True)
        for file in where.iterdir():
            file.unlink()
        tokenizer.save_pretrained(where)
        (where / "config.json").write_text(json.dumps({"model_type": model_type}))
    return where


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [
        *("pieces alone", "added_tokens.json", "saved by 5", "byt5"),
        *(
            pytest.param(kind, marks=pytest.mark.nightly)
            for kind in ("pieces", "few sentinels", "mt5", "saved by 5, added", "byt5 saved")
        ),
    ],
)
def test_ids_and_decoded_texts_equal_those_of_transformers(pieces, tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    place = place_of(pieces, tmp_path / "base", kind)
    theirs = transformers.AutoTokenizer.from_pretrained(place)
    ours = huggingface.load(place)
    assert (ours.eos, ours.size) == (theirs.eos_token_id, len(theirs))
    texts = corpus()
    assert len(texts) == 2000
    found = [[*ids, ours.eos] for ids in ours.encode_all(texts)]
    for text, ids in zip(texts, found, strict=True):
        wanted = theirs(text).input_ids
        assert ids == wanted, text
        body = ids[:-1]
        cut = body[: body.index(ours.eos)] if ours.eos in body else body
        assert ours.decode(ids) == theirs.decode(cut, skip_special_tokens=True), text


SENTINELS = [f"<extra_id_{number}>" for number in range(300)]
# Fields of tokenizer_config.json that transformers does something about.
FIELDS = {
    "named specials": {"sep_token": "<sep>", "mask_token": "<mask>", "bos_token": "<s>"},
    "listed specials": {"additional_special_tokens": [*SENTINELS[:100], "<img>", "<sep>"]},
    "more sentinels": {"additional_special_tokens": SENTINELS, "extra_ids": 300},
    "specials by name": {"extra_special_tokens": {"image_token": "<img>"}},
    "clean-up": {"clean_up_tokenization_spaces": True},
    "of transformers 4": {"legacy": False, "sp_model_kwargs": {}, "model_max_length": 5, "extra_ids": 100},
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [pytest.param("pieces", marks=pytest.mark.nightly), "saved by 5"])
@pytest.mark.parametrize("fields", FIELDS)
def test_what_the_configuration_says_is_done_as_transformers_does_it(pieces, tmp_path, form, fields):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    place = place_of(pieces, tmp_path / "base", form)
    told = {"tokenizer_class": "T5Tokenizer", **FIELDS[fields]}
    (place / "tokenizer_config.json").write_text(json.dumps(told))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(place), huggingface.load(place)
    assert ours.size == len(theirs)
    for text in [*UNUSUAL, *TEXTS, *corpus()[1500:1600], "the dog , it 's . do n't !"]:
        ids = ours.encode(text)
        assert [*ids, ours.eos] == theirs(text).input_ids, text
        if ours.eos not in ids:
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_a_special_token_that_no_vocabulary_has_gets_the_next_id(saved):
    size = huggingface.load(saved).size
    named = {"eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>", "sep_token": "<sep>"}
    write(saved, tokenizer_config=named | {"additional_special_tokens": ["<img>"]})
    found = huggingface.load(saved)
    assert [found.encode(text) for text in ("<sep>", "<mask>", "<img>")] == [[size], [size + 1], [size + 2]]
    assert found.size == size + 3
    assert found.decode([size]) == ""


def test_spaces_before_punctuation_go_where_the_configuration_says_so(saved):
    plain = huggingface.load(saved)
    ids = plain.encode("the dog , it ran .")
    write(
        saved,
        tokenizer_config={"eos_token": "</s>", "pad_token": "<pad>", "clean_up_tokenization_spaces": True},
    )
    found = huggingface.load(saved)
    assert plain.decode(ids) == "the dog , it ran ."
    assert found.decode(ids) == "the dog, it ran."
    assert found.fingerprint != plain.fingerprint
    assert pickle.loads(pickle.dumps(found)).decode(ids) == "the dog, it ran."


def test_a_tokenizer_json_is_enough_without_a_sentencepiece_model(saved):
    found = huggingface.load(saved)
    assert not (saved / "spiece.model").exists()
    assert (found.extra_ids, found.eos) == (100, 1)
    assert found.fingerprint == huggingface.load(saved / "tokenizer.json").fingerprint
    assert huggingface.has_tokenizer(storage.path(saved))
    assert not huggingface.has_tokenizer(storage.path(saved.parent / "nothing"))


@pytest.fixture
def saved(pieces, tmp_path):
    """What transformers 5 saves, made by our own reading of a SentencePiece model."""
    place = tmp_path / "saved.json"  # a directory all the same
    place.mkdir()
    shutil.copy(pieces, place / "spiece.model")
    whole = json.loads(huggingface.load(place).backend.tokenizer.to_str())
    (place / "spiece.model").unlink()
    return write(place, tokenizer=whole, tokenizer_config={"eos_token": "</s>", "pad_token": "<pad>"})


def test_padding_and_truncation_of_a_tokenizer_json_are_ignored(saved):
    found = huggingface.load(saved)
    told = json.loads((saved / "tokenizer.json").read_text())
    told["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    told["padding"] = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None}
    told["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    (saved / "tokenizer.json").write_text(json.dumps(told))
    again = huggingface.load(saved)
    assert again.encode(TEXTS[0]) == found.encode(TEXTS[0])
    assert again.fingerprint == found.fingerprint


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json"])
def test_an_added_token_has_the_id_that_its_file_gives_it(saved, form):
    size = huggingface.load(saved).size
    token = {"content": "<sep>", "special": False, "normalized": True}
    token |= dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    if form == "added_tokens.json":
        write(saved, added_tokens={"<sep>": size})
    elif form == "added_tokens_decoder":
        write(saved, tokenizer_config={"added_tokens_decoder": {str(size): token}})
    else:
        told = json.loads((saved / "tokenizer.json").read_text())
        told["added_tokens"].append(token | {"id": size})
        (saved / "tokenizer.json").write_text(json.dumps(told))
    found = huggingface.load(saved)
    assert found.size == size + 1
    assert found.encode("the <sep> dog").count(size) == 1
    assert found.encode("<sep>") == [size]
    assert "<sep>" in found.decode([size])


def test_an_added_token_that_cannot_have_its_id_is_refused(saved):
    size = huggingface.load(saved).size
    write(saved, added_tokens={"<sep>": size + 5})
    with pytest.raises(UserError, match=f"added token '<sep>' .* to have id {size + 5}, got {size}"):
        huggingface.load(saved)


@pytest.mark.parametrize(
    ("ids", "class_in"), [(7, "tokenizer_config"), (None, "config"), (None, "hf_config")]
)
def test_byt5_needs_no_model_file(tmp_path, ids, class_in):
    told = {"tokenizer_class": "ByT5Tokenizer"} | ({"extra_ids": ids} if ids else {})
    found = huggingface.load(write(tmp_path, **{class_in: told}))
    assert (found.size, found.extra_ids) == (259 + (ids or 125), ids or 125)
    assert found.encode("aé\n") == [100, 198, 172, 13]
    assert found.decode([100, 198, 172, 259, 198]) == "aé"
    assert found.decode(found.encode("".join(map(chr, range(1, 600))))) == "".join(map(chr, range(1, 600)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: (place / "tokenizer.json").unlink(), "tokenizer.json or spiece.model"),
        (lambda place: (place / "tokenizer.json").write_text("{}"), "tokenizer.json' to be a tokenizer"),
        (
            lambda place: (place / "tokenizer_config.json").write_text("{"),
            "tokenizer_config.json",
        ),
        (lambda place: (place / "added_tokens.json").write_text("[1]"), r"added_tokens.json' .* got \[1\]"),
        (lambda place: write(place, added_tokens={"<sep>": "190"}), "id of the added token '<sep>' .* '190'"),
        (
            lambda place: write(place, tokenizer_config={"eos_token": "<end>"}),
            "'<end>', after a text, got '</s>'",
        ),
        (lambda place: write(place, tokenizer_config={"split_special_tokens": True}), "split_special_tokens"),
        (lambda place: write(place, tokenizer_config={"pad_token": "</s>"}), "id 0 .* got '<pad>'"),
        (
            lambda place: ((place / "tokenizer.json").unlink(), (place / "spiece.model").write_bytes(b"no")),
            "spiece.model' to be a unigram model",
        ),
    ],
)
def test_a_missing_broken_or_unfit_tokenizer_is_a_user_error(saved, change, message):
    change(saved)
    with pytest.raises(UserError, match=message):
        huggingface.load(saved)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", {"extra_ids": "many"}),
        ("tokenizer_config", {"eos_token": 5}),
        ("tokenizer_config", {"additional_special_tokens": "<sep>"}),
        ("tokenizer_config", {"additional_special_tokens": [["<sep>"]]}),
        ("tokenizer_config", {"added_tokens_decoder": {"190": {"lstrip": True}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"190": "<sep>"}}),
        ("special_tokens_map", {"sep_token": ["<sep>"]}),
    ],
    ids=str,
)
def test_a_field_of_another_type_is_named_with_its_file(saved, name, content):
    with pytest.raises(UserError, match=rf"{name}\.json', got a file whose `{next(iter(content))}"):
        huggingface.load(write(saved, **{name: content}))


def test_half_of_a_surrogate_pair_is_encoded_as_another_character(saved):
    assert huggingface.load(saved).encode("the \ud83d dog")


def test_a_tokenizer_can_be_pickled(saved):
    found = huggingface.load(saved)
    again = pickle.loads(pickle.dumps(found))
    assert again.encode_all(TEXTS) == found.encode_all(TEXTS)
