"""Whatever a file of ours holds, its reader gives the content or one `UserError`, soon, and reads no more."""

import contextlib
import json
import os
import random
import shutil
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elm_jax import schema, storage
from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate, kept_results, report, scorer_selection
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.derived_experts import Composite
from elm_jax.experts import files, listing
from elm_jax.experts.library import Library
from elm_jax.records import Selection
from elm_jax.reporting import report_files
from elm_jax.routing import index, route
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.session import settings as run_settings
from elm_jax.session import trust
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import user_tasks
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.jsonl_log import Journal, read_journal
from elm_jax.training import checkpoints
from elm_jax.weights import elm
from tests.run_fixtures import TRAINED

EXPERT = TRAINED[0]
PLACE = f"library/{files.relative_directory(EXPERT)}"
TASKS = {"datasets": {"d": {"jsonl": "rows.jsonl", "prompts": {"p": {"jinja": "{{a}} ||| b"}}}}}


@pytest.fixture(scope="module")
def workspace(make_run, unseen):
    """A run that was evaluated, with a file of every format."""
    run = make_run()
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=["roe:experts=2+average"], queries=4))
    root = run.workspace.root
    storage.write_json(root / "embedder.json", {"embedder": "base", "dtype": "float32", "ignore": ["a"]})
    journal = Journal(root / "logs" / "training.jsonl")
    step = {"kind": "step", "round": 1, "expert": "a/b", "step": 1, "steps": 2, "loss": 1.5, "rate": 0.1}
    journal.write([{"kind": "run", "seed": 0}, step, {"kind": "finished", "expert": "a/b", "step": 2}])
    journal.close()
    storage.write_json(root / "identity.json", {"run": {"experts": ["a/b"], "_plan": "x"}})
    (root / "tasks.yaml").write_text(json.dumps(TASKS))
    (root / "rows.jsonl").write_text('{"a": "b"}\n')
    return run.workspace


@dataclass(frozen=True)
class Format:
    """A file in the run, and what reads it; `base` is what its reader needs besides."""

    file: str
    read: Any


def read_rows(run):
    return report_files.read_rows(run.report, report_files.read_report(run.report))


def list_experts(run):
    for one in listing.summarize_experts(run, scored=True):
        assert isinstance(one, listing.BadExpert) or one.description.spec.steps >= 0
    return listing.summary_table(listing.summarize_experts(run), scored=False)


FORMATS = {
    "description": Format(f"{PLACE}/expert.json", lambda run: Library(run.library).describe(EXPERT)),
    "listing": Format(f"{PLACE}/expert.json", list_experts),
    "verification": Format(f"{PLACE}/expert.json", lambda run: Library(run.library).verify()),
    "parameters": Format(f"{PLACE}/params.safetensors", lambda run: Library(run.library).load_expert(EXPERT)),
    "keys": Format(f"{PLACE}/keys.safetensors", lambda run: Library(run.library).load_keys(EXPERT)),
    "settings": Format("run.json", run_settings.load_run_settings),
    "seconds": Format("seconds.json", lambda run: report.add_seconds(run, {"route": 1.0})),
    "choices": Format("choices.json", scorer_selection.load_selection),
    "selections": Format("selections/roe_top2.json", lambda run: route.load_selections(run, "roe_top2")),
    "embedder": Format("embedder.json", index.load_embedder_settings),
    "journal": Format("logs/training.jsonl", lambda run: read_journal(run.logs / "training.jsonl")),
    "report": Format("report/report.json", lambda run: report_files.read_report(run.report)),
    "rows": Format("report/rows.jsonl", read_rows),
    "report key": Format("report/made_from.json", lambda run: kept_results.load_report(run.report, "key")),
    "base": Format("base/config.json", lambda run: elm.load(run.base)),
    "base weights": Format("base/params.safetensors", lambda run: elm.load(run.base)),
    "identity": Format("identity.json", lambda run: checkpoints._claim(run.root, {"experts": ["a/b"]})),
    "tasks": Format("tasks.yaml", lambda run: user_tasks.load_tasks(run.root / "tasks.yaml")),
    "trust": Format("trusted.json", lambda run: trust.require(run.root, [run.root / "tasks.py"])),
}
ODD = [None, True, False, -1, 0, 1, 2**63, 10**400, 1e308, "", "/", "../../x", "a/b", "\x1b[2J", "é" * 300]
ODD += [[], {}, [[]], {"": None}, [1, "a"], 0.5, "NaN", "\ud800", [["a", 1]], {"a/b": 1}]


