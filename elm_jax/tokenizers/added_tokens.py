"""Added tokens: those that the files beside a tokenizer name, under the ids that transformers gives them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elm_jax import schema
from elm_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer

# In the order in which transformers adds those that a vocabulary lacks.
_SPECIAL_FIELDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_Token = str | Mapping[str, Any] | None


@dataclass(frozen=True)
class _AddedTokenForm(schema.Form):
    content: schema.Text
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False


@dataclass(frozen=True)
class ConfigForm(schema.Form):
    """The fields of `tokenizer_config.json` and `special_tokens_map.json` that are read, and their types."""

    bos_token: _Token = None
    eos_token: _Token = None
    unk_token: _Token = None
    sep_token: _Token = None
    pad_token: _Token = None
    cls_token: _Token = None
    mask_token: _Token = None
    additional_special_tokens: list[_Token] | None = None
    extra_special_tokens: list[_Token] | Mapping[str, _Token] | None = None
    added_tokens_decoder: Mapping[str, _AddedTokenForm] | None = None
    extra_ids: schema.Count | None = None
    clean_up_tokenization_spaces: bool | None = None
    split_special_tokens: bool | None = None


def add_tokens(
    tokenizer: "FastTokenizer", config: Mapping[str, Any], ids: Mapping[str, Any], *, directory: str
) -> None:
    """Adds the tokens that a tokenizer lacks: first those whose ids are given, then other special tokens.

    Args:
        tokenizer: The tokenizer.
        config: The fields of `tokenizer_config.json` and `special_tokens_map.json`.
        ids: Token -> id, as `added_tokens.json` has them.
        directory: What errors call the directory of these files.

    Raises:
        UserError: If a token cannot have the id that is given.
    """
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    special = {token.content: token for token in _special_tokens(config)}
    added: dict[str, tuple[int, AddedToken]] = {}
    for number, fields in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: fields[name] for name in _FLAGS if name in fields}
        added[fields["content"]] = int(number), AddedToken(fields["content"], **flags)
    for content, number in ids.items():
        if type(number) is not int:
            raise UserError(
                f"Expected a whole number as the id of the added token {content!r} of {directory!r}, got "
                f"{number!r:.50}. Fix: save the tokenizer again with transformers."
            )
        if content not in added:
            is_special = content in special
            added[content] = number, AddedToken(content, normalized=not is_special, special=is_special)
    for content, (_, token) in sorted(added.items(), key=lambda item: item[1][0]):
        if content not in known:
            tokenizer.add_tokens([token])
    for content, (number, _) in added.items():
        if tokenizer.token_to_id(content) != number:
            raise UserError(
                f"Expected the added token {content!r} of {directory!r} to have id {number}, got "
                f"{tokenizer.token_to_id(content)}. Fix: save the tokenizer again with transformers."
            )
    tokenizer.add_special_tokens(
        [token for content, token in special.items() if content not in known | added.keys()]
    )


def token_text(token: Any) -> str | None:
    """Returns the text of a token, which files have as text or as an object; None if there is none."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _special_tokens(config: Mapping[str, Any]) -> "Iterator[AddedToken]":
    """Yields the special tokens that a configuration names."""
    from tokenizers import AddedToken

    named = [config.get(name) for name in _SPECIAL_FIELDS]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(name) or []
        named += listed.values() if isinstance(listed, dict) else listed
    for token in named:
        content = token_text(token)
        if content is not None:
            fields = token if isinstance(token, dict) else {}
            flags = {name: bool(fields.get(name)) for name in _FLAGS}
            yield AddedToken(content, **(flags | {"special": True}))
