"""Whatever a file of ours holds, its reader gives the content or one `UserError`, soon, and reads no more."""

import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elm_jax import locks, names, schema, storage
from elm_jax.data import prepare, prepared_files, tokenized_rows
from elm_jax.errors import UserError
from elm_jax.evaluation import (
    evaluate,
    generation,
    kept_results,
    ranking,
    report,
    results_cache,
    scorer_selection,
)
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.derived_experts import Composite
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts import files, gate_files, listing, model_card, published_library
from elm_jax.experts.library import Library
from elm_jax.records import Gates, Selection
from elm_jax.reporting import report_files
from elm_jax.routing import index, route
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.safetensors_header import read_header
from elm_jax.session import opening, trust
from elm_jax.session import settings as run_settings
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics
from elm_jax.tasks import user_tasks
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry import trackers
from elm_jax.telemetry.jsonl_log import Journal, read_journal
from elm_jax.training import checkpoints
from elm_jax.weights import elm
from tests.run_fixtures import TRAINED

EXPERT = TRAINED[0]
PLACE = f"library/{files.relative_directory(EXPERT)}"
LORA = {"mlp/wo/lora_a": (2, 8, 4), "mlp/wo/lora_b": (2, 4, 3)}
TASKS = {"datasets": {"d": {"jsonl": "rows.jsonl", "prompts": {"p": {"jinja": "{{a}} ||| b"}}}}}


@dataclass(frozen=True)
class Made:
    """A run that was evaluated, with a file of every format, and what their readers need beside it."""

    run: Run
    tasks: Mapping[str, Any]
    scores: ranking.ScoreStore
    answers_key: str

    @property
    def root(self):
        return self.run.workspace.root


@pytest.fixture(scope="module")
def made(make_run, unseen):
    run = make_run()
    root, cell = run.workspace.root, Cell("mini_size_suitcase/than a suitcase", EXPERT)
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=["roe:experts=2+average"], queries=4))
    tasks = load_tasks(run, unseen)
    scores = ranking.score_cells(run, [cell], tasks)
    generation.generate_answers(run, [cell], tasks)
    results_cache.save_identities(run, {cell.task: tasks[cell.task].identity})
    storage.write_json(root / "embedder.json", {"embedder": "base", "dtype": "float32", "ignore": ["a"]})
    journal = Journal(root / "logs" / "training.jsonl")
    step = {"kind": "step", "round": 1, "expert": "a/b", "step": 1, "steps": 2, "loss": 1.5, "rate": 0.1}
    journal.write([{"kind": "run", "seed": 0}, step, {"kind": "finished", "expert": "a/b", "step": 2}])
    journal.close()
    storage.write_json(root / "identity.json", {"run": {"experts": ["a/b"], "_plan": "x"}})
    (root / "steps" / "5" / checkpoints.STATE).mkdir(parents=True)
    (root / "steps" / "5" / checkpoints.STATE / "0").write_bytes(b"12")
    checkpoints._list_files(root / "steps")
    (root / "tasks.yaml").write_text(json.dumps(TASKS))
    (root / "rows.jsonl").write_text('{"a": "b"}\n')
    source = replace(run.source, prepared=str(root / "prepared"))
    prepare.prepare_tasks(tasks=[cell.task], tokenizer=run.tokenizer, source=source, lengths=run.lengths)
    arrays = {"a": np.ones(3, np.float32)}
    about = {"stamp": "key", "checksum": storage.array_fingerprint(arrays)}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    storage.write_arrays(root / "statistics.safetensors", arrays)
    (root / "gates").mkdir()
    gates = Gates({"mlp/wo": np.ones((2, 8), np.float32)}, "0" * 16, {"rows": 4})
    gate_files.write_gates(root / "gates", "a/b", LORA, gates)
    score = model_card.CardScore("a/b", "accuracy", 50.0, 40.0, 60.0, 10, False)
    record = {"base": "0" * 16, "base_model": "x/y", "licence": None, "scores": {EXPERT: [asdict(score)]}}
    storage.write_json(root / "library.json", record)
    storage.write_json(root / "wandb.json", {"id": "x"})
    lock = {"host": "here", "pid": 7, "purpose": "elm train", "since": "now", "alive": 0.0, "token": "x"}
    (root / "some.lock").write_text(json.dumps(lock))
    return Made(run, tasks, scores, generation._cache_keys(run, tasks, ())(cell))


@dataclass(frozen=True)
class Format:
    """A file in the run, what reads it, and what gives a changed one a right checksum again."""

    file: str
    read: Any
    seal: Any = None


def seal_lines(content, root):
    head, _, body = content.partition(b"\n")
    header = json.loads(head)
    del header["checksum"]
    return json.dumps({**header, "checksum": storage._seal(header, body)}).encode() + b"\n" + body


def seal_report(content, root):
    value = json.loads(content)
    rest = {name: each for name, each in value.items() if name not in ("format", "checksum")}
    return json.dumps({**value, "checksum": storage.fingerprint(rest)}).encode()


