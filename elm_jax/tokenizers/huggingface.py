"""Tokenizers as Hugging Face's hub has them: `tokenizer.json`, a SentencePiece model, or ByT5's bytes.

    tokenizer.json                              the whole tokenizer, as transformers 5 saves it
    spiece.model                                T5's SentencePiece model; the sentinels come on top
    tokenizer_config.json, added_tokens.json    added tokens, special tokens, the number of sentinels

The `tokenizers` package does the work, as it does in transformers, so the ids are the same. Texts are decoded
without their special tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etils import epath

from elm_jax import schema, storage
from elm_jax.errors import UserError
from elm_jax.tokenizers.added_tokens import ConfigForm, add_tokens, token_text
from elm_jax.tokenizers.conversion import FIRST_BYTE, SENTINEL, convert_sentencepiece, make_byte_tokenizer
from elm_jax.tokenizers.sentencepiece import PAD, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

JSON, CONFIG, ADDED, SPECIAL = (
    *("tokenizer.json", "tokenizer_config.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)
SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
BYTE_TOKENIZER = "ByT5Tokenizer"
# What `clean_up_tokenization_spaces` does to a decoded text, in this order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True)
class HuggingFaceBackend:
    """A tokenizer of the `tokenizers` package, as `Tokenizer` uses it."""

    tokenizer: "FastTokenizer"
    eos: int  # id
    is_byte_level: bool = False
    cleans_up: bool = False  # whether a decoded text loses its spaces before punctuation

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
        text = self._decode_bytes(ids) if self.is_byte_level else self.tokenizer.decode(ids)
        for written, cleaned in _CLEAN_UP if self.cleans_up else ():
            text = text.replace(written, cleaned)
        return text

    def _decode_bytes(self, ids: list[int]) -> str:
        added = self.tokenizer.get_added_tokens_decoder()
        content = b""
        for token in ids:
            if token in added:
                content += b"" if added[token].special else added[token].content.encode()
            elif FIRST_BYTE <= token < FIRST_BYTE + 256:
                content += bytes([token - FIRST_BYTE])
        return content.decode(errors="ignore")


def has_tokenizer(directory: epath.Path) -> bool:
    """Returns whether a directory has a tokenizer that `load` reads."""
    return any((directory / name).exists() for name in (JSON, *SENTENCEPIECE_FILES)) or _is_byte_tokenizer(
        directory
    )


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
    config = {
        **_read_object(directory / SPECIAL, ConfigForm),
        **_read_object(directory / CONFIG, ConfigForm),
    }
    if config.get("split_special_tokens"):
        raise UserError(
            f"Expected split_special_tokens in {str(directory / CONFIG)!r} to be false, got true. Fix: use a "
            "tokenizer that reads special tokens in texts as one id each."
        )
    is_byte_level = False
    model = next((directory / name for name in SENTENCEPIECE_FILES if (directory / name).exists()), None)
    if (directory / JSON).exists():
        tokenizer = _parse(directory / JSON)
    elif model is not None:
        tokenizer = convert_sentencepiece(model, config)
    elif _is_byte_tokenizer(directory):
        is_byte_level = True
        tokenizer = make_byte_tokenizer(config)
    else:
        raise UserError(
            f"Expected a tokenizer in {str(directory)!r}, as {JSON} or {', '.join(SENTENCEPIECE_FILES)}, "
            "got none. Fix: "
            "save it with transformers, which writes tokenizer.json."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    add_tokens(tokenizer, config, _read_object(directory / ADDED), directory=str(directory))
    eos = tokenizer.token_to_id(token_text(config.get("eos_token")) or "</s>")
    if eos is None:
        raise UserError(
            f"Expected the tokenizer in {str(directory)!r} to have an end-of-sequence token, got none. Fix: "
            f"name it as eos_token in {CONFIG}."
        )
    _require_padding(tokenizer, config, directory)
    _require_ending(tokenizer, eos, directory)
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    cleans_up = _cleans_up(tokenizer, config, is_byte_level)
    return Tokenizer(
        size=max(pieces.values()) + 1,
        extra_ids=sum(1 for number in range(len(pieces)) if SENTINEL.format(number) in pieces),
        eos=eos,
        fingerprint=storage.fingerprint(
            {"tokenizer": tokenizer.to_str(), "eos": eos, "bytes": is_byte_level}
            | ({"cleans_up": True} if cleans_up else {})
        ),
        backend=HuggingFaceBackend(tokenizer, eos, is_byte_level, cleans_up),
        unknown=None if is_byte_level else _find_unknown(tokenizer, config),
    )


def _find_unknown(tokenizer: "FastTokenizer", config: Mapping[str, Any]) -> int | None:
    """Returns the id of what a tokenizer's vocabulary lacks; None if it falls back to bytes."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("byte_fallback"):
        return None
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    text = model.get("unk_token") or token_text(config.get("unk_token"))
    return None if text is None else tokenizer.token_to_id(text)


