"""Tokenizers as Hugging Face's hub has them: `tokenizer.json`, a SentencePiece model, or ByT5's bytes.

    tokenizer.json                              all that transformers 5 saves
    spiece.model                                T5's pieces; the sentinels come on top
    tokenizer_config.json, added_tokens.json    added tokens, special tokens, the number of sentinels

The `tokenizers` package does the work, as it does in transformers, so that ids are the same. Texts are
decoded without their special tokens.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tokenizers.sentencepiece import EXTRA_IDS, PAD, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JSON, CONFIG, ADDED, SPECIAL = (
    *("tokenizer.json", "tokenizer_config.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)
MODELS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
BYTES = "ByT5Tokenizer"
BYTES_EXTRA_IDS = 125  # ByT5's sentinels, where no file says otherwise
_FIRST_BYTE = 3  # after padding, end and unknown
_SENTINEL = "<extra_id_{}>"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Types of a piece, and of a model, in SentencePiece's format.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_UNIGRAM = 1


@dataclass(frozen=True)
class Codec:
    """A tokenizer of the `tokenizers` package, in the form that `Vocabulary` wants."""

    tokenizer: "Tokenizer"
    eos: int
    of_bytes: bool = False

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
        if not self.of_bytes:
            return self.tokenizer.decode(ids)
        added = self.tokenizer.get_added_tokens_decoder()
        content = b""
        for token in ids:
            if token in added:
                content += b"" if added[token].special else added[token].content.encode()
            elif _FIRST_BYTE <= token < _FIRST_BYTE + 256:
                content += bytes([token - _FIRST_BYTE])
        return content.decode(errors="ignore")


def is_there(directory: epath.Path) -> bool:
    """Says whether a directory has a tokenizer that `load` reads."""
    return any((directory / name).exists() for name in (JSON, *MODELS)) or _is_of_bytes(directory)


def load(where: storage.PathLike) -> Vocabulary:
    """Returns the tokenizer of a directory, or of a `tokenizer.json` and what lies beside it.

    Args:
        where: A directory as the hub has them, or the path of its `tokenizer.json`.

    Returns:
        The vocabulary. Its size counts every id up to the highest that the tokenizer gives.

    Raises:
        UserError: If there is no tokenizer, one that does not parse, or one whose id 0 is no padding.
    """
    named = storage.path(where)
    directory = named.parent if named.suffix == ".json" and not named.is_dir() else named
    beside = {**_object(directory / SPECIAL), **_object(directory / CONFIG)}
    of_bytes = False
    model = next((directory / name for name in MODELS if (directory / name).exists()), None)
    if (directory / JSON).exists():
        tokenizer = _parsed(directory / JSON)
    elif model is not None:
        tokenizer = _of_sentencepiece(model, beside)
    elif _is_of_bytes(directory):
        of_bytes = True
        tokenizer = _of_bytes(beside)
    else:
        raise UserError(
            f"Expected a tokenizer in {str(directory)!r}, as {JSON} or {', '.join(MODELS)}, got none. Fix: "
            "save it with transformers, which writes tokenizer.json."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _add_tokens(tokenizer, directory, beside)
    eos = _id_of(tokenizer, beside, "eos_token", "</s>")
    if eos is None:
        raise UserError(
            f"Expected the tokenizer in {str(directory)!r} to have an end-of-sequence token, got none. Fix: "
            f"name it as eos_token in {CONFIG}."
        )
    _require_padding(tokenizer, beside, directory)
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    return Vocabulary(
        size=max(pieces.values()) + 1,
        extra_ids=sum(1 for number in range(len(pieces)) if _SENTINEL.format(number) in pieces),
        eos=eos,
        fingerprint=storage.fingerprint({"tokenizer": tokenizer.to_str(), "eos": eos, "bytes": of_bytes}),
        codec=Codec(tokenizer, eos, of_bytes),
    )


def _is_of_bytes(directory: epath.Path) -> bool:
    files = (CONFIG, "config.json", "hf_config.json")
    return any(_object(directory / name).get("tokenizer_class") == BYTES for name in files)


def _parsed(file: epath.Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(file.read_text())
    except Exception as error:  # the package raises plain exceptions
        raise UserError(
            f"Expected {str(file)!r} to be a tokenizer, got one that does not parse ({error!s:.150}). Fix: "
            "download it again."
        ) from None


def _of_sentencepiece(file: epath.Path, beside: Mapping[str, Any]) -> "Tokenizer":
    """Returns the tokenizer that transformers makes of T5's SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

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
    sentinels = _sentinels(beside, {piece for piece, _ in pieces})
    pieces += [(piece, 0.0) for piece in sentinels]
    tokenizer = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, byte_fallback=False))
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
    eos = _text(beside.get("eos_token")) or "</s>"
    ends = tokenizer.token_to_id(eos)
    if ends is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", eos], special_tokens=[(eos, ends)]
        )
    return tokenizer


