"""Compiled programs: made once, found by every later process, and never a reason for another result."""

import json
import os
import subprocess
import sys

import pytest

from elm_jax.cli import compilation_cache

# What a verb does, with the counts of what JAX looked for and found, and every bit of what it computed.
VERB = """
import collections, hashlib, json, os
from elm_jax.cli import compilation_cache
compilation_cache.enable(os.environ)
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
draw = jax.jit(lambda key: jax.nn.softmax(jax.random.normal(key, (64, 64)) @ jax.numpy.ones((64, 64))))
digest = hashlib.sha256(jax.device_get(draw(jax.random.key(0))).tobytes()).hexdigest()
print(json.dumps([digest, counts["compile_requests_use_cache"], counts["cache_hits"]]))
"""


def test_a_second_process_compiles_nothing_anew_and_computes_the_same(tmp_path):
    def run(**told):
        clean = {name: value for name, value in os.environ.items() if "_CACHE" not in name}
        environment = clean | {"ELM_JAX_CACHE": str(tmp_path), **told}
        done = subprocess.run(
            [sys.executable, "-c", VERB], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    every = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    off, _, _ = run(ELM_COMPILATION_CACHE="off")
    assert not list(tmp_path.iterdir())
    first, asked, found = run(**every)
    assert asked > found == 0
    kept = sorted((tmp_path / "compiled").iterdir())
    assert len(kept) == asked
    assert run(**every) == [first, asked, asked]
    assert sorted((tmp_path / "compiled").iterdir()) == kept
    assert first == off


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({"ELM_JAX_CACHE": "a"}, "a/compiled"),
        ({"XDG_CACHE_HOME": "b"}, "b/elm_jax/compiled"),
        ({"ELM_JAX_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a/compiled"),
        ({}, "home/.cache/elm_jax/compiled"),
    ],
)
def test_programs_are_kept_where_what_was_fetched_is(tmp_path, monkeypatch, told, place):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    environment = {name: str(tmp_path / value) for name, value in told.items()}
    compilation_cache.enable(environment)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / place)
    assert (tmp_path / place).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_it_can_be_switched_off(tmp_path, word):
    told = {"ELM_COMPILATION_CACHE": word, "ELM_JAX_CACHE": str(tmp_path / "none")}
    environment = dict(told)
    compilation_cache.enable(environment)
    assert environment == told
    assert not (tmp_path / "none").exists()


def test_what_jax_is_told_stays(tmp_path):
    told = {"JAX_COMPILATION_CACHE_DIR": "gs://a", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7"}
    environment = told | {"ELM_JAX_CACHE": str(tmp_path / "none")}
    compilation_cache.enable(environment)
    assert told.items() <= environment.items()
    assert not (tmp_path / "none").exists()


def test_a_place_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    environment = {"ELM_JAX_CACHE": str(tmp_path / "file")}
    compilation_cache.enable(environment)
    assert "JAX_COMPILATION_CACHE_DIR" not in environment
