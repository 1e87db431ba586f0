"""The vocabulary keeps T5's ids and sentinels, and is the same on every training."""

import warnings

import pytest

from elm_jax.errors import UserError
from elm_jax.tokenizers import sentencepiece as vocabulary

TEXTS = [f"{who} {does} the {what} ." for who in ("anna", "ben") for does in ("sees", "likes", "paints")
         for what in ("robin", "owl", "trout", "oak", "lamp")]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return vocabulary.train(
        TEXTS, tmp_path_factory.mktemp("words") / "words.model", 100, kind="word", extra_ids=4
    )


def test_a_word_vocabulary_has_three_special_ids_the_words_and_the_sentinels(words):
    known = {word for text in TEXTS for word in text.split()}
    assert words.size == 3 + len(known) + 4
    assert words.eos == 1
    ids = words.encode("anna paints the lamp .")
    assert len(ids) == len(set(ids)) == 5
    assert min(ids) > vocabulary.UNK
    assert max(ids) < words.size - 4


def test_sentinels_count_down_from_the_last_id(words):
    last = words.size - 1
    assert words.encode("the <extra_id_0> sees <extra_id_3>")[1::2] == [last, last - 3]
    assert words.decode([last, last - 3]) == "<extra_id_0> <extra_id_3>"


def test_a_text_comes_back_up_to_its_end(words):
    ids = words.encode("ben likes the owl .")
    assert words.decode([*ids, vocabulary.EOS, *ids]) == "ben likes the owl ."
    assert words.decode(ids) == "ben likes the owl ."


def test_what_was_never_seen_is_unknown_and_so_is_an_id_beyond_the_end(words):
    assert words.encode("the submarine") == [*words.encode("the"), vocabulary.UNK]
    assert words.decode([words.size + 5]) == words.decode([vocabulary.UNK])


def test_many_texts_encode_as_each_of_them(words):
    assert words.encode_all(TEXTS) == [words.encode(text) for text in TEXTS]
    assert words.encode_all([]) == []


@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_the_same_texts_give_the_same_bytes_and_fingerprint(tmp_path, kind):
    made = [vocabulary.train(TEXTS, tmp_path / name, 40, kind=kind) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert made[0] == made[1]
    assert made[0].decode(made[0].encode(TEXTS[0])) == TEXTS[0]


def test_the_fingerprint_tells_models_and_numbers_of_sentinels_apart(tmp_path, words):
    file = tmp_path / "m.model"
    other = vocabulary.train(TEXTS[:5], file, 100, kind="word", extra_ids=4)
    prints = {words.fingerprint, other.fingerprint, vocabulary.load(file, extra_ids=5).fingerprint}
    assert len(prints) == 3


def test_a_line_longer_than_sentencepiece_reads_by_itself_is_not_skipped(tmp_path):
    long = "anna " * 2000 + "zebra"
    made = vocabulary.train(["anna sees", long], tmp_path / "m.model", 100, kind="word", extra_ids=0)
    assert vocabulary.UNK not in made.encode("zebra")


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="one of unigram, word, bpe, but 'char' came"):
        vocabulary.train(TEXTS, tmp_path / "m", 100, kind="char")
    with pytest.raises(UserError, match="none that holds a word came"):
        vocabulary.train(["", " \n "], tmp_path / "m", 100)
    with pytest.raises(UserError, match="A unigram vocabulary of 5 pieces was to be trained on 30 lines"):
        vocabulary.train(TEXTS, tmp_path / "m", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_broken_model_is_named(tmp_path, words):
    with pytest.raises(UserError, match=r"wanted at '.*none.model', but no file is there"):
        vocabulary.load(tmp_path / "none.model")
    good = tmp_path / "good.model"
    vocabulary.train(TEXTS, good, 100, kind="word")
    for content in (b"", b"no model", good.read_bytes()[:-40]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match=r"wanted at '.*bad.model', but the file there is none, or"):
            vocabulary.load(tmp_path / "bad.model")


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "m"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"\(0, 1, 2\), but it has \(-1, 2, 0\)"):
        vocabulary.load(tmp_path / "m.model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_ids_sizes_and_texts_are_seqios(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's, on import
        seqio = pytest.importorskip("seqio")
    ours = vocabulary.train(TEXTS, tmp_path / "m.model", 60, kind=kind, extra_ids=10)
    theirs = seqio.SentencePieceVocabulary(str(tmp_path / "m.model"), extra_ids=10)
    assert ours.size == theirs.vocab_size
    for text in [*TEXTS, "", "the zebra  <extra_id_0> ﬁne <extra_id_9>", "Ünïcode — 漢字"]:
        ids = ours.encode(text)
        assert ids == list(theirs.encode(text))
        assert ours.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])
    beyond = [ours.size - 1, ours.size - 10, ours.size, 3]
    assert ours.decode(beyond) == theirs.decode(beyond)