def change_value(draw, value):
    """Returns JSON with one value in it removed, doubled or replaced."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        copy = dict(value) if isinstance(value, dict) else list(value)
        what = draw.random()
        if what < 0.15:
            del copy[key]
        elif what < 0.25 and isinstance(copy, dict):
            copy[draw.choice(["format", "", *keys])] = copy.pop(key)
        elif what < 0.25:
            copy.insert(key, copy[key])
        else:
            copy[key] = change_value(draw, copy[key])
        return copy
    return draw.choice(ODD)


def mutate(content, seed):
    """Returns bytes near those of a real file: other values, flipped bits, cuts, repeats, deep nests."""
    draw = random.Random(seed)
    kind = draw.random()
    lines = content.split(b"\n")
    if kind < 0.55:
        try:
            if b"}\n{" in content:
                at = draw.randrange(len(lines) - 1)
                lines[at] = json.dumps(change_value(draw, json.loads(lines[at]))).encode()
                return b"\n".join(lines)
            return json.dumps(change_value(draw, json.loads(content))).encode()
        except ValueError:  # no JSON: safetensors, whose header is
            size = int.from_bytes(content[:8], "little")
            header = json.dumps(change_value(draw, json.loads(content[8 : 8 + size]))).encode()
            return len(header).to_bytes(8, "little") + header + content[8 + size :]
    changed = bytearray(content)
    start = draw.randrange(len(changed))
    end = draw.randrange(start, min(len(changed), start + 64) + 1)
    if kind < 0.7:
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind < 0.8:
        del changed[start:]
    elif kind < 0.88:
        del changed[start:end]
    elif kind < 0.94:
        changed[start:start] = changed[start:end] * draw.choice([1, 2, 50])
    elif kind < 0.97:
        changed[start:end] = draw.randbytes(draw.randint(0, 40))
    else:
        changed[start:end] = draw.choice([b"[", b'{"a":', b"\xff\xfe", b"NaN"]) * draw.choice([1, 9999])
    return bytes(changed)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_near_a_real_one_is_read_or_refused(workspace, tmp_path, monkeypatch, name):
    times = int(os.environ.get("ELM_FUZZ", "25"))  # files that are tried; 2000 take some minutes
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path))
    trust.remember([__file__])
    file = epath.Path(tmp_path / "trusted.json") if name == "trust" else workspace.root / FORMATS[name].file
    real = file.read_bytes()

    lengths = [0]

    @settings(max_examples=times, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.integers(0, 2**64))
    def read(seed):
        file.write_bytes(mutate(real, seed))
        began = time.process_time()
        try:
            FORMATS[name].read(workspace)
        except UserError as error:
            lengths.append(len(str(error)))
        assert time.process_time() - began < 10
        assert max(lengths) < 3000

    try:
        FORMATS[name].read(workspace)
        read()
    finally:
        file.write_bytes(real)


def put_fifo(file):
    os.mkfifo(file)


def put_device(file):
    os.symlink("/dev/zero", file)


def put_endless_link(file):
    os.symlink(file, file)


def put_directory(file):
    os.mkdir(file)


def put_endless_file(file):
    with open(file, "wb") as stream:
        stream.truncate(1 << 42)  # sparse


def put_nest(file):
    with open(file, "wb") as stream:
        stream.write(b"[" * 200_000)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "put", [put_fifo, put_device, put_endless_link, put_directory, put_endless_file, put_nest]
)
def test_what_is_no_file_of_ours_is_refused_at_once(workspace, tmp_path, monkeypatch, name, put):
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))
    run = Workspace.at(shutil.copytree(workspace.root, tmp_path / "run"))
    if name == "trust":
        trust.remember([__file__])
    file = (tmp_path / "cache" / "trusted.json") if name == "trust" else tmp_path / "run" / FORMATS[name].file
    file.unlink()
    put(file)
    began = time.monotonic()
    with contextlib.suppress(UserError):
        FORMATS[name].read(run)
    assert time.monotonic() - began < 60


def test_one_bad_expert_is_listed_as_bad_and_disturbs_no_other(workspace, tmp_path):
    run = Workspace.at(shutil.copytree(workspace.root, tmp_path / "run"))
    file = tmp_path / "run" / PLACE / "expert.json"
    told = json.loads(file.read_text())
    for field, value in [("kind", 7), ("datasets", []), ("steps", -1), ("steps", True), ("steps", 2.5)]:
        file.write_text(json.dumps({**told, field: value}))
        found = {
            one.id if isinstance(one, listing.BadExpert) else one.description.spec.id: type(one)
            for one in listing.summarize_experts(run)
        }
        assert found.pop(EXPERT) is listing.BadExpert
        assert set(found.values()) == {listing.ExpertSummary}
        assert len(found) == len(TRAINED) - 1
        (problem,) = Library(run.library).verify()
        assert field in problem.problem
        other = Library(run.library).load_expert(TRAINED[1])
        assert other.spec.id == TRAINED[1]
    Library(run.library).remove(EXPERT)
    assert EXPERT not in Library(run.library)


@pytest.mark.parametrize(
    ("form", "record"),
    [
        (run_settings._SourceForm, Source),
        (run_settings._LengthsForm, Lengths),
        (route.SelectionForm, Selection),
        (scorer_selection._CompositeForm, Composite),
        (scorer_selection._GateForm, GateSpec),
    ],
)
def test_forms_have_the_fields_of_their_records(form, record):
    assert {each.name for each in fields(form)} == {each.name for each in fields(record)} - {"plan"}


@pytest.mark.parametrize("value", ["1", True, 1.0, -1, 2**60, None, float("nan")])
def test_a_count_is_a_whole_number_and_nothing_like_one(value):
    with pytest.raises(UserError):
        schema.parse(json.dumps(value).encode(), schema.Count, what="a count", fix="count")


def test_numbers_in_forms_are_finite(workspace, tmp_path):
    run = Workspace.at(shutil.copytree(workspace.root, tmp_path / "run"))
    for number in ("NaN", "Infinity", "-1", "1e999"):
        (tmp_path / "run" / "seconds.json").write_text(f'{{"format": 1, "seconds": {{"route": {number}}}}}')
        assert report.add_seconds(run, {"route": 1.0}) == {"route": 1.0}


def test_parameters_that_are_not_finite_join_no_library(workspace, tmp_path):
    from elm_jax.experts import import_export

    exported = tmp_path / "exported"
    import_export.export_expert(EXPERT, exported, run=workspace.root)
    told = json.loads((exported / "expert.json").read_text())
    arrays = storage.read_arrays(exported / "params.safetensors", what="Parameters")
    arrays[next(iter(arrays))].flat[0] = np.nan
    storage.write_arrays(exported / "params.safetensors", arrays)
    told["checksum"] = storage.file_fingerprint(exported / "params.safetensors")
    told["id"], told["datasets"] = "x/y", ["x"]
    (exported / "expert.json").write_text(json.dumps(told))
    (exported / "keys.safetensors").unlink(missing_ok=True)
    run = shutil.copytree(workspace.root, tmp_path / "run")
    with pytest.raises(UserError, match="NaN"):
        import_export.import_expert(exported, run=run)
