"""The page on files: the keys it lists are those of the files that a tiny run leaves behind."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from elm_jax import storage
from elm_jax.data import prepare, task_rows
from elm_jax.evaluation import results_cache
from elm_jax.experts import model_card
from elm_jax.experts.library import Library
from elm_jax.routing.index import EMBEDDER_FILE
from elm_jax.session import opening
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source, datasets, user_tasks
from elm_jax.telemetry import jsonl_log
from elm_jax.telemetry.events import Event, Failure, Validation
from elm_jax.telemetry.throughput import Throughput

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
TRAINED = "mini_size_animal"


def sections():
    """Returns heading -> what stands below it, up to the next heading of any level."""
    plain = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    _, *parts = re.split(r"^#+ (.+)$", plain, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def listed(heading):
    """Returns the keys that a section's table lists."""
    return sorted(re.findall(r"^\| `([^`]+)` \|", sections()[heading], flags=re.MULTILINE))


def flat(value, depth=1):
    """Returns an object's keys, those of objects within it with the outer key before them."""
    found = []
    for key, inside in value.items():
        found += [f"{key}.{inner}" for inner in inside] if depth > 1 and isinstance(inside, dict) else [key]
    return found


@pytest.fixture(scope="module")
def place(small_run, tmp_path_factory):
    """The directory of a run with all that the quickstart leaves, prepared rows, and an embedder's name."""
    workspace = Workspace(storage.path(tmp_path_factory.mktemp("files") / "elm_out"))
    shutil.copytree(small_run, workspace.root)
    run = opening.open_run(workspace.root, overrides={"prepared": workspace.prepared})
    prepare.prepare_tasks(tasks=[TRAINED], tokenizer=run.tokenizer, source=run.source, lengths=run.lengths)
    storage.write_json(workspace.root / EMBEDDER_FILE, {"embedder": "t5"})  # as `index` does for another one
    return Path(workspace.root)


def read(file):
    return json.loads(file.read_text())


def only(place, pattern):
    """Returns the first file of a pattern, of which there is one at least."""
    return sorted(place.glob(pattern))[0]


def lines(place, pattern):
    return [json.loads(line) for line in only(place, pattern).read_text().splitlines()]


def of_kind(kind):
    return lambda place: next(row for row in lines(place, "logs/*.jsonl") if row["kind"] == kind)


def arrays(place, pattern):
    return storage.read_arrays(only(place, pattern), what="A file")


def about(place):
    return json.loads(arrays(place, "library/*/*/keys.safetensors")["about"].tobytes())


def report(place):
    return read(place / "report" / "report.json")


def card(place):
    """What a push writes beside experts, of the first expert that has scores."""
    workspace = Workspace(storage.path(place))
    library = Library.open(workspace.library)
    about = {expert: library.describe(expert) for expert in library.ids()}
    scores = {expert: model_card.collect_scores(workspace, library, expert) for expert in about}
    assert any(scores.values())
    return model_card.to_record(
        model_card.ModelCard("me/experts", model_card.BaseReference("0"), about, scores)
    )


FILES = {
    "`run.json`": lambda place: flat(read(place / "run.json"), 2),
    "`embedder.json`": lambda place: read(place / "embedder.json"),
    "`seconds.json`": lambda place: read(place / "seconds.json"),
    "`library.json`": lambda place: ["format", *card(place)],
    "`scores` of `library.json`": lambda place: next(iter(card(place)["scores"].values()))[0],
    "`expert.json`": lambda place: read(only(place, "library/*/*/expert.json")),
    "`recipe` of a trained expert": lambda place: read(only(place, "library/*/*/expert.json"))["recipe"],
    "`made_of`": lambda place: next(
        iter(read(only(place, "library/*/*/expert.json"))["recipe"]["made_of"].values())
    ),
    "`keys.safetensors`": lambda place: arrays(place, "library/*/*/keys.safetensors"),
    "`about` of `keys.safetensors`": about,
    "`config.json`": lambda place: read(place / "base" / "config.json"),
    "kind `run`": of_kind("run"),
    "kind `step`": of_kind("step"),
    "`<split>.safetensors`": lambda place: arrays(place, "prepared/*/*/*.safetensors"),
    "`selections/<router>.json`": lambda place: read(only(place, "selections/*.json"))["selections"][0],
    "`choices.json`": lambda place: read(place / "choices.json"),
    "head of `scores/`": lambda place: lines(place, "scores/*/*/*.jsonl")[0],
    "row of `scores/`": lambda place: lines(place, "scores/*/*/*.jsonl")[1],
    "`report.json`": report,
    "`rows` of `report.json`": lambda place: report(place)["rows"][0],
    "`task_rows` of `report.json`": lambda place: report(place)["task_rows"][0],
    "`means` of `report.json`": lambda place: report(place)["means"][0],
    "`comparisons` of `report.json`": lambda place: report(place)["comparisons"][0],
    "`key_map` of `report.json`": lambda place: report(place)["key_map"],
    "`rows.jsonl`": lambda place: lines(place, "report/rows.jsonl")[1],
}