def seal_parameters(content, root):
    described = root / PLACE / "expert.json"
    told = json.loads(described.read_text())
    digest = hashlib.sha256(content).hexdigest()[:16]
    described.write_text(json.dumps({**told, "checksum": digest}))
    return content


def seal_arrays(content, root):
    """Gives prepared rows the checksum of their arrays."""
    header = read_header(io.BytesIO(content), file="x")
    about = header.tensors[prepared_files.ABOUT]
    told = json.loads(content[about.start : about.end])
    checksum = prepared_files._checksum_of_stream(io.BytesIO(content), header.tensors)
    again = json.dumps({**told, "checksum": checksum}, sort_keys=True).encode()
    return content[: about.start] + again[: about.end - about.start] + content[about.end :]


def seal_gates(content, root):
    """Gives gates the checksum of their vectors and their description."""
    header = read_header(io.BytesIO(content), file="x")
    about = header.tensors["about"]
    told = json.loads(content[about.start : about.end])
    vectors = {
        name: np.frombuffer(content[one.start : one.end], np.float32).reshape(one.shape)
        for name, one in header.tensors.items()
        if name != "about"
    }
    rest = {name: value for name, value in told.items() if name != "checksum"}
    again = json.dumps({**told, "checksum": gate_files._checksum(vectors, rest)}).encode()
    return content[: about.start] + again[: about.end - about.start] + content[about.end :]


def read_gates(made):
    found = gate_files.read_gates(epath.Path(made.root / "gates"), "a/b", "0" * 16, LORA)
    assert all(np.isfinite(vector).all() for vector in found.vectors.values())


def read_rows(made):
    folder = made.run.workspace.report
    return report_files.read_rows(folder, report_files.read_report(folder))


def list_experts(made):
    summaries = listing.summarize_experts(made.run.workspace, scored=True)
    for one in summaries:
        assert isinstance(one, listing.BadExpert) or one.description.spec.steps >= 0
    return listing.summary_table(summaries, scored=True)


def read_scores(made):
    (cell,) = made.scores.cache_keys
    counted = made.scores.count(cell)
    assert 0 <= counted.right <= counted.n
    scores = made.scores[cell]
    assert np.isfinite(scores.scores).all()


def read_answers(made):
    (cell,) = made.scores.cache_keys
    where = generation._file(made.run, cell, made.tasks[cell.task])
    found = generation._read(where, cell, made.answers_key)
    assert found is None or all(isinstance(text, str) for text in found[1].predictions)


def read_card(made):
    workspace = made.run.workspace
    for one in model_card.collect_scores(workspace, Library(workspace.library), EXPERT):
        assert 0 <= one.value <= 100


def read_record(made):
    record = published_library.read_record(made.root / "library.json", "x/y")
    for scores in model_card.parse_scores(record["scores"]).values():
        assert all(math.isfinite(one.value) for one in scores)


def read_identities(made):
    results_cache.say_changed_tasks(made.run, {name: task.identity for name, task in made.tasks.items()})


def read_prepared(made):
    (file,) = made.root.glob(f"prepared/{TASK_FILES}.safetensors")
    rows = prepared_files.load(file)
    choices = [tokenized_rows.get_choices(rows, row) for row in range(len(rows.labels))]
    examples = list(tokenized_rows.StoredExamples(rows, ""))
    assert len(choices) == len(examples) == len(list(rows.inputs)) == len(list(rows.targets))
    assert all(each.label is None or each.choices[each.label] is not None for each in examples)


def read_lock(made):
    return locks._describe(locks._read_owner(made.root / "some.lock"))


