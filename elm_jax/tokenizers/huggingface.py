"""Tokenizers as Hugging Face's hub has them: `tokenizer.json`, a SentencePiece model, or ByT5's bytes.

    tokenizer.json                              the whole tokenizer, as transformers 5 saves it
    spiece.model                                T5's SentencePiece model; the sentinels come on top
    tokenizer_config.json, added_tokens.json    added tokens, special tokens, the number of sentinels

The `tokenizers` package does the work, as it does in transformers, so the ids are the same. Texts are decoded
without their special tokens.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tokenizers.sentencepiece import EXTRA_IDS, PAD, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

JSON, CONFIG, ADDED, SPECIAL = (
    *("tokenizer.json", "tokenizer_config.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)
MODELS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
BYTE_TOKENIZER = "ByT5Tokenizer"
BYTE_EXTRA_IDS = 125  # ByT5's sentinels, where no file says otherwise
_FIRST_BYTE = 3  # after padding, end and unknown
_SENTINEL = "<extra_id_{}>"
_SPECIAL_FIELDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Types of a piece, and of a model, in SentencePiece's format.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_UNIGRAM = 1


@dataclass(frozen=True)
class HuggingFaceCodec:
    """A tokenizer of the `tokenizers` package, as `Tokenizer` uses it."""

    tokenizer: "FastTokenizer"
    eos: int  # id
    is_byte_level: bool = False

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of many texts, without the end-of-sequence that the tokenizer puts at their end."""
        try:
            found = [each.ids for each in self.tokenizer.encode_batch_fast(texts)]
        except TypeError:  # half of a surrogate pair is no character
            plain = [text.encode(errors="replace").decode() for text in texts]
            found = [each.ids for each in self.tokenizer.encode_batch_fast(plain)]
        return [ids[:-1] if ids and ids[-1] == self.eos else ids for ids in found]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, special tokens left out."""
        if not self.is_byte_level:
            return self.tokenizer.decode(ids)
        added = self.tokenizer.get_added_tokens_decoder()
        content = b""
        for token in ids:
            if token in added:
                content += b"" if added[token].special else added[token].content.encode()
            elif _FIRST_BYTE <= token < _FIRST_BYTE + 256:
                content += bytes([token - _FIRST_BYTE])
        return content.decode(errors="ignore")


def has_tokenizer(directory: epath.Path) -> bool:
    """Returns whether a directory has a tokenizer that `load` reads."""
    return any((directory / name).exists() for name in (JSON, *MODELS)) or _is_byte_tokenizer(directory)


def load(where: storage.PathLike) -> Tokenizer:
    """Returns the tokenizer of a directory, or of a `tokenizer.json` and the files beside it.

    Args:
        where: A directory laid out as the hub's, or its `tokenizer.json`.

    Returns:
        The tokenizer. Its size counts every id up to the highest that it gives.

    Raises:
        UserError: If there is no tokenizer, if it does not parse, or if its id 0 is not padding.
    """
    path = storage.path(where)
    directory = path.parent if path.suffix == ".json" and not path.is_dir() else path
    config = {**_read_object(directory / SPECIAL), **_read_object(directory / CONFIG)}
    is_byte_level = False
    model = next((directory / name for name in MODELS if (directory / name).exists()), None)
    if (directory / JSON).exists():
        tokenizer = _parse(directory / JSON)
    elif model is not None:
        tokenizer = _convert_sentencepiece(model, config)
    elif _is_byte_tokenizer(directory):
        is_byte_level = True
        tokenizer = _make_byte_tokenizer(config)
    else:
        raise UserError(
            f"Expected a tokenizer in {str(directory)!r}, as {JSON} or {', '.join(MODELS)}, got none. Fix: "
            "save it with transformers, which writes tokenizer.json."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _add_tokens(tokenizer, directory, config)
    eos = tokenizer.token_to_id(_token_text(config.get("eos_token")) or "</s>")
    if eos is None:
        raise UserError(
            f"Expected the tokenizer in {str(directory)!r} to have an end-of-sequence token, got none. Fix: "
            f"name it as eos_token in {CONFIG}."
        )
    _require_padding(tokenizer, config, directory)
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    return Tokenizer(
        size=max(pieces.values()) + 1,
        extra_ids=sum(1 for number in range(len(pieces)) if _SENTINEL.format(number) in pieces),
        eos=eos,
        fingerprint=storage.fingerprint(
            {"tokenizer": tokenizer.to_str(), "eos": eos, "bytes": is_byte_level}
        ),
        codec=HuggingFaceCodec(tokenizer, eos, is_byte_level),
        unknown=None if is_byte_level else _find_unknown(tokenizer, config),
    )


def _find_unknown(tokenizer: "FastTokenizer", config: Mapping[str, Any]) -> int | None:
    """Returns the id of what a tokenizer's vocabulary lacks; None if it falls back to bytes."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("byte_fallback"):
        return None
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    text = model.get("unk_token") or _token_text(config.get("unk_token"))
    return None if text is None else tokenizer.token_to_id(text)


def _is_byte_tokenizer(directory: epath.Path) -> bool:
    files = (CONFIG, "config.json", "hf_config.json")
    return any(_read_object(directory / name).get("tokenizer_class") == BYTE_TOKENIZER for name in files)


