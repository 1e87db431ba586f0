"""The tokenizer of a sentence encoder: `tokenizer.json`, cut and lower-cased as the files beside it say."""

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from elm_jax.errors import UserError
from elm_jax.weights import encoder_steps, step_fields

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# One of these says how the first step reads texts, by the network that it had at the time.
STEP_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
)
DEFAULT_LENGTH = 512  # of texts, where nothing tells
_BERT_NORMALIZER_FIELDS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def load_tokenizer(
    directory: epath.Path, longest: int | None, *, ignore: Collection[str] = ()
) -> tuple["Tokenizer", int]:
    """Returns the tokenizer of a directory, which pads no text, and how many tokens of a text it keeps.

    Args:
        directory: That of the first step.
        longest: How many tokens the network has positions for; None if for any number.
        ignore: Fields of the first step's configuration that are not looked at.

    Returns:
        The tokenizer, and the tokens of a text that it keeps, special ones included.

    Raises:
        UserError: If the file is absent or no tokenizer, or if the tokenizers package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            "Expected the package tokenizers for a sentence encoder, got none. Fix: run `pip install "
            "tokenizers`."
        ) from None
    step_config = _read_first_file(directory, STEP_CONFIGS)
    tokenizer_config = _read_first_file(directory, (TOKENIZER_CONFIG,))
    step_fields.NETWORK_FIELDS.require_known_fields(
        step_config, where=str(directory / STEP_CONFIGS[0]), ignore=ignore
    )
    lengths = step_config.get("max_seq_length"), tokenizer_config.get("model_max_length")
    length = _find_max_length(lengths, longest)
    description = _merge_fields(directory / TOKENIZER_FILE, step_config, tokenizer_config)
    if longest is not None and _find_side(description, tokenizer_config, "padding") != "right":
        raise UserError(
            f"Expected the tokenizer of {str(directory)!r} to pad on the right, got another padding_side. "
            "Fix: use another encoder; padding before a text moves its positions, so that its vector depends "
            "on the texts beside it."
        )
    try:
        tokenizer = Tokenizer.from_str(json.dumps(description))
        tokenizer.no_padding()
        tokenizer.enable_truncation(length, direction=_find_side(description, tokenizer_config, "truncation"))
    except Exception as error:  # the package raises plain exceptions
        raise UserError(
            f"Expected a tokenizer in {str(directory / TOKENIZER_FILE)!r}, got {error!s:.200}. Fix: "
            "download it again."
        ) from None
    return tokenizer, length


def _merge_fields(
    file: epath.Path, step_config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the tokenizer's description with the changes that the files beside it make."""
    if not file.exists():
        raise UserError(
            f"Expected {TOKENIZER_FILE} of a sentence encoder in {str(file.parent)!r}, got none. Fix: "
            "download it, or "
            "write it with `save_pretrained` of transformers' `AutoTokenizer`."
        )
    description = encoder_steps.read_json_object(file)
    normalizer = description.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        normalizer |= {
            ours: tokenizer_config[theirs]
            for theirs, ours in _BERT_NORMALIZER_FIELDS.items()
            if theirs in tokenizer_config
        }
    if step_config.get("do_lower_case"):
        before: dict[str, Any] = {"type": "Lowercase"}
        every = [before, normalizer] if normalizer else [before]
        description["normalizer"] = {"type": "Sequence", "normalizers": every}
    return description


def _find_side(description: Mapping[str, Any], tokenizer_config: Mapping[str, Any], what: str) -> str:
    """Returns on which side of a text padding or truncation is: the configuration's, else the tokenizer's."""
    own = description.get(what) or {}
    return str(tokenizer_config.get(f"{what}_side") or own.get("direction") or "right").lower()


def _find_max_length(lengths: tuple[Any, ...], longest: int | None) -> int:
    # A tokenizer without a limit says 10^30.
    known = next(
        (length for length in lengths if type(length) is int and 2 < length < 10**6),
        longest or DEFAULT_LENGTH,
    )
    return min(known, longest or known)


def _read_first_file(directory: epath.Path, files: tuple[str, ...]) -> dict[str, Any]:
    for name in files:
        if (directory / name).exists():
            return encoder_steps.read_json_object(directory / name)
    return {}