TASK_FILES = "*/than*/*"
SCORES = f"scores/mini_size_suitcase/than*/{names.directory_name(EXPERT)}.limit_*.jsonl"
FORMATS = {
    "description": Format(
        f"{PLACE}/expert.json", lambda made: Library(made.run.workspace.library).describe(EXPERT)
    ),
    "listing": Format(f"{PLACE}/expert.json", list_experts),
    "verification": Format(f"{PLACE}/expert.json", lambda made: Library(made.run.workspace.library).verify()),
    "parameters": Format(
        f"{PLACE}/params.safetensors",
        lambda made: Library(made.run.workspace.library).load_expert(EXPERT),
        seal_parameters,
    ),
    "keys": Format(
        f"{PLACE}/keys.safetensors", lambda made: Library(made.run.workspace.library).load_keys(EXPERT)
    ),
    "gates": Format("gates/gates.safetensors", read_gates, seal_gates),
    "settings": Format("run.json", lambda made: run_settings.load_run_settings(made.run.workspace)),
    "seconds": Format("seconds.json", lambda made: report.add_seconds(made.run.workspace, {"route": 1.0})),
    "choices": Format("choices.json", lambda made: scorer_selection.load_selection(made.run.workspace)),
    "selections": Format(
        "selections/roe_top2.json", lambda made: route.load_selections(made.run.workspace, "roe_top2")
    ),
    "embedder": Format("embedder.json", lambda made: index.load_embedder_settings(made.run.workspace)),
    "journal": Format("logs/training.jsonl", lambda made: read_journal(made.root / "logs/training.jsonl")),
    "scores": Format(SCORES, read_scores, seal_lines),
    "listed scores": Format(SCORES, list_experts, seal_lines),
    "published scores": Format(SCORES, read_card, seal_lines),
    "answers": Format(SCORES.replace("scores", "generated"), read_answers, seal_lines),
    "published answers": Format(SCORES.replace("scores", "generated"), read_card, seal_lines),
    "rows of scores": Format("scores/mini_size_suitcase/than*/rows.limit_*.json", read_identities),
    "prepared rows": Format(f"prepared/{TASK_FILES}.safetensors", read_prepared, seal_arrays),
    "statistics": Format(
        "statistics.safetensors",
        lambda made: expert_statistics._read(made.root / "statistics.safetensors", "key"),
    ),
    "report": Format(
        "report/report.json", lambda made: report_files.read_report(made.run.workspace.report), seal_report
    ),
    "rows": Format("report/rows.jsonl", read_rows, seal_lines),
    "report key": Format(
        "report/made_from.json", lambda made: kept_results.load_report(made.run.workspace.report, "key")
    ),
    "base": Format("base/config.json", lambda made: elm.load(made.run.workspace.base)),
    "base weights": Format("base/params.safetensors", lambda made: elm.load(made.run.workspace.base)),
    "vocabulary": Format("base/vocabulary.model", lambda made: opening.open_run(made.root)),
    "identity": Format("identity.json", lambda made: checkpoints._claim(made.root, {"experts": ["a/b"]})),
    "checkpoint's files": Format(
        f"steps/5/{checkpoints.FILES}", lambda made: checkpoints._is_whole(made.root / "steps" / "5")
    ),
    "tasks": Format("tasks.yaml", lambda made: user_tasks.load_tasks(made.root / "tasks.yaml")),
    "trust": Format("trusted.json", lambda made: trust.require(made.root, [made.root / "tasks.py"])),
    "published library": Format("library.json", read_record),
    "W&B": Format(
        "wandb.json",
        lambda made: schema.read(made.root / "wandb.json", trackers._IdForm, what="An id", fix="delete it"),
    ),
    "lock": Format("some.lock", read_lock),
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
        except ValueError:  # no JSON: safetensors, whose header is, or something else
            size = int.from_bytes(content[:8], "little")
            with contextlib.suppress(ValueError):
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


def find_file(made, name):
    if name == "trust":
        trust.remember([__file__])
        return epath.Path(trust._file())
    (file,) = made.root.glob(FORMATS[name].file)
    return file


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_near_a_real_one_is_read_or_refused(made, name):
    times = int(os.environ.get("ELM_FUZZ", "25"))  # files that are tried; 2000 take some minutes
    file, form = find_file(made, name), FORMATS[name]
    before = {each: each.read_bytes() for each in file.parent.iterdir() if each.is_file()}
    real, lengths = file.read_bytes(), [0]

    @settings(max_examples=times, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.integers(0, 2**64))
    def read(seed):
        content = mutate(real, seed)
        if form.seal and seed % 2:
            with contextlib.suppress(Exception):  # what is broken cannot be sealed
                content = form.seal(content, made.root)
        file.write_bytes(content)
        began = time.process_time()
        try:
            form.read(made)
        except UserError as error:
            lengths.append(len(str(error)))
        assert time.process_time() - began < 10
        assert max(lengths) < 3000

    try:
        form.read(made)
        read()
    finally:
        for each, content in before.items():
            each.write_bytes(content)


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
def test_what_is_no_file_of_ours_is_refused_at_once(made, tmp_path, name, put):
    file = find_file(made, name)
    shutil.move(file, tmp_path / "real")
    put(file)
    began = time.monotonic()
    try:
        with contextlib.suppress(UserError):
            FORMATS[name].read(made)
        assert time.monotonic() - began < 60
    finally:
        if os.path.isdir(file):
            os.rmdir(file)
        elif os.path.lexists(file):
            os.unlink(file)
        shutil.move(tmp_path / "real", file)


@pytest.fixture
def workspace(made, tmp_path):
    """A copy of the run that a test may change."""
    return Workspace.at(shutil.copytree(made.root, tmp_path / "run"))


def test_one_bad_expert_is_listed_as_bad_and_disturbs_no_other(workspace):
    run, file = workspace, workspace.root / PLACE / "expert.json"
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


def test_numbers_in_forms_are_finite(workspace):
    for number in ("NaN", "Infinity", "-1", "1e999"):
        (workspace.root / "seconds.json").write_text(f'{{"format": 1, "seconds": {{"route": {number}}}}}')
        assert report.add_seconds(workspace, {"route": 1.0}) == {"route": 1.0}


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
    with pytest.raises(UserError, match="NaN"):
        import_export.import_expert(exported, run=workspace.root)