def _parse(file: epath.Path) -> "FastTokenizer":
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_str(file.read_text())
    except Exception as error:  # the package raises plain exceptions
        raise UserError(
            f"Expected {str(file)!r} to be a tokenizer, got one that does not parse ({error!s:.150}). Fix: "
            "download it again."
        ) from None


def _convert_sentencepiece(file: epath.Path, config: Mapping[str, Any]) -> "FastTokenizer":
    """Returns the tokenizer that transformers makes of T5's SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(file.read_bytes())
        if not proto.pieces or proto.trainer_spec.model_type != _UNIGRAM:
            raise ValueError("it has no unigram pieces")
    except Exception as error:  # protobuf's, by several names
        raise UserError(
            f"Expected {str(file)!r} to be a unigram model of SentencePiece, got another file "
            f"({error!s:.80}). Fix: download it again, or save the tokenizer with transformers, which writes "
            f"{JSON}."
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
    eos = _token_text(config.get("eos_token")) or "</s>"
    ends = tokenizer.token_to_id(eos)
    if ends is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", eos], special_tokens=[(eos, ends)]
        )
    return tokenizer


def _sentinel_pieces(config: Mapping[str, Any], pieces: set[str]) -> list[str]:
    """Returns the sentinels that stand on top of a model's pieces, the lowest id first."""
    have = {"<extra_id_0>", "▁<extra_id_0>"} & pieces
    count = config.get("extra_ids", 0 if have else EXTRA_IDS)
    return [_SENTINEL.format(number) for number in reversed(range(count))]


def _make_byte_tokenizer(config: Mapping[str, Any]) -> "FastTokenizer":
    """Returns ByT5's tokenizer, which has no model: a byte's id is its value plus 3."""
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    special = ("<pad>", "</s>", "<unk>")
    vocabulary = {piece: number for number, piece in enumerate(special)}
    vocabulary |= {letter: _FIRST_BYTE + byte for byte, letter in enumerate(_byte_level_letters())}
    tokenizer = FastTokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    stripped: dict[str, Any] = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    tokenizer.add_special_tokens([AddedToken(piece, **stripped) for piece in special])
    if not config.get("added_tokens_decoder"):
        sentinels = [_SENTINEL.format(number) for number in range(config.get("extra_ids") or BYTE_EXTRA_IDS)]
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


def _add_tokens(tokenizer: "FastTokenizer", directory: epath.Path, config: Mapping[str, Any]) -> None:
    """Adds the tokens that the files beside a tokenizer name and it lacks, each under its id."""
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    special = _special_tokens(config)
    added: dict[str, tuple[int, AddedToken]] = {}
    for number, fields in (config.get("added_tokens_decoder") or {}).items():
        added[fields["content"]] = int(number), AddedToken(**fields)
    for content, number in _read_object(directory / ADDED).items():
        if content not in added:
            is_special = content in special
            added[content] = number, AddedToken(content, normalized=not is_special, special=is_special)
    for content, (_, token) in sorted(added.items(), key=lambda item: item[1][0]):
        if content not in known:
            tokenizer.add_tokens([token])
    for content, (number, _) in added.items():
        if tokenizer.token_to_id(content) != number:
            raise UserError(
                f"Expected the added token {content!r} of {str(directory)!r} to have id {number}, got "
                f"{tokenizer.token_to_id(content)}. Fix: save the tokenizer again with transformers."
            )
    known |= added.keys()
    for content in special:
        if content not in known and tokenizer.token_to_id(content) is not None:
            tokenizer.add_special_tokens([AddedToken(content, normalized=False, special=True)])


def _special_tokens(config: Mapping[str, Any]) -> list[str]:
    """Returns the texts of the special tokens that a configuration names."""
    named = [config.get(name) for name in _SPECIAL_FIELDS]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(name) or []
        named += listed.values() if isinstance(listed, dict) else listed
    return [text for each in named if (text := _token_text(each))]


def _require_padding(tokenizer: "FastTokenizer", config: Mapping[str, Any], directory: epath.Path) -> None:
    """Refuses a tokenizer that gives id 0 to texts: 0 is what rows are padded with, and not attended to."""
    model = json.loads(tokenizer.to_str())["model"]
    zero = tokenizer.id_to_token(PAD)
    pad = _token_text(config.get("pad_token")) or "<pad>"
    unknown = _token_text(config.get("unk_token")) or model.get("unk_token")
    is_used = zero not in (pad, unknown) or (zero == unknown != pad and not model.get("byte_fallback"))
    if is_used:
        raise UserError(
            f"Expected id {PAD} of the tokenizer in {str(directory)!r} to be padding, got {zero!r}. Fix: use "
            "a base whose tokenizer pads with 0, as T5's do."
        )


def _token_text(token: Any) -> str | None:
    """Returns the text of a token, which files have as text or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _read_object(file: epath.Path) -> dict[str, Any]:
    """Returns the object in a file of JSON; an empty one where there is no file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"Expected {str(file)!r} to be JSON, got a file that does not parse ({type(error).__name__}). "
            "Fix: download it again."
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"Expected {str(file)!r} to hold an object, got {value!r:.50}. Fix: download it again."
        )
    return value
