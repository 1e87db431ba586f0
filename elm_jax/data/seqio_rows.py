"""SeqIO's rows: a task or mixture that a user registered with SeqIO, as tokenised rows.

Its own preprocessors make the tokens; nothing is rendered here. A task for rank classification has one row
per choice, with `idx` and `is_correct` as T5's tasks have; its rows are put together again.
"""

import itertools
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from elm_jax import names, storage
from elm_jax.data import prepared_files, ragged
from elm_jax.data.tokenized_rows import TokenizedRows
from elm_jax.errors import UserError
from elm_jax.tasks import user_tasks
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import Tokenizer

PROBE = "The 3 quick, brown foxes: <extra_id_0> “jump” over\tit. ~"
PROBED_ROWS = 100  # whose text is tokenised to compare the tokenizers


def make_rendering_key(module: str, name: str, split: str, *, limit: int | None, seed: int) -> str:
    """Returns the cache key of SeqIO's rows: of the module's file, SeqIO's version and the arguments.

    The module is not imported for this, and changes of what it imports or reads are not noticed.
    """
    file = user_tasks.find_module_file(module)
    data = {"module": storage.file_fingerprint(file), "name": name, "split": split, "rows": limit}
    return prepared_files.make_rendering_key(data, {}, {"seqio": version("seqio"), "seed": seed})


def load_rows(
    module: str,
    name: str,
    split: str,
    tokenizer: Tokenizer,
    lengths: Lengths,
    *,
    limit: int | None = None,
    seed: int = 42,
) -> TokenizedRows:
    """Imports a module that registers a task with SeqIO, and returns a split of the task.

    Args:
        module: The module, by name or file.
        name: SeqIO's name of the task or mixture.
        split: The split.
        tokenizer: The base's tokenizer, which the task's has to equal.
        lengths: Tokens of inputs and of targets that are kept.
        limit: Rows at most; a mixture, which never ends, needs it.
        seed: SeqIO's seed.

    Raises:
        UserError: If the name or split is unknown, there are no rows, the features are not inputs and targets
            of token ids, the task has another tokenizer, or a mixture is given no limit.
    """
    import seqio

    user_tasks.import_user_module(module)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    names.resolve(name, known, kind="task or mixture", where=f"SeqIO's registry, with {module!r} imported")
    task = seqio.get_mixture_or_task(name)
    names.resolve(split, list(task.splits), kind="split", where=f"SeqIO's {name!r}")
    if isinstance(task, seqio.Mixture) and limit is None:
        raise UserError(
            f"Expected a limit for {name!r}, a mixture, which never ends, got none. Fix: give --limit."
        )
    features = task.output_features
    if not features.keys() >= {"inputs", "targets"}:
        raise UserError(
            f"Expected SeqIO's {name!r} to have the features inputs and targets, got {', '.join(features)}. "
            "Fix: name its features so."
        )
    feature_lengths = {"inputs": lengths.prompt, "targets": lengths.answer}
    epochs = None if isinstance(task, seqio.Mixture) else 1
    try:
        dataset: Any = task.get_dataset(feature_lengths, split, shuffle=False, seed=seed, num_epochs=epochs)
    except ValueError as error:  # SeqIO's, of what its preprocessors gave
        raise UserError(
            f"Expected token ids as inputs and targets of SeqIO's {name!r}, got something else from its "
            f"preprocessors ({' '.join(str(error).split())}). Fix: end them with "
            "seqio.preprocessors.tokenize and append_eos_after_trim."
        ) from error
    rows = list((dataset if limit is None else dataset.take(limit)).as_numpy_iterator())
    if not rows:
        raise UserError(
            f"Expected rows in the {split} split of SeqIO's {name!r}, got none. Fix: name another."
        )
    for feature in ("inputs", "targets"):
        _require_same_tokenizer(features[feature].vocabulary, tokenizer, rows, feature, name)
    return _to_tokenized_rows(rows, f"{name}/{split}", tokenizer)


def _to_tokenized_rows(rows: list[Mapping[str, Any]], id_prefix: str, tokenizer: Tokenizer) -> TokenizedRows:
    def text(row: Mapping[str, Any], feature: str) -> str:
        stored = row.get(f"{feature}_pretokenized")
        if isinstance(stored, bytes):
            return stored.decode(errors="replace")
        return tokenizer.decode(row[feature].tolist())

    ranked = rows[0].keys() >= {"idx", "is_correct"}
    if ranked:
        groups = [list(group) for _, group in itertools.groupby(rows, _get_row_index)]
        right = [next((at for at, row in enumerate(group) if row["is_correct"]), -1) for group in groups]
    else:
        groups, right = [[row] for row in rows], [-1] * len(rows)
    targets = [group[max(at, 0)] for group, at in zip(groups, right, strict=True)]
    choices = list(itertools.chain.from_iterable(groups)) if ranked else []
    row_ids = [
        group[0].get("row_id", f"{id_prefix}/{number}".encode()) for number, group in enumerate(groups)
    ]
    return TokenizedRows(
        row_ids=tuple(name.decode() if isinstance(name, bytes) else str(name) for name in row_ids),
        texts=tuple(text(group[0], "inputs") for group in groups),
        target_texts=tuple(text(row, "targets") for row in targets),
        choice_texts=tuple(text(row, "targets") for row in choices),
        inputs=ragged.pack_tokens(group[0]["inputs"] for group in groups),
        targets=ragged.pack_tokens(row["targets"] for row in targets),
        choices=ragged.pack_tokens(row["targets"] for row in choices),
        choice_starts=ragged.compute_offsets(len(group) if ranked else 0 for group in groups),
        labels=np.array(right, np.int32),
    )


def _get_row_index(row: Mapping[str, Any]) -> int:
    return int(np.ravel(row["idx"])[0])


def _require_same_tokenizer(
    theirs: Any, ours: Tokenizer, rows: Iterable[Mapping[str, Any]], feature: str, name: str
) -> None:
    """Raises if a task's tokenizer gives other ids than the base's."""
    probes = (row.get(f"{feature}_pretokenized", b"") for row in itertools.islice(rows, PROBED_ROWS))
    texts = [PROBE, *(text.decode(errors="replace") for text in probes if isinstance(text, bytes))]
    if theirs.vocab_size != ours.size or any(theirs.encode(text) != ours.encode(text) for text in texts):
        raise UserError(
            f"Expected SeqIO's {name!r} to tokenise its {feature} with the base's tokenizer ({ours.size} "
            f"ids), got another ({theirs.vocab_size} ids). Fix: register it with the base's."
        )
