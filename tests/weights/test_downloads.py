"""Names: one table of published models, the hub's cache used offline, and what to do where it has nothing."""

import re

import huggingface_hub
import pytest
from huggingface_hub import constants

from elm_jax.errors import UserError
from elm_jax.weights import downloads, published_models
from elm_jax.weights.load import load_model


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """A cache of the hub's that holds nothing yet, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(cache, repository):
    """Makes the directory of a repository's files in a cache, as the hub's client does."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return place / "snapshots" / ("0" * 40)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("t5-v1_1-xl-lm-adapt", "google/t5-xl-lm-adapt"),
        ("google/t5-xl-lm-adapt", "google/t5-xl-lm-adapt"),
        ("t5_1_1_lm100k_xl", "google/t5-xl-lm-adapt"),
        ("t5-small", "google-t5/t5-small"),
        ("google-t5/t5-3b", "google-t5/t5-3b"),
        ("google/flan-t5-xl", "google/flan-t5-xl"),
        ("bigscience/T0_3B", "bigscience/T0_3B"),
        ("google/mt5-large", "google/mt5-large"),
        ("google/byt5-small", "google/byt5-small"),
        ("somebody/their-t5", "somebody/their-t5"),
    ],
)
def test_a_name_stands_for_a_repository(name, repository):
    assert published_models.find_model(name).hub == repository


def test_buckets_are_those_of_t5xs_documentation():
    assert published_models.find_model("t5-xl-lm-adapt").bucket == (
        "gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_xl/checkpoint_1100000"
    )
    assert (
        published_models.find_model("t5-11b").bucket
        == "gs://t5-data/pretrained_models/t5x/t5_11B/checkpoint_1000000"
    )
    assert (
        published_models.find_model("flan-t5-xl").bucket
        == "gs://t5-data/pretrained_models/t5x/flan_t5_xl/checkpoint_1138000"
    )
    assert published_models.find_model("T0_3B").bucket is None


def test_t0_alone_was_trained_without_an_end_on_its_inputs():
    without = {name for name, model in published_models.PUBLISHED.items() if not model.eos_on_input}
    assert without == {"T0", "T0_3B", "T0p", "T0pp", "T0_single_prompt", "T0_original_task_only"}


@pytest.mark.parametrize("name", ["t5-v1_1-xl-lm-adpat", "flan-t5-xxxl", "T0_3b"])
def test_a_misspelt_name_is_answered_with_the_nearest(name):
    with pytest.raises(UserError, match=r"No model named .* nor a directory of that name.* Did you mean "):
        load_model(name)


def test_a_model_in_the_cache_is_read_without_a_network(offline, t5_1_1, writers):
    writers["hf"](cached(offline, "google/t5-small-lm-adapt"), t5_1_1)
    for name in ("google/t5-small-lm-adapt", "t5-v1_1-small-lm-adapt"):
        assert load_model(name).fingerprint == t5_1_1.fingerprint


def test_a_cache_without_weights_counts_as_none(offline):
    (cached(offline, "google/t5-small-lm-adapt") / "config.json").write_text("{}")
    with pytest.raises(UserError, match="or on the hub, got none"):
        load_model("google/t5-small-lm-adapt")


def test_where_nothing_can_be_fetched_it_is_said_what_to_download_and_where_to_put_it(offline):
    with pytest.raises(UserError) as error:
        load_model("t5-v1_1-xl-lm-adapt")
    said = str(error.value)
    for part in (
        str(offline),
        "hf download google/t5-xl-lm-adapt --local-dir DIR",
        "config.json",
        "model*.safetensors*, flax_model*.msgpack*, pytorch_model*.bin*",
        "https://huggingface.co/google/t5-xl-lm-adapt",
        "gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_xl/checkpoint_1100000",
    ):
        assert part in said


def test_an_unknown_repository_that_cannot_be_fetched_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=re.escape("Did you mean 'google/flan-t5-xl'")):
        load_model("gogle/flan-t5-xl")


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
def test_the_first_kind_of_weights_that_a_repository_has_is_fetched(
    offline, t5_1_1, writers, monkeypatch, tmp_path, weights
):
    source = writers["hf"](tmp_path / "source", t5_1_1, weights=weights)
    (source / "pytorch_model.bin").write_bytes(b"never asked for")
    asked = []

    def snapshot_download(repository, *, revision=None, allow_patterns=None, local_files_only=False):
        """The hub's client, with a hub that has one repository."""
        if local_files_only:
            raise FileNotFoundError(repository)
        asked.append(allow_patterns)
        place = tmp_path / "fetched"
        place.mkdir(exist_ok=True)
        for pattern in allow_patterns or ():
            for file in source.glob(pattern):
                (place / file.name).write_bytes(file.read_bytes())
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = downloads.fetch_model(published_models.find_model("somebody/their-t5"))
    assert load_model(str(found)).fingerprint == t5_1_1.fingerprint
    assert len(asked) == (1 if weights == "safetensors" else 2)
    assert not (found / "pytorch_model.bin").exists()