@pytest.mark.parametrize("heading", FILES)
def test_the_page_lists_the_keys_of_a_file_that_a_run_wrote(place, heading):
    assert listed(heading) == sorted(FILES[heading](place))


def test_an_expert_that_is_done_leaves_the_line_of_a_step(place):
    assert of_kind("finished")(place).keys() == of_kind("step")(place).keys()
    assert not listed("kind `finished`")


@pytest.mark.parametrize(
    ("kind", "happened"),
    [
        ("validation", {"validations": (Validation("a/b", 1, 0.5),)}),
        ("failed", {"failed": (Failure("a/b", 1, (0,)),)}),
    ],
)
def test_the_page_lists_the_keys_of_what_happens_seldom_in_training(kind, happened):
    (record,) = jsonl_log.journal_records(Event(1, 1, 2, (), 3, 1, 8, 0, **happened), Throughput())
    assert listed(f"kind `{kind}`") == sorted(["time", *record])


@pytest.mark.parametrize(
    ("heading", "part"),
    [
        ("head of `scores/`", "scores_head"),
        ("row of `scores/`", "scores_row"),
        ("head of `generated/`", "answers_head"),
        ("row of `generated/`", "answers_row"),
    ],
)
def test_the_page_lists_what_the_schema_of_results_wants(heading, part):
    assert listed(heading) == sorted(results_cache.line_schema()["$defs"][part]["required"])


def test_all_that_lies_in_a_runs_directory_is_on_the_page(place):
    told = set(re.findall(r"^[├└]── (\S+?)/? ", PAGE, flags=re.MULTILINE))
    there = {entry.name for entry in place.iterdir() if not entry.name.startswith(".")}
    # A run has these where it merges, reads statistics, is answered in free text or evaluated again.
    assert told - there == {"composites", "statistics", "generated", "reports"} - there
    assert there <= told


def test_an_expert_is_the_three_files_on_the_page(place):
    home = only(place, "library/*/*/expert.json").parent
    told = {heading.strip("`") for heading in sections() if heading.strip("`") in names_of(home)}
    assert told == names_of(home)


def names_of(folder):
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize(
    ("heading", "record", "beside"),
    [
        # Those left out follow from the place in the file; `metric` is that of all prompts of a list.
        ("fields of a dataset", datasets.Dataset, {"name", "group", "file", "directory"}),
        ("fields of a source", datasets.RowSource, {"kind", "name", "files", "function"}),
        ("fields of `training`", datasets.Training, set()),
    ],
)
def test_the_page_lists_the_fields_of_the_catalogue(heading, record, beside):
    assert set(listed(heading)) == {each.name for each in dataclasses.fields(record)} - beside


def test_the_example_of_a_task_of_ones_own_is_read(tmp_path):
    (example,) = re.findall(r"^```yaml\n(.+?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "reviews.jsonl").write_text('{"text": "It lasts.", "label": 1}\n')
    (tmp_path / "mine.yaml").write_text(example)
    (spec,) = user_tasks.load_tasks(tmp_path / "mine.yaml")
    (found,) = task_rows.load_examples(spec, data_source.Source())
    assert (found.input, found.target) == ("It lasts. Is this good?", "yes")


def test_every_example_of_json_on_the_page_is_json():
    found = re.findall(r"^```json\n(.+?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 5
    for example in found:
        whole = example.count("\n{") + 1
        for text in [example] if whole == 1 or example.startswith("{\n") else example.splitlines():
            assert json.loads(text)


def test_norm_scales_and_adapters_are_what_an_expert_s_parameters_hold(place):
    spec = read(only(place, "library/*/*/expert.json"))
    held = arrays(place, "library/*/*/params.safetensors")
    assert {path: list(np.shape(value)) for path, value in held.items()} == {
        path: told["shape"] for path, told in spec["parameters"].items()
    }
