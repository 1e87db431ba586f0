"""SeqIO's rows: a task or mixture that somebody registered with SeqIO by hand, as prepared rows.

Its own preprocessors make the tokens; nothing is rendered here. Rows of a task for rank classification, which
carry `idx` and `is_correct` a choice each as T5's do, become rows with choices again.
"""

import itertools
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from elm_jax import names, storage
from elm_jax.data import prepared, ragged
from elm_jax.data.prepared import Prepared
from elm_jax.errors import UserError
from elm_jax.tasks import user_tasks
from elm_jax.tokenizers.sentencepiece import Tokenizer

PROBE = "The 3 quick, brown foxes: <extra_id_0> “jump” over\tit. ~"
LOOKED_AT = 100  # rows whose text is tokenised to see whether the vocabulary is the same


def rendering(module: str, name: str, split: str, *, limit: int | None, seed: int) -> str:
    """Returns what stands for the rows: the module's file, SeqIO's version, what is asked for.

    What the module itself imports or reads is not noticed. Neither is imported for this.
    """
    place = user_tasks.find_module_file(module)
    told = {"module": storage.file_fingerprint(place), "name": name, "split": split, "rows": limit}
    return prepared.rendering(told, {}, seqio=version("seqio"), seed=seed)


def read(
    module: str,
    name: str,
    split: str,
    vocabulary: Tokenizer,
    *,
    max_input: int,
    max_target: int,
    limit: int | None = None,
    seed: int = 42,
) -> Prepared:
    """Imports the module, which registers the task with SeqIO, and returns a split of it as prepared rows.

    Raises `UserError` for an unknown name or split, no rows, features other than inputs and targets or that
    are no token ids, another vocabulary than the given one, and a mixture without a limit, which has no end.
    """
    import seqio

    user_tasks.import_user_module(module)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    names.resolve(name, known, kind="task or mixture", where=f"SeqIO's registry, with {module!r} imported")
    task = seqio.get_mixture_or_task(name)
    names.resolve(split, list(task.splits), kind="split", where=f"SeqIO's {name!r}")
    if isinstance(task, seqio.Mixture) and limit is None:
        raise UserError(f"{name!r} is a mixture of SeqIO's and has no end. Say how many rows (--limit).")
    features = task.output_features
    if not features.keys() >= {"inputs", "targets"}:
        raise UserError(f"{name!r} should have features inputs and targets, but has {', '.join(features)}.")
    lengths = {"inputs": max_input, "targets": max_target}
    epochs = None if isinstance(task, seqio.Mixture) else 1
    try:
        dataset: Any = task.get_dataset(lengths, split, shuffle=False, seed=seed, num_epochs=epochs)
    except ValueError as error:  # SeqIO's, of what its preprocessors gave
        raise UserError(
            f"Token ids as inputs and targets are wanted of SeqIO's {name!r}, but its preprocessors do not "
            f"give them ({' '.join(str(error).split())}). Let them end with seqio.preprocessors.tokenize and "
            "append_eos_after_trim."
        ) from error
    rows = list((dataset if limit is None else dataset.take(limit)).as_numpy_iterator())
    if not rows:
        raise UserError(f"The {split} split of SeqIO's {name!r} holds no rows.")
    for feature in ("inputs", "targets"):
        _check_vocabulary(features[feature].vocabulary, vocabulary, rows, feature, name)
    return _prepared(rows, f"{name}/{split}", vocabulary)


def _prepared(rows: list[Mapping[str, Any]], where: str, vocabulary: Tokenizer) -> Prepared:
    def text(row: Mapping[str, Any], feature: str) -> str:
        written = row.get(f"{feature}_pretokenized")
        if isinstance(written, bytes):
            return written.decode(errors="replace")
        return vocabulary.decode(row[feature].tolist())

    ranked = rows[0].keys() >= {"idx", "is_correct"}
    if ranked:
        groups = [list(group) for _, group in itertools.groupby(rows, _row_of)]
        right = [next((at for at, row in enumerate(group) if row["is_correct"]), -1) for group in groups]
    else:
        groups, right = [[row] for row in rows], [-1] * len(rows)
    targets = [group[max(at, 0)] for group, at in zip(groups, right, strict=True)]
    choices = list(itertools.chain.from_iterable(groups)) if ranked else []
    named = [group[0].get("row_id", f"{where}/{number}".encode()) for number, group in enumerate(groups)]
    return Prepared(
        row_ids=tuple(name.decode() if isinstance(name, bytes) else str(name) for name in named),
        texts=tuple(text(group[0], "inputs") for group in groups),
        target_texts=tuple(text(row, "targets") for row in targets),
        choice_texts=tuple(text(row, "targets") for row in choices),
        inputs=ragged.of_tokens(group[0]["inputs"] for group in groups),
        targets=ragged.of_tokens(row["targets"] for row in targets),
        choices=ragged.of_tokens(row["targets"] for row in choices),
        choice_starts=ragged.edges(len(group) if ranked else 0 for group in groups),
        labels=np.array(right, np.int32),
    )


def _row_of(row: Mapping[str, Any]) -> int:
    return int(np.ravel(row["idx"])[0])


def _check_vocabulary(
    theirs: Any, ours: Tokenizer, rows: Iterable[Mapping[str, Any]], feature: str, name: str
) -> None:
    """Refuses a task whose vocabulary gives other ids than the base's."""
    found = (row.get(f"{feature}_pretokenized", b"") for row in itertools.islice(rows, LOOKED_AT))
    texts = [PROBE, *(text.decode(errors="replace") for text in found if isinstance(text, bytes))]
    if theirs.vocab_size != ours.size or any(theirs.encode(text) != ours.encode(text) for text in texts):
        raise UserError(
            f"SeqIO's {name!r} tokenises its {feature} with another vocabulary ({theirs.vocab_size} ids) "
            f"than the one that rows are prepared for ({ours.size} ids). Register it with the base's."
        )
