"""Jobs are told apart by their rows, however these are held."""

import numpy as np
import pytest

from elm_jax import storage
from elm_jax.data.ragged import JoinedTokens, pack_tokens
from elm_jax.errors import UserError
from elm_jax.training import jobs
from elm_jax.training.config import TrainConfig
from elm_jax.training.jobs import TrainingJob
from tests.training_configs import make_job

PROMPTS, TARGETS = [[5, 6, 1], [7, 1], [8, 9, 9, 1]], [[3, 1], [4, 4, 1], [1]]


def held(rows):
    """Returns the same rows as lists, in one array, and in several."""
    return rows, pack_tokens(rows), JoinedTokens([pack_tokens(rows[:2]), pack_tokens(rows[2:])])


@pytest.mark.parametrize("way", range(3))
def test_the_identity_is_the_hash_of_all_rows_in_one_array_however_they_are_held(way):
    job = TrainingJob("x", held(PROMPTS)[way], held(TARGETS)[way], TrainConfig())
    arrays = {
        "prompts/tokens": np.concatenate(PROMPTS).astype(np.int32),
        "prompts/offsets": np.array([0, 3, 5, 9]),
        "targets/tokens": np.concatenate(TARGETS).astype(np.int32),
        "targets/offsets": np.array([0, 2, 5, 6]),
    }
    assert jobs.resume_identity(job)["rows"] == storage.array_fingerprint(arrays)
    other = TrainingJob("x", held(TARGETS)[way], held(PROMPTS)[way], TrainConfig())
    assert jobs.resume_identity(other)["rows"] != jobs.resume_identity(job)["rows"]


@pytest.mark.parametrize("way", range(3))
def test_tokens_are_counted_however_rows_are_held(way):
    assert jobs.token_counts(held(PROMPTS)[way]).tolist() == [3, 2, 4]


def test_attention_spans_are_those_of_the_rows_of_all_jobs():
    every = [
        TrainingJob("x", pack_tokens([[5] * 3]), [[5]], TrainConfig()),
        TrainingJob("y", [[5]], pack_tokens([[5]]), TrainConfig()),
    ]
    spans = jobs.attention_spans(every)
    # Tokens of prompts attend to 3, 3, 3 and 1 tokens; the two of answers to 3 and 1 of these.
    assert (spans.prompt, spans.answer, spans.cross) == (10 / 4, 1.0, 4 / 2)


def test_an_expert_whose_files_could_not_be_named_by_it_is_refused_before_it_trains():
    fits, long = "a/" + "b" * 213, "a/" + "b" * 214  # a slash is three bytes of a name
    jobs.require_trainable([make_job(fits, [[1]], [[2]], steps=1)])
    with pytest.raises(UserError, match="at most 217 bytes"):
        jobs.require_trainable([make_job(long, [[1]], [[2]], steps=1)])