def _is_byte_tokenizer(directory: epath.Path) -> bool:
    files = (CONFIG, "config.json", "hf_config.json")
    return any(_read_object(directory / name).get("tokenizer_class") == BYTE_TOKENIZER for name in files)


def _parse(file: epath.Path) -> "FastTokenizer":
    from tokenizers import Tokenizer as FastTokenizer

    try:
        content = storage.read_content(file, what="A tokenizer", most=storage.MOST_TEXT)
        return FastTokenizer.from_str(content.decode())
    except Exception as error:  # the package raises plain exceptions
        raise UserError(
            f"Expected {str(file)!r} to be a tokenizer, got one that does not parse ({error!s:.150}). Fix: "
            "download it again."
        ) from None


def _cleans_up(tokenizer: "FastTokenizer", config: Mapping[str, Any], is_byte_level: bool) -> bool:
    """Returns whether transformers takes spaces out of decoded texts; out of BPE's only if it is forced."""
    from tokenizers import models

    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    allowed = is_byte_level or forced or not isinstance(tokenizer.model, models.BPE)
    return bool(config.get("clean_up_tokenization_spaces") and allowed)


def _require_ending(tokenizer: "FastTokenizer", eos: int, directory: epath.Path) -> None:
    """Refuses a tokenizer that puts another token than end-of-sequence after every text."""
    added = tokenizer.encode("").ids
    if added and added[-1] != eos and tokenizer.encode("a").ids[-1] == added[-1]:
        raise UserError(
            f"Expected the tokenizer in {str(directory)!r} to put its end-of-sequence token, "
            f"{tokenizer.id_to_token(eos)!r}, after a text, got {tokenizer.id_to_token(added[-1])!r}. Fix: "
            f"name that one as eos_token in {CONFIG}, or save the tokenizer again with transformers."
        )


def _require_padding(tokenizer: "FastTokenizer", config: Mapping[str, Any], directory: epath.Path) -> None:
    """Refuses a tokenizer that gives id 0 to texts: 0 is what rows are padded with, and not attended to."""
    model = json.loads(tokenizer.to_str())["model"]
    zero = tokenizer.id_to_token(PAD)
    pad = token_text(config.get("pad_token")) or "<pad>"
    unknown = token_text(config.get("unk_token")) or model.get("unk_token")
    is_used = zero not in (pad, unknown) or (zero == unknown != pad and not model.get("byte_fallback"))
    if is_used:
        raise UserError(
            f"Expected id {PAD} of the tokenizer in {str(directory)!r} to be padding, got {zero!r}. Fix: use "
            "a base whose tokenizer pads with 0, as T5's do."
        )


def _read_object(file: epath.Path, form: Any = None) -> dict[str, Any]:
    """Returns the object in a file of JSON, whose fields are of a form; an empty one if there is no file."""
    if not file.exists():
        return {}
    value = storage.read_json_value(file, what="A tokenizer's file")
    if not isinstance(value, dict):
        raise UserError(
            f"Expected {str(file)!r} to hold an object, got {value!r:.50}. Fix: download it again."
        )
    if form is not None:
        schema.parse(
            json.dumps(value).encode(), form, what=f"a tokenizer's {str(file)!r}", fix="download it again"
        )
    return value