def _sentinels(beside: Mapping[str, Any], pieces: set[str]) -> list[str]:
    """Returns the sentinels that stand on top of a model's pieces, the lowest id first."""
    have = {"<extra_id_0>", "▁<extra_id_0>"} & pieces
    count = beside.get("extra_ids", 0 if have else EXTRA_IDS)
    return [_SENTINEL.format(number) for number in reversed(range(count))]


def _of_bytes(beside: Mapping[str, Any]) -> "Tokenizer":
    """Returns ByT5's tokenizer, which has no model: a byte's id is its value plus 3."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    special = ("<pad>", "</s>", "<unk>")
    vocabulary = {piece: number for number, piece in enumerate(special)}
    vocabulary |= {letter: _FIRST_BYTE + byte for byte, letter in enumerate(_letters_of_bytes())}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    stripped: dict[str, Any] = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    tokenizer.add_special_tokens([AddedToken(piece, **stripped) for piece in special])
    if not beside.get("added_tokens_decoder"):
        sentinels = [_SENTINEL.format(number) for number in range(beside.get("extra_ids") or BYTES_EXTRA_IDS)]
        tokenizer.add_special_tokens(
            [AddedToken(piece, normalized=False, special=True) for piece in sentinels]
        )
    return tokenizer


def _letters_of_bytes() -> Iterator[str]:
    """Yields the character that byte-level tokenizers write for each byte: itself, or one past 255."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    next_free = 256
    for byte in range(256):
        if byte in shown:
            yield chr(byte)
        else:
            yield chr(next_free)
            next_free += 1


def _add_tokens(tokenizer: "Tokenizer", directory: epath.Path, beside: Mapping[str, Any]) -> None:
    """Adds the tokens that the files beside a tokenizer name and it does not have, each under its id."""
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    special = _special(beside)
    wanted: dict[str, tuple[int, AddedToken]] = {}
    for number, told in (beside.get("added_tokens_decoder") or {}).items():
        wanted[told["content"]] = int(number), AddedToken(**told)
    for content, number in _object(directory / ADDED).items():
        if content not in wanted:
            is_special = content in special
            wanted[content] = number, AddedToken(content, normalized=not is_special, special=is_special)
    for content, (_, token) in sorted(wanted.items(), key=lambda item: item[1][0]):
        if content not in known:
            tokenizer.add_tokens([token])
    for content, (number, _) in wanted.items():
        if tokenizer.token_to_id(content) != number:
            raise UserError(
                f"Expected the added token {content!r} of {str(directory)!r} to have id {number}, got "
                f"{tokenizer.token_to_id(content)}. Fix: save the tokenizer again with transformers."
            )
    known |= wanted.keys()
    for content in special:
        if content not in known and tokenizer.token_to_id(content) is not None:
            tokenizer.add_special_tokens([AddedToken(content, normalized=False, special=True)])


def _special(beside: Mapping[str, Any]) -> list[str]:
    named = [beside.get(name) for name in _NAMED]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = beside.get(name) or []
        named += listed.values() if isinstance(listed, dict) else listed
    return [text for each in named if (text := _text(each))]


def _require_padding(tokenizer: "Tokenizer", beside: Mapping[str, Any], directory: epath.Path) -> None:
    """Refuses a tokenizer that gives id 0 to texts: 0 is what rows are padded with, and not attended to."""
    model = json.loads(tokenizer.to_str())["model"]
    zero = tokenizer.id_to_token(PAD)
    pad = _text(beside.get("pad_token")) or "<pad>"
    unknown = _text(beside.get("unk_token")) or model.get("unk_token")
    may_come = zero not in (pad, unknown) or (zero == unknown != pad and not model.get("byte_fallback"))
    if may_come:
        raise UserError(
            f"Expected id {PAD} of the tokenizer in {str(directory)!r} to be padding, got {zero!r}. Fix: use "
            "a base whose tokenizer pads with 0, as T5's do."
        )


def _id_of(tokenizer: "Tokenizer", beside: Mapping[str, Any], name: str, usual: str) -> int | None:
    return tokenizer.token_to_id(_text(beside.get(name)) or usual)


def _text(told: Any) -> str | None:
    """Returns the text of a token, which files have as text or as an object."""
    content = told.get("content") if isinstance(told, dict) else told
    return content if isinstance(content, str) and content else None


def _object(file: epath.Path) -> dict[str, Any]:
    """Returns the object in a file of JSON; an empty one where there is no file."""
    if not file.exists():
        return {}
    try:
        told = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"Expected {str(file)!r} to be JSON, got a file that does not parse ({type(error).__name__}). "
            "Fix: download it again."
        ) from None
    if not isinstance(told, dict):
        raise UserError(
            f"Expected {str(file)!r} to hold an object, got {told!r:.50}. Fix: download it again."
        )
    return told
