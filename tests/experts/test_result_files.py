"""Headers of result files: what they say of an expert is read, or the file counts as damaged."""

import pytest

from elm_jax import names, storage
from elm_jax.errors import DamagedResultsError
from elm_jax.experts import listing, result_files
from elm_jax.experts.result_files import AnswersHeader, ScoresHeader
from elm_jax.session.workspace import Workspace


def write(file, **fields):
    header = {"format": 1, "task": "a/of", "expert": "a/b", "stamp": "x", **fields}
    storage.write_sealed_lines(storage.path(file), header, [])
    return storage.path(file)


def test_a_row_that_counts_in_part_is_part_of_an_accuracy(tmp_path):
    write(
        tmp_path / "scores" / "a" / "of" / f"{names.directory_name('a/b')}.jsonl", rows=4, right=2.5, tied=1
    )
    assert listing.read_accuracies(Workspace.at(tmp_path), "a/b") == {"a/of": (0.625, 4)}


def test_headers_are_records_of_scores_or_of_answers(tmp_path):
    scores = write(tmp_path / "scores.jsonl", rows=4, right=3, tied=0)
    answers = write(tmp_path / "answers.jsonl", measure="bleu", value=12.5, low=None, high=None)
    assert result_files.read_header(scores) == ScoresHeader(4, 3.0, 0)
    assert result_files.read_header(answers) == AnswersHeader("bleu", 12.5, None, None)
    assert result_files.read_header(write(tmp_path / "other.jsonl")) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 0, "right": 0},
        {"rows": 4, "right": 4.5},
        {"rows": 4, "right": -1},
        {"rows": 4, "right": float("nan")},
        {"rows": 4, "right": 1, "tied": 5},
        {"rows": "4", "right": 1},
        {"rows": [], "right": 1},
        {"rows": 4},
        {"measure": "bleu", "value": "high", "low": None, "high": None},
        {"measure": "bleu", "value": 10**400, "low": None, "high": None},
    ],
)
def test_a_header_of_numbers_that_cannot_be_is_damaged_though_its_checksum_fits(tmp_path, fields):
    with pytest.raises(DamagedResultsError, match="damaged"):
        result_files.read_header(write(tmp_path / "scores.jsonl", **fields))


def test_a_header_that_was_changed_is_damaged(tmp_path):
    file = write(tmp_path / "scores.jsonl", rows=4, right=3, tied=0)
    file.write_text(file.read_text().replace('"right": 3', '"right": 4'))
    with pytest.raises(DamagedResultsError):
        result_files.read_header(file)
