"""A split is opened where its rows are at hand, and gives those that are asked for."""

import json
import sys
import types

import pytest

from elm_jax.errors import UserError
from elm_jax.tasks import source_choice, sources
from elm_jax.tasks.datasets import Dataset, RowSource, all_datasets

ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(5)]


def dataset(*found: RowSource) -> Dataset:
    return Dataset(
        name="reviews",
        group="mine",
        family="mine",
        split="train",
        splits={"train": 5, "test": 1},
        columns=("text", "label"),
        sources=found,
        prompts={"p": "accuracy", "q": "accuracy"},
    )


def files(kind="jsonl", **fields) -> RowSource:
    return RowSource(
        kind, files={"train": ("reviews/train.jsonl",), "test": ("reviews/test.jsonl",)}, **fields
    )


@pytest.fixture(autouse=True)
def no_tfds_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "reviews").mkdir(parents=True)
    (tmp_path / "data" / "reviews" / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS)
    )
    return tmp_path / "data"


def test_rows_are_taken_in_the_order_asked_for(folder):
    opened = sources.open_split(dataset(files()), "train", folder)
    assert opened.count == 5
    assert list(opened.take([3, 0])) == [ROWS[3], ROWS[0]]
    assert opened.origin == str(folder / "reviews" / "train.jsonl")


def test_a_file_that_was_written_anew_is_read_anew(folder):
    def read():
        (row,) = sources.open_split(dataset(files()), "train", folder).take([3])
        return row["text"]

    assert read() == "row 3"
    file = folder / "reviews" / "train.jsonl"
    file.write_text('{"text": "first"}\n' + file.read_text())
    assert read() == "row 2"


def test_a_source_at_hand_goes_before_one_to_be_fetched(folder, tmp_path):
    both = dataset(RowSource("hub", "owner/reviews"), files())
    assert source_choice.choose_source(both, folder).kind == "jsonl"
    assert source_choice.choose_source(both, tmp_path).kind == "hub"
    assert source_choice.choose_source(both).kind == "hub"


def test_what_tfds_has_prepared_is_at_hand(tmp_path):
    both = dataset(
        RowSource("hub", "owner/reviews"), RowSource("tfds", "reviews/plain:1.0.0", manual="By hand.")
    )
    for root in ("data", "tfds"):  # the data directory, and TFDS's own
        place = tmp_path / root / "reviews" / "plain" / "1.0.0"
        place.mkdir(parents=True)
        (tmp_path / "data").mkdir(exist_ok=True)
        assert source_choice.choose_source(both, tmp_path / "data").kind == "hub"
        (place / "dataset_info.json").write_text("{}")
        assert source_choice.choose_source(both, tmp_path / "data").kind == "tfds"
        (place / "dataset_info.json").unlink()


def test_what_must_be_placed_by_hand_is_said(tmp_path):
    by_hand = dataset(RowSource("tfds", "reviews:1.0.0", manual="Ask its authors."), files())
    with pytest.raises(UserError, match=r"got none\. Fix: ask its authors\."):
        source_choice.choose_source(by_hand)
    with pytest.raises(UserError, match=r"got no file\. Fix: place 'reviews/train.jsonl'"):
        source_choice.choose_source(dataset(files()), tmp_path)
    with pytest.raises(UserError, match=r"absent', got no directory\. Fix: place 'reviews/train.jsonl'"):
        source_choice.choose_source(dataset(files()), "absent")
    with pytest.raises(UserError, match="by the form on their page"):
        source_choice.choose_source(all_datasets()["story_cloze"])


def test_a_missing_file_names_the_splits_that_are_there(folder):
    with pytest.raises(UserError, match=r"test split of 'reviews' at .* splits train\."):
        sources.open_split(dataset(files()), "test", folder)
    one = RowSource("jsonl", files={"train": ("reviews/train.jsonl",)})
    with pytest.raises(UserError, match=r"test split .* as a file, .* splits train\."):
        sources.open_split(dataset(one), "test", folder)


def test_an_unknown_split_is_an_error_with_the_nearest(folder):
    with pytest.raises(UserError, match=r"No split named 'tran' in dataset 'reviews' .* 'train'"):
        sources.open_split(dataset(files()), "tran", folder)


def test_a_split_of_several_files_is_read_through_and_one_of_them_again(folder):
    (folder / "more.jsonl").write_text('{"text": "more", "label": 1}\n')
    of_two = RowSource("jsonl", files={"train": ("reviews/train.jsonl", "more.jsonl")})
    opened = sources.open_split(dataset(of_two), "train", folder, repeated_file="more.jsonl")
    assert opened.count == 7
    assert [row["text"] for row in opened.take([4, 5, 6])] == ["row 4", "more", "more"]


def test_files_may_differ_by_prompt(folder):
    for prompt in ("p", "q"):
        (folder / f"{prompt}.jsonl").write_text(json.dumps({"text": prompt}) + "\n")
    own = dataset(RowSource("jsonl", files={"train": ("{prompt}.jsonl",)}))
    assert list(sources.open_split(own, "train", folder, prompt="q").take([0])) == [{"text": "q"}]


