"""A library gives back what it was given, says what is damaged, and refuses what does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax import locks, storage
from elm_jax.errors import UserError
from elm_jax.experts import files
from elm_jax.experts.library import ExpertSize, Library
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec

DOWN = "encoder/layers/mlp_adapter/down/kernel"
SCALE = "decoder/decoder_norm/scale"


def directory(library, prompt="baseline"):
    return library.root / "dream" / prompt


def damage(file):
    """Flips one bit near the end."""
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


def same(one: Expert, other: Expert) -> bool:
    flat, others = paths.flatten(one.params), paths.flatten(other.params)
    return one.spec == other.spec and all(np.array_equal(flat[path], others[path]) for path in flat | others)


def test_an_expert_comes_back_as_it_was(library, expert, keys):
    library.add(expert(), keys("one", "two"))
    assert same(library.load_expert("dream/baseline"), expert())
    assert library.spec("dream/baseline") == expert().spec
    found = library.load_keys("dream/baseline")
    assert (found.texts, found.embedder, found.text_format) == (("one", "two"), "toy", "instance")
    np.testing.assert_array_equal(found.vectors, [[0, 1], [2, 3]])


def test_an_expert_is_three_files_in_a_directory_of_its_own(library, expert, keys):
    library.add(expert(), keys("one"))
    names = sorted(file.name for file in directory(library).iterdir())
    assert names == sorted([files.SPEC_FILE, files.PARAMS_FILE, files.KEYS_FILE])


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_any_prompt_can_name_an_expert(tmp_path_factory, prompt):
    library = Library.open(tmp_path_factory.mktemp("library"))
    spec_of = f"super_glue_cb/{prompt}"
    files.write(library.root / files.relative_directory(spec_of), _plain(spec_of), None)
    assert library.ids() == (spec_of,)
    assert library.spec(spec_of).id == spec_of


def _plain(name):
    return Expert(ExpertSpec(name, "bottleneck", "base", ("w",), ("d",), 1), {"w": np.zeros(1, np.float32)})


def test_ids_are_sorted_and_leave_out_what_is_no_expert(library, expert):
    for name in ("dream/b", "dream/a", "cos_e/z"):
        library.add(expert(name))
    (library.root / "notes").mkdir()
    (library.root / "dream" / ".c.0123456789abcdef0123456789abcdef.tmp").mkdir()
    (library.root / "readme.txt").write_text("")
    assert library.ids() == ("cos_e/z", "dream/a", "dream/b")


def test_adding_an_expert_twice_needs_to_be_asked_for(library, expert, keys):
    library.add(expert(value=1.0), keys("one"))
    with pytest.raises(UserError, match="'dream/baseline' in the library"):
        library.add(expert(value=2.0))
    assert library.spec("dream/baseline").steps == 1
    library.add(expert(value=2.0), replace=True)
    assert library.spec("dream/baseline").steps == 2
    assert not library.has_keys("dream/baseline")


def test_a_failed_write_leaves_the_library_as_it_was(library, expert, monkeypatch):
    library.add(expert(value=1.0))
    opened = type(library.root).open

    def full_disk(self, mode="r", **options):
        if "params" in self.name and "w" in mode:
            raise OSError(28, "No space left on device")
        return opened(self, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(library.root), "open", full_disk)
        with pytest.raises(UserError, match="No space left on device"):
            library.add(expert(value=2.0), replace=True)
        with pytest.raises(UserError, match="No space left on device"):
            library.add(expert("dream/other"))
    assert library.ids() == ("dream/baseline",)
    assert same(library.load_expert("dream/baseline"), expert(value=1.0))
    assert library.verify() == []


def test_a_removed_expert_is_gone_and_the_others_stay(library, expert):
    library.add(expert("dream/a"))
    library.add(expert("dream/b"))
    library.remove("dream/a")
    assert library.ids() == ("dream/b",)
    assert [entry.name for entry in (library.root / "dream").iterdir()] == ["b"]


@pytest.mark.parametrize("verb", ["spec", "load_expert", "load_keys", "has_keys", "remove"])
def test_an_unknown_expert_is_refused_with_the_nearest_name(library, expert, verb):
    library.add(expert())
    with pytest.raises(UserError, match=r"No expert named 'dream/basline' in .*'dream/baseline'"):
        getattr(library, verb)("dream/basline")


def test_a_directory_that_is_not_there_is_no_library(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*elm train"):
        Library.open(tmp_path / "nowhere")
    assert Library.open(tmp_path / "nowhere", create=True).ids() == ()


def test_a_library_is_a_mapping_from_ids_to_experts(library, expert, tmp_path):
    library.add(expert("dream/b", value=2.0))
    library.add(expert("dream/a", value=1.0))
    opened = Library(str(library.root))
    assert opened == library
    assert len(opened) == 2
    assert list(opened) == list(opened.keys()) == ["dream/a", "dream/b"]
    assert same(opened["dream/b"], expert("dream/b", value=2.0))
    assert [each.spec.id for each in opened.values()] == ["dream/a", "dream/b"]
    assert "dream/a" in opened
    assert 5 not in opened
    assert opened.get("dream/c") is None
    assert opened.get("dream/c", 1) == 1
    with pytest.raises(UserError, match="'dream/a'"):
        opened["dream/c"]
    with pytest.raises(UserError, match="elm train"):
        Library(str(tmp_path / "nowhere"))


def test_a_library_is_a_table_of_pandas(library, expert):
    pytest.importorskip("pandas", reason="pandas is not installed")
    library.add(expert("dream/a"))
    table = library.to_pandas()
    assert list(table["id"]) == ["dream/a"]
    assert table["parameters"][0] == library.sizes()["dream/a"].parameters


def test_keys_are_written_anew_without_touching_the_expert(library, expert, keys):
    library.add(expert())
    with pytest.raises(UserError, match="'dream/baseline', got none"):
        library.load_keys("dream/baseline")
    before = (directory(library) / files.SPEC_FILE).read_bytes()
    library.write_keys("dream/baseline", keys("one"))
    library.write_keys("dream/baseline", keys("two", "three"))
    assert library.load_keys("dream/baseline").texts == ("two", "three")
    assert (directory(library) / files.SPEC_FILE).read_bytes() == before
    assert library.verify() == []


@pytest.mark.parametrize(
    ("texts", "vectors", "said"),
    [
        (("one",), np.ones((2, 2), np.float32), r"1 texts and .*\(2, 2\)"),
        ((), np.ones((0, 2), np.float32), "0 texts"),
        (("one",), np.array([[1.0, np.nan]], np.float32), "finite .*'toy'"),
    ],
)
def test_keys_that_are_none_are_refused(library, expert, keys, texts, vectors, said):
    library.add(expert())
    with pytest.raises(UserError, match=said):
        library.write_keys("dream/baseline", replace(keys("x"), texts=texts, vectors=vectors))
    assert not library.has_keys("dream/baseline")


def test_experts_are_loaded_as_one_stack_in_the_order_asked_for(library, expert):
    for name, value in (("dream/a", 1.0), ("dream/b", 2.0)):
        library.add(expert(name, value))
    stacked = paths.flatten(library.load_stack(["dream/b", "dream/a", "dream/b"], base="base"))
    assert stacked[DOWN].shape == (3, 2, 3, 2)
    assert stacked[DOWN].dtype == np.float32
    np.testing.assert_array_equal(stacked[SCALE][:, 0], [2.0, 1.0, 2.0])


def test_experts_that_do_not_fit_are_refused_before_any_parameter_is_read(library, expert, monkeypatch):
    library.add(expert("dream/a"))
    library.add(expert("dream/wide", shape=(2, 3, 4)))
    library.add(expert("dream/other", base="t5"))
    monkeypatch.setattr(files, "read_params", None)
    with pytest.raises(
        UserError,
        match=rf"{DOWN} as \(2, 3, 2\) .*'dream/a', got \(2, 3, 4\) in 'dream/wide'",
    ):
        library.load_stack(["dream/a", "dream/wide"])
    with pytest.raises(UserError, match="'base' of 'dream/a' and 't5' of 'dream/other'"):
        library.load_stack(["dream/a", "dream/other"])
    with pytest.raises(UserError, match="'base', got 'dream/other'"):
        library.load_stack(["dream/a", "dream/other"], base="base")
    with pytest.raises(UserError, match="'t5', got 'dream/a'"):
        library.load_expert("dream/a", base="t5")
    with pytest.raises(UserError, match="at least one"):
        library.load_stack([])


def test_spec_and_parameters_must_agree_before_anything_is_written(library, expert):
    with pytest.raises(UserError, match=f"'dream/baseline' .*'{SCALE}'"):
        library.add(expert(paths=(DOWN,)))
    assert library.ids() == ()


def test_sizes_count_parameters_and_bytes(library, expert, keys):
    library.add(expert(), keys("one"))
    on_disk = sum(len(file.read_bytes()) for file in directory(library).iterdir())
    assert library.sizes() == {"dream/baseline": ExpertSize(2 * 3 * 2 + 3, on_disk)}


def test_a_sound_library_has_no_findings(library, expert, keys):
    library.add(expert(), keys("one"))
    library.add(expert("dream/keyless"))
    assert library.verify(base="base") == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda at: damage(at / files.PARAMS_FILE), files.PARAMS_FILE),
        (lambda at: damage(at / files.KEYS_FILE), files.KEYS_FILE),
        (
            lambda at: (at / files.PARAMS_FILE).write_bytes((at / files.PARAMS_FILE).read_bytes()[:-5]),
            "whole safetensors file at",
        ),
        (lambda at: (at / files.KEYS_FILE).write_bytes(b"rubbish"), " whole safetensors file at"),
        (lambda at: (at / files.PARAMS_FILE).unlink(), "got no file"),
        (lambda at: (at / files.SPEC_FILE).write_text("{"), "Invalid JSON"),
        (
            lambda at: (at / files.SPEC_FILE).write_text('{"format": 1}'),
            "`id` is wrong",
        ),
        (
            lambda at: (at / files.SPEC_FILE).write_text('{"format": 1, "parameters": 3}'),
            "`id` is wrong",
        ),
        (lambda at: storage.write_arrays(at / files.KEYS_FILE, {"vectors": np.ones(1)}), "Invalid JSON"),
        (
            lambda at: storage.write_arrays(at / files.PARAMS_FILE, {DOWN: np.ones((2, 3, 2), np.float32)}),
            "as (3,), got nothing",
        ),
        (
            lambda at: storage.write_arrays(
                at / files.PARAMS_FILE, {DOWN: np.ones((2, 3, 2)), SCALE: np.ones(4), "extra": np.ones(1)}
            ),
            "as (3,), got (4,)",
        ),
    ],
)
def test_verify_names_the_damage_and_the_damaged(library, expert, keys, harm, said):
    library.add(expert("dream/sound"), keys("one"))
    library.add(expert(), keys("one"))
    harm(directory(library))
    (finding,) = library.verify()
    assert finding.expert == "dream/baseline"
    assert said in finding.problem


def test_verify_names_another_base_another_owner_and_another_name(library, expert, keys):
    library.add(expert(), keys("one"))
    library.add(expert("dream/b"), keys("two"))
    (directory(library, "b") / files.KEYS_FILE).write_bytes(
        (directory(library) / files.KEYS_FILE).read_bytes()
    )
    described = json.loads((directory(library, "b") / files.SPEC_FILE).read_text()) | {"id": "dream/c"}
    (directory(library, "b") / files.SPEC_FILE).write_text(json.dumps(described))
    problems = [finding.problem for finding in library.verify(["dream/b"], base="t5")]
    assert len(problems) == 3
    assert "'dream/b' in its directory, got 'dream/c'" in problems[0]
    assert "'t5'" in problems[1]
    assert problems[2].startswith("Expected keys of 'dream/b'")
    assert "those of 'dream/baseline'" in problems[2]


def test_libraries_and_experts_print_as_one_short_line(library, expert):
    assert repr(library) == f"Library({str(library.root)!r})"
    assert repr(Library(library.root, "hf:me/experts")) == "Library('hf:me/experts')"
    assert repr(expert()) == "Expert('dream/baseline', kind='bottleneck', steps=1)"


def test_a_damaged_expert_can_still_be_removed(library, expert):
    library.add(expert())
    (directory(library) / files.SPEC_FILE).write_text("{")
    library.remove("dream/baseline")
    assert library.ids() == ()


def test_verify_tells_of_what_a_killed_writer_left_and_readers_do_not(library, expert):
    library.add(expert())
    left = library.root / "dream" / ".other.0123456789abcdef0123456789abcdef.tmp"
    files.write(left, expert("dream/other"), None)
    assert library.ids() == ("dream/baseline",)
    (finding,) = library.verify()
    assert finding.expert == "dream/other"
    assert str(left) in finding.problem
    assert library.verify(["dream/baseline"]) == []


def test_damaged_keys_are_refused_when_they_are_read(library, expert, keys):
    library.add(expert(), keys("one"))
    damage(directory(library) / files.KEYS_FILE)
    with pytest.raises(UserError, match=rf"{files.KEYS_FILE}'? .*elm index --rebuild"):
        library.load_keys("dream/baseline")


def test_what_killed_writers_left_is_deleted_and_what_they_set_aside_comes_back(library, expert):
    library.add(expert())
    library.add(expert("dream/second"))
    hexes = "0123456789abcdef0123456789abcdef"
    home = library.root / "dream"
    files.write(home / f".other.{hexes}.tmp", expert("dream/other"), None)  # killed before the rename
    (home / "second").rename(home / f".second.{hexes}.old")  # killed between the two renames
    (home / "baseline" / f".keys.safetensors.{hexes}.tmp").write_bytes(b"x")
    (home / ".baseline.lock").write_text("{}")
    library.remove_unfinished()
    assert library.ids() == ("dream/baseline", "dream/second")
    assert {each.name for each in home.iterdir()} == {"baseline", "second"}
    assert library.verify() == []
    assert not any(each.name.startswith(".") for each in (home / "baseline").iterdir())


def test_what_a_living_writer_is_about_to_finish_is_left(library, expert):
    library.add(expert())
    left = library.root / "dream" / ".baseline.0123456789abcdef0123456789abcdef.tmp"
    left.mkdir()
    with locks.hold(library.root / "dream" / ".baseline.lock", "a writer"):
        library.remove_unfinished()
        assert left.exists()
    library.remove_unfinished()
    assert not left.exists()
