"""Tokenizers of the `tokenizers` package that are made of a SentencePiece model, or of ByT5's bytes."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tokenizers.added_tokens import token_text
from elm_jax.tokenizers.sentencepiece import EXTRA_IDS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

BYTE_EXTRA_IDS = 125  # ByT5's sentinels, where no file says otherwise
FIRST_BYTE = 3  # the id of ByT5's byte 0, after padding, end and unknown
SENTINEL = "<extra_id_{}>"
# Types of a piece, and of a model, in SentencePiece's format.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_UNIGRAM = 1


def convert_sentencepiece(file: epath.Path, config: Mapping[str, Any]) -> "FastTokenizer":
    """Returns the tokenizer that transformers makes of T5's SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        content = storage.read_content(file, what="A SentencePiece model", most=storage.MOST_TEXT)
        proto.ParseFromString(content)
        if not proto.pieces or proto.trainer_spec.model_type != _UNIGRAM:
            raise ValueError("it has no unigram pieces")
    except Exception as error:  # protobuf's, by several names
        raise UserError(
            f"Expected {str(file)!r} to be a unigram model of SentencePiece, got another file "
            f"({error!s:.80}). Fix: download it again, or save the tokenizer with transformers, which writes "
            "tokenizer.json."
        ) from None
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    sentinels = _sentinel_pieces(config, {piece for piece, _ in pieces})
    pieces += [(piece, 0.0) for piece in sentinels]
    tokenizer = FastTokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, byte_fallback=False))
    if proto.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    spaces: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**spaces)]
    )
    tokenizer.decoder = decoders.Metaspace(**spaces)
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in proto.pieces
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in sentinels])
    eos = token_text(config.get("eos_token")) or "</s>"
    ends = tokenizer.token_to_id(eos)
    if ends is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", eos], special_tokens=[(eos, ends)]
        )
    return tokenizer


def _sentinel_pieces(config: Mapping[str, Any], pieces: set[str]) -> list[str]:
    """Returns the sentinels that stand on top of a model's pieces, the lowest id first."""
    count = config.get("extra_ids")
    if count is None:
        count = 0 if {"<extra_id_0>", "▁<extra_id_0>"} & pieces else EXTRA_IDS
    return [SENTINEL.format(number) for number in reversed(range(count))]


def make_byte_tokenizer(config: Mapping[str, Any]) -> "FastTokenizer":
    """Returns ByT5's tokenizer, which has no model: a byte's id is its value plus 3."""
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    special = ("<pad>", "</s>", "<unk>")
    vocabulary = {piece: number for number, piece in enumerate(special)}
    vocabulary |= {letter: FIRST_BYTE + byte for byte, letter in enumerate(_byte_level_letters())}
    tokenizer = FastTokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    stripped: dict[str, Any] = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    tokenizer.add_special_tokens([AddedToken(piece, **stripped) for piece in special])
    if not config.get("added_tokens_decoder"):
        sentinels = [SENTINEL.format(number) for number in range(config.get("extra_ids") or BYTE_EXTRA_IDS)]
        tokenizer.add_special_tokens(
            [AddedToken(piece, normalized=False, special=True) for piece in sentinels]
        )
    return tokenizer


def _byte_level_letters() -> Iterator[str]:
    """Yields the character that byte-level tokenizers write for each byte: itself, or one past 255."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    next_free = 256
    for byte in range(256):
        if byte in shown:
            yield chr(byte)
        else:
            yield chr(next_free)
            next_free += 1
