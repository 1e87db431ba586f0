"""Tokenizers: text to token ids and back, and SentencePiece models with T5's ids.

T5's ids are 0 padding, 1 end-of-sequence, 2 unknown, and its sentinels on top: `<extra_id_0>` has the highest
id, `size - 1`. This module reads and writes the same model files as `seqio.SentencePieceVocabulary` and gives
the same ids, without importing SeqIO or TensorFlow.
"""

import functools
import hashlib
import io
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import sentencepiece

from elm_jax import storage
from elm_jax.errors import UserError

PAD, EOS, UNK = 0, 1, 2
VOCABULARY_KINDS = ("unigram", "word", "bpe")
EXTRA_IDS = 100
# SentencePiece skips longer lines silently; the documents of a corpus have to be read whole.
LONGEST_LINE = 1 << 20


@runtime_checkable
class TokenizerBackend(Protocol):
    """The library behind a tokenizer: it encodes and decodes."""

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts, without end-of-sequence."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids; ids that do not exist are decoded as unknown, or as nothing."""
        ...


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer.

    Attributes:
        size: Number of ids, sentinels included.
        extra_ids: Number of sentinels.
        eos: Id of end-of-sequence.
        fingerprint: Fingerprint of everything that decides which ids a text gets.
        backend: The library that encodes and decodes.
        input_eos: Whether inputs end with end-of-sequence, as the base was trained.
        unknown: Id of what the vocabulary lacks; None if it lacks nothing.
    """

    size: int
    extra_ids: int
    eos: int
    fingerprint: str
    backend: TokenizerBackend = field(repr=False, compare=False)
    input_eos: bool = True
    unknown: int | None = UNK

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without end-of-sequence."""
        return self.backend.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts; much faster than one at a time."""
        return self.backend.encode_all(list(texts)) if texts else []

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first end-of-sequence."""
        tokens = [int(token) for token in ids]
        return self.backend.decode(tokens[: tokens.index(self.eos)] if self.eos in tokens else tokens)

    @functools.cached_property
    def has_words_only(self) -> bool:
        """Whether the vocabulary is one of words, which does not know the characters of its own words."""
        words = itertools.islice((word for word in self._alphabetic_pieces() if len(word) > 1), 50)
        return any(self.unknown in ids for ids in self.encode_all(sorted(set("".join(words)))))

    @functools.cached_property
    def folded(self) -> frozenset[str]:
        """Which of newline, tab and carriage return are to the vocabulary what a space is."""
        word = next((word for word in self._alphabetic_pieces() if self.unknown not in self.encode(word)), "")
        space = self.encode(f"{word} {word}")
        return frozenset(mark for mark in "\n\t\r" if self.encode(f"{word}{mark}{word}") == space)

    def _alphabetic_pieces(self) -> Iterator[str]:
        pieces = (self.backend.decode([token]).strip() for token in range(UNK + 1, self.size))
        return (piece for piece in pieces if piece.isalpha())


@dataclass(frozen=True)
class SentencePieceBackend:
    """SentencePiece's own processor, as SeqIO and T5X use it."""

    processor: sentencepiece.SentencePieceProcessor

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts)

    def decode(self, ids: list[int]) -> str:
        size = self.processor.get_piece_size()
        return self.processor.decode([token if token < size else UNK for token in ids])


def train(
    texts: Iterable[str],
    path: storage.PathLike,
    size: int,
    *,
    kind: str = "unigram",
    coverage: float = 1.0,
    extra_ids: int = EXTRA_IDS,
) -> Tokenizer:
    """Trains a SentencePiece model, writes it to a file, and loads it.

    The same texts in the same order give the same bytes.

    Args:
        texts: The corpus.
        path: The file to write.
        size: Number of pieces at most, sentinels not counted.
        kind: "unigram", "bpe", or "word", which makes every word between spaces a piece.
        coverage: Share of the corpus's characters that get a piece of their own.
        extra_ids: Sentinels on top of the model.

    Raises:
        UserError: If the texts hold no words, or the size cannot hold their characters.
    """
    if kind not in VOCABULARY_KINDS:
        raise UserError(
            f"Expected a kind of tokenizer among {', '.join(VOCABULARY_KINDS)}, got {kind!r}. Fix: name one."
        )
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(
            "Expected texts to train a tokenizer on, got no words. Fix: give a corpus with words."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type=kind,
            character_coverage=coverage,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=-1,
            hard_vocab_limit=False,
            max_sentence_length=LONGEST_LINE,
            num_threads=1,  # sums of several threads would round differently from run to run
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"Expected a size that SentencePiece can train a {kind} model of on {len(lines)} lines, got "
            f"{size} ({reason}). Fix: choose another size."
        ) from None
    storage.write_bytes(path, model.getvalue())
    return load(path, extra_ids)


def load(path: storage.PathLike, extra_ids: int = EXTRA_IDS) -> Tokenizer:
    """Loads a SentencePiece model.

    Args:
        path: The model's file.
        extra_ids: Sentinels to put on top of the model.

    Raises:
        UserError: If the file is missing, is no SentencePiece model, or has other ids than T5's for padding,
            end-of-sequence and unknown.
    """
    model = storage.read_content(path, what="A SentencePiece model", most=storage.MOST_TEXT)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if not model:
            raise RuntimeError("the file is empty")
        processor.LoadFromSerializedProto(model + _serialize_sentinels(extra_ids))
    except RuntimeError:
        raise UserError(
            f"Expected a SentencePiece model at {str(path)!r}, got another or a broken file. Fix: download "
            "or train it again."
        ) from None
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD, EOS, UNK):
        raise UserError(
            f"Expected the SentencePiece model at {str(path)!r} to have T5's ids for padding, end-of-"
            f"sequence and unknown, {(PAD, EOS, UNK)}, got {ids}. Fix: use T5's model, or one with these ids."
        )
    digest = hashlib.sha256(model).hexdigest()
    return Tokenizer(
        size=processor.get_piece_size(),
        extra_ids=extra_ids,
        eos=EOS,
        fingerprint=storage.fingerprint({"model": digest, "extra_ids": extra_ids}),
        backend=SentencePieceBackend(processor),
    )


def load_with_sentinels(path: storage.PathLike) -> Tokenizer:
    """Loads a model as T5 or mT5 has it: with sentinels on top, unless the model holds them itself."""
    bare = load(path, extra_ids=0)
    assert isinstance(bare.backend, SentencePieceBackend)
    find = bare.backend.processor.piece_to_id
    return bare if find("<extra_id_0>") != UNK or find("▁<extra_id_0>") != UNK else load(path)


def _serialize_sentinels(count: int) -> bytes:
    """Returns pieces `▁<extra_id_i>`, the highest i first, as bytes that lengthen a serialised model.

    A repeated field of a protocol buffer may be continued at the end of the message, so no parser is needed:
    field 1 of the model is a piece, whose fields are 1 its text, 2 its score, 3 its type (4, user-defined).
    """
    added = b""
    for index in reversed(range(count)):
        text = f"▁<extra_id_{index}>".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
        added += b"\x0a" + bytes([len(piece)]) + piece
    return added