def test_a_csv_without_a_header_is_read_by_the_names_of_its_source(folder):
    (folder / "reviews" / "train.jsonl").write_text('"1","good"\n')
    opened = sources.open_split(dataset(files("csv", header=("label", "text"))), "train", folder)
    assert list(opened.take([0])) == [{"label": "1", "text": "good"}]


def test_a_function_gives_rows_by_split():
    mine = RowSource("function", function=lambda split: [{"text": split}])
    opened = sources.open_split(dataset(mine), "test")
    assert (opened.count, list(opened.take([0]))) == (1, [{"text": "test"}])


def test_a_function_is_found_by_its_name(monkeypatch):
    module = types.ModuleType("my_rows")
    module.rows = lambda split: iter(ROWS)
    monkeypatch.setitem(sys.modules, "my_rows", module)
    assert sources.open_split(dataset(RowSource("function", "my_rows:rows")), "train").count == 5


@pytest.mark.parametrize("name", ["my_rows:rows", "json:rows", "json", ":x", ""])
def test_a_name_that_is_no_function_is_an_error(name):
    with pytest.raises(UserError, match=r"as package.module:name, got"):
        sources.open_split(dataset(RowSource("function", name)), "train")


@pytest.mark.parametrize("rows", [[], ["text"]])
def test_a_function_that_gives_no_rows_is_an_error(rows):
    with pytest.raises(UserError, match="to return rows of 'train'"):
        sources.open_split(dataset(RowSource("function", function=lambda split: rows)), "train")


HUB = RowSource("hub", "owner/reviews", config="plain", revision="abc", splits={"test": "validation"})


def test_without_the_hubs_package_the_command_that_brings_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"'owner/reviews' .* pip install 'datasets"):
        sources.open_split(dataset(HUB), "train")
    with pytest.raises(UserError, match=r"'datasets.*'\. Or: Place 'reviews/train.jsonl' in a directory"):
        sources.open_split(dataset(HUB, files()), "train")


class Rows(list):
    """What the hub's package gives, as far as it is used: rows that are selected by number."""

    def select(self, numbers):
        return Rows(self[number] for number in numbers)


def test_the_hub_is_asked_for_config_revision_and_its_own_split(monkeypatch):
    asked = {}

    def load_dataset(name, config, **rest):
        asked.update(name=name, config=config, **rest)
        return Rows(ROWS)

    package = types.ModuleType("datasets")
    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    opened = sources.open_split(dataset(HUB), "test")
    assert asked == {"name": "owner/reviews", "config": "plain", "split": "validation", "revision": "abc"}
    assert list(opened.take([4, 1])) == [ROWS[4], ROWS[1]]
    assert opened.origin == "hub:owner/reviews/plain/validation"


def test_what_the_hub_refuses_is_one_sentence(monkeypatch):
    def load_dataset(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported\nmore")

    package = types.ModuleType("datasets")
    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    with pytest.raises(UserError, match="RuntimeError: Dataset scripts"):
        sources.open_split(dataset(HUB), "train")


@pytest.mark.parity
def test_the_hubs_package_reads_a_local_folder(folder, tmp_path, monkeypatch):
    hub = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    local = RowSource("hub", str(folder / "reviews"), splits={"test": "train[-2:]"})
    opened = sources.open_split(dataset(local), "train")
    assert list(opened.take([3, 0])) == [ROWS[3], ROWS[0]]
    assert sources.open_split(dataset(local), "test").count == 2


def test_a_file_cannot_be_read_twice_where_rows_do_not_come_from_files():
    with pytest.raises(UserError, match="read twice"):
        sources.open_split(dataset(HUB), "train", repeated_file="x.json")


@pytest.mark.parametrize("name", all_datasets())
def test_a_dataset_of_the_catalogue_can_be_fetched_or_says_what_to_do(name):
    found = all_datasets()[name]
    if any(source.kind in ("hub", "tfds") for source in found.sources):
        assert source_choice.choose_source(found) in found.sources
    else:
        with pytest.raises(UserError, match="Expected a data directory"):
            source_choice.choose_source(found)


def test_a_machine_without_names_of_servers_learns_so_at_once(monkeypatch, tmp_path):
    known = {"here.example"}

    def lookup(host, port):
        if host not in known:
            raise OSError("Name or service not known")
        return [host]

    monkeypatch.setattr(sources.socket, "getaddrinfo", lookup)
    monkeypatch.setattr(sources.urllib.request, "getproxies", dict)
    sources._require_reachable(["https://gone.example/a", "https://here.example/b"])
    sources._require_reachable([])
    with pytest.raises(ConnectionError, match=r"no server's name resolves: gone\.example"):
        sources._require_reachable(["https://gone.example/a", "https://gone.example/b"])
    monkeypatch.setattr(sources.urllib.request, "getproxies", lambda: {"https": "https://proxy.example"})
    sources._require_reachable(["https://gone.example/a"])
