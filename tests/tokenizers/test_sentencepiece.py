"""SentencePiece models keep T5's ids and sentinels, and training them is deterministic."""

import warnings

import pytest

from elm_jax.errors import UserError
from elm_jax.tokenizers import sentencepiece as tokenizers

TEXTS = [f"{who} {does} the {what} ." for who in ("anna", "ben") for does in ("sees", "likes", "paints")
         for what in ("robin", "owl", "trout", "oak", "lamp")]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizers.train(
        TEXTS, tmp_path_factory.mktemp("words") / "words.model", 100, kind="word", extra_ids=4
    )


def test_a_word_model_has_three_special_ids_the_words_and_the_sentinels(words):
    known = {word for text in TEXTS for word in text.split()}
    assert words.size == 3 + len(known) + 4
    assert words.eos == 1
    ids = words.encode("anna paints the lamp .")
    assert len(ids) == len(set(ids)) == 5
    assert min(ids) > tokenizers.UNK
    assert max(ids) < words.size - 4


def test_sentinels_count_down_from_the_last_id(words):
    last = words.size - 1
    assert words.encode("the <extra_id_0> sees <extra_id_3>")[1::2] == [last, last - 3]
    assert words.decode([last, last - 3]) == "<extra_id_0> <extra_id_3>"


def test_decoding_stops_at_end_of_sequence(words):
    ids = words.encode("ben likes the owl .")
    assert words.decode([*ids, tokenizers.EOS, *ids]) == "ben likes the owl ."
    assert words.decode(ids) == "ben likes the owl ."


def test_an_unseen_word_and_an_id_beyond_the_end_are_unknown(words):
    assert words.encode("the submarine") == [*words.encode("the"), tokenizers.UNK]
    assert words.decode([words.size + 5]) == words.decode([tokenizers.UNK])


def test_many_texts_encode_as_each_of_them(words):
    assert words.encode_all(TEXTS) == [words.encode(text) for text in TEXTS]
    assert words.encode_all([]) == []


@pytest.mark.parametrize("kind", tokenizers.VOCABULARY_KINDS)
def test_the_same_texts_give_the_same_bytes_and_fingerprint(tmp_path, kind):
    made = [tokenizers.train(TEXTS, tmp_path / name, 40, kind=kind) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert made[0] == made[1]
    assert made[0].decode(made[0].encode(TEXTS[0])) == TEXTS[0]


def test_the_fingerprint_depends_on_the_model_and_on_the_number_of_sentinels(tmp_path, words):
    file = tmp_path / "m.model"
    other = tokenizers.train(TEXTS[:5], file, 100, kind="word", extra_ids=4)
    prints = {words.fingerprint, other.fingerprint, tokenizers.load(file, extra_ids=5).fingerprint}
    assert len(prints) == 3


def test_a_line_longer_than_sentencepieces_default_limit_is_not_skipped(tmp_path):
    long = "anna " * 2000 + "zebra"
    made = tokenizers.train(["anna sees", long], tmp_path / "m.model", 100, kind="word", extra_ids=0)
    assert tokenizers.UNK not in made.encode("zebra")


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="'char'"):
        tokenizers.train(TEXTS, tmp_path / "m", 100, kind="char")
    with pytest.raises(UserError, match="no words"):
        tokenizers.train(["", " \n "], tmp_path / "m", 100)
    with pytest.raises(UserError, match="unigram model of on 30 lines, got 5"):
        tokenizers.train(TEXTS, tmp_path / "m", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_broken_model_is_named(tmp_path, words):
    with pytest.raises(UserError, match=r"none\.model', got no file"):
        tokenizers.load(tmp_path / "none.model")
    good = tmp_path / "good.model"
    tokenizers.train(TEXTS, good, 100, kind="word")
    for content in (b"", b"no model", good.read_bytes()[:-40]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.model"):
            tokenizers.load(tmp_path / "bad.model")


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "m"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"\(0, 1, 2\), got \(-1, 2, 0\)"):
        tokenizers.load(tmp_path / "m.model")


@pytest.mark.parametrize("kind", tokenizers.VOCABULARY_KINDS)
def test_ids_sizes_and_texts_equal_seqios(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's, on import
        seqio = pytest.importorskip("seqio")
    ours = tokenizers.train(TEXTS, tmp_path / "m.model", 60, kind=kind, extra_ids=10)
    theirs = seqio.SentencePieceVocabulary(str(tmp_path / "m.model"), extra_ids=10)
    assert ours.size == theirs.vocab_size
    for text in [*TEXTS, "", "the zebra  <extra_id_0> ﬁne <extra_id_9>", "Ünïcode — 漢字"]:
        ids = ours.encode(text)
        assert ids == list(theirs.encode(text))
        assert ours.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])
    beyond = [ours.size - 1, ours.size - 10, ours.size, 3]
    assert ours.decode(beyond) == theirs.decode(beyond)
