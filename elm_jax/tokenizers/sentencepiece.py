"""The vocabulary: what turns texts into ids and back, and SentencePiece with T5's ids.

These are 0 padding, 1 end, 2 unknown, and T5's sentinels on top: `<extra_id_0>` has the highest, `size - 1`.
SentencePiece reads and writes the same model files as `seqio.SentencePieceVocabulary` and gives the same ids,
without importing SeqIO or TensorFlow.
"""

import hashlib
import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import sentencepiece

from elm_jax import storage
from elm_jax.errors import UserError

PAD, EOS, UNK = 0, 1, 2
KINDS = ("unigram", "word", "bpe")
EXTRA_IDS = 100
# SentencePiece skips a longer line in silence; the documents of a corpus are to be read whole.
LONGEST_LINE = 1 << 20


@runtime_checkable
class Codec(Protocol):
    """What a tokenizer has to do."""

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts, without an end-of-sequence."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids; one that stands for nothing is unknown, or nothing."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """A loaded tokenizer: text to ids and back."""

    size: int  # sentinels included
    extra_ids: int  # how many sentinels it has
    eos: int
    fingerprint: str  # of all that decides what ids a text gets
    codec: Codec = field(repr=False, compare=False)
    input_eos: bool = True  # whether prompts end with end-of-sequence, as the base was trained

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without an end-of-sequence."""
        return self.codec.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts; much faster than one at a time."""
        return self.codec.encode_all(list(texts)) if texts else []

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first end-of-sequence."""
        found = [int(token) for token in ids]
        return self.codec.decode(found[: found.index(self.eos)] if self.eos in found else found)


@dataclass(frozen=True)
class SentencePiece:
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
) -> Vocabulary:
    """Trains a model of at most `size` pieces, sentinels not counted, writes it to `path` and loads it.

    The same texts in the same order give the same bytes. `kind` "word" makes every word between spaces one
    piece, and any other word unknown. `coverage` is the share of characters that get a piece of their own.
    Raises `UserError` for texts that hold no words and for a size that cannot hold their characters.
    """
    if kind not in KINDS:
        raise UserError(f"A kind of vocabulary is wanted, one of {', '.join(KINDS)}, but {kind!r} came.")
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("Texts to train a vocabulary on are wanted, but none that holds a word came.")
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
            f"A {kind} vocabulary of {size} pieces was to be trained on {len(lines)} lines, but "
            f"SentencePiece refused ({reason}). Choose another size."
        ) from None
    storage.write_bytes(path, model.getvalue())
    return load(path, extra_ids)


def load(path: storage.PathLike, extra_ids: int = EXTRA_IDS) -> Vocabulary:
    """Loads a model file and puts `extra_ids` sentinels on top.

    Raises `UserError` if the file is missing, is no SentencePiece model, or has other ids than T5's for
    padding, end and unknown.
    """
    what = f"A SentencePiece model is wanted at {str(path)!r}"
    try:
        model = storage.path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{what}, but no file is there.") from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if not model:
            raise RuntimeError("the file is empty")
        processor.LoadFromSerializedProto(model + _sentinels(extra_ids))
    except RuntimeError:
        raise UserError(
            f"{what}, but the file there is none, or a broken one; fetch or train it again."
        ) from None
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD, EOS, UNK):
        raise UserError(
            f"{what} with T5's ids for padding, end and unknown ({PAD}, {EOS}, {UNK}), but it has {ids}; "
            "choose T5's model, or train one with these ids."
        )
    digest = hashlib.sha256(model).hexdigest()
    return Vocabulary(
        size=processor.get_piece_size(),
        extra_ids=extra_ids,
        eos=EOS,
        fingerprint=storage.fingerprint({"model": digest, "extra_ids": extra_ids}),
        codec=SentencePiece(processor),
    )


def load_with_sentinels(path: storage.PathLike) -> Vocabulary:
    """Loads a model file as T5 or mT5 has it: sentinels on top, unless they are among the model's pieces."""
    bare = load(path, extra_ids=0)
    assert isinstance(bare.codec, SentencePiece)
    find = bare.codec.processor.piece_to_id
    return bare if find("<extra_id_0>") != UNK or find("▁<extra_id_0>") != UNK else load(path)


def _sentinels(count: int) -> bytes:
    """Pieces `▁<extra_id_i>`, the highest i first, as bytes that lengthen a serialised model.

    A protocol buffer's repeated field may be continued at the end of the message, so no parser is needed:
    field 1 of the model is a piece, whose fields are 1 its text, 2 its score, 3 its type (4, user-defined).
    """
    added = b""
    for index in reversed(range(count)):
        text = f"▁<extra_id_{index}>".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
        added += b"\x0a" + bytes([len(piece)]) + piece
    return added
