"""A cache returns what `Library.load_stack` returns, moves no more than it must, and keeps its limits."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import monitoring

from elm_jax.errors import UserError
from elm_jax.experts import files
from elm_jax.experts.expert_cache import NEUTRAL_SLOT, ExpertCache
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, paths, sharding
from elm_jax.records import Expert, ExpertSpec

DOWN = "encoder/layers/mlp_adapter/down/kernel"
SCALE = "decoder/decoder_norm/scale"
ONE = (2 * 3 * 2 + 3) * 4  # bytes of an expert of the library's fixture
WIDE = (2 * 3 * 4 + 3) * 4
LOTS = 10**6
NAMES = [f"dream/{letter}" for letter in "abcdef"]
WIDER = [f"quail/{letter}" for letter in "xyz"]


@pytest.fixture
def filled(library, expert):
    """Six experts of one shape, whose values are 1, 2, …, and three wider ones, of -1, -2, …."""
    for number, name in enumerate(NAMES, start=1):
        library.add(expert(name, float(number)))
    for number, name in enumerate(WIDER, start=1):
        library.add(expert(name, -float(number), shape=(2, 3, 4)))
    return library


def cache_of(library, *, host_bytes=LOTS, device_bytes=LOTS, **how):
    return ExpertCache(library, "base", host_bytes=host_bytes, device_bytes=device_bytes, **how)


def same(stack, places, loaded):
    taken = jax.tree.map(lambda leaf: np.asarray(leaf)[places], stack)
    assert jax.tree.structure(taken) == jax.tree.structure(loaded)
    for one, other in zip(jax.tree.leaves(taken), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.one_of(
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=6),
            st.lists(st.sampled_from(WIDER), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=12,
    ),
    host=st.integers(0, 5 * WIDE),
    slots=st.integers(1, 6),
    device=st.integers(2 * WIDE, 12 * WIDE),
    neutral=st.booleans(),
)
def test_every_expert_is_in_its_slot_and_limits_hold(
    tmp_path_factory, requests, host, slots, device, neutral
):
    library = _library(tmp_path_factory)
    scales = {"decoder": {"decoder_norm": {"scale": np.full(3, 7.0, np.float32)}}}
    cache = cache_of(
        library, host_bytes=host, device_bytes=device, slots=slots, neutral=scales if neutral else None
    )
    for names in requests:
        seen = []
        for chunk, stack, found in cache.load_chunks(names):
            same(stack, found, library.load_stack(chunk, base="base"))
            seen += chunk
            if neutral:
                flat = paths.flatten(stack)
                assert not np.asarray(flat[DOWN][NEUTRAL_SLOT]).any()
                assert np.asarray(flat[SCALE][NEUTRAL_SLOT]).tolist() == [7.0] * 3
        assert sorted(seen) == sorted(set(names))
        assert cache.host_bytes <= host
        assert cache.device_bytes <= device


_LIBRARIES = []


def _library(tmp_path_factory):
    """The filled library, made once for all examples."""
    if not _LIBRARIES:
        library = Library.open(tmp_path_factory.mktemp("cache"), create=True)
        for number, name in enumerate(NAMES + WIDER, start=1):
            flat = {
                DOWN: np.full((2, 3, 4 if name in WIDER else 2), number, np.float32),
                SCALE: np.arange(3, dtype=np.float32) + number,
            }
            spec = ExpertSpec(name, "bottleneck", "base", tuple(flat), ("d",), 1)
            library.add(Expert(spec, paths.unflatten(flat)))
        _LIBRARIES.append(library)
    return _LIBRARIES[0]


def test_an_expert_in_the_cache_is_neither_read_nor_written_again(filled):
    cache = cache_of(filled)
    _, before = cache.load_stack(NAMES[:3])
    assert (cache.reads, cache.writes) == (3, 3)
    stack, places = cache.load_stack([NAMES[2], NAMES[0], NAMES[2], NAMES[3]])
    assert (cache.reads, cache.writes) == (4, 4)
    assert places[:2].tolist() == [before[2], before[0]]
    same(stack, places, filled.load_stack([NAMES[2], NAMES[0], NAMES[2], NAMES[3]]))


def test_the_least_recently_used_expert_is_evicted_and_comes_back_from_the_host(filled):
    cache = cache_of(filled, slots=2)
    cache.load_stack(NAMES[:2])
    cache.load_stack(NAMES[:1])
    _, places = cache.load_stack(NAMES[2:3])
    assert places.tolist() == [1]
    stack, places = cache.load_stack(NAMES[:1])
    assert (places.tolist(), cache.writes) == ([0], 3)
    stack, places = cache.load_stack(NAMES[1:2])
    assert (places.tolist(), cache.writes, cache.reads) == ([1], 4, 3)
    same(stack, places, filled.load_stack(NAMES[1:2]))


def test_a_full_host_evicts_the_least_recently_used_expert(filled):
    cache = cache_of(filled, slots=1, host_bytes=2 * ONE)
    for name in NAMES[:3]:
        cache.load_stack([name])
    assert cache.host_bytes == 2 * ONE
    cache.load_stack([NAMES[1]])
    assert cache.reads == 3
    cache.load_stack([NAMES[0]])
    assert cache.reads == 4


def test_an_expert_larger_than_the_hosts_limit_is_served_and_not_kept(filled):
    cache = cache_of(filled, slots=1, host_bytes=ONE - 1)
    for name in (*NAMES[:2], NAMES[0]):
        stack, places = cache.load_stack([name])
        same(stack, places, filled.load_stack([name]))
    assert (cache.host_bytes, cache.reads) == (0, 3)


def test_other_names_compile_nothing(filled):
    compiled = []
    cache = cache_of(filled, slots=2)
    cache.load_stack(NAMES[:2])

    def count(event, duration_secs, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(count)
    try:
        for names in (NAMES[2:4], NAMES[4:5], NAMES[:1] * 2, NAMES[5:]):
            cache.load_stack(names)
        assert (cache.writes, compiled) == (7, [])
        cache.load_stack(WIDER[:1])
        assert compiled  # another shape is another program
    finally:
        monitoring.unregister_event_duration_listener(count)


def test_two_shapes_have_two_stacks_and_the_least_recently_used_one_is_dropped(filled):
    cache = cache_of(filled, slots=3, device_bytes=3 * ONE + 3 * WIDE)
    cache.load_stack(NAMES[:3])
    cache.load_stack(WIDER)
    assert cache.device_bytes == 3 * ONE + 3 * WIDE
    cache.load_stack(NAMES[:3])
    assert cache.writes == 6
    small = cache_of(filled, slots=3, device_bytes=3 * WIDE)
    small.load_stack(NAMES[:3])
    stack, places = small.load_stack(WIDER)
    same(stack, places, filled.load_stack(WIDER))
    assert small.device_bytes == 3 * WIDE
    small.load_stack(NAMES[:3])
    assert small.writes == 9


def test_a_stack_grows_with_the_library(library, expert):
    library.add(expert(NAMES[0], 1.0))
    cache = cache_of(library)
    stack, _ = cache.load_stack(NAMES[:1])
    assert jax.tree.leaves(stack)[0].shape[0] == 1
    for number, name in enumerate(NAMES[1:], start=2):
        library.add(expert(name, float(number)))
    stack, places = cache.load_stack(NAMES[:3])
    assert jax.tree.leaves(stack)[0].shape[0] == 6
    same(stack, places, library.load_stack(NAMES[:3]))
    assert cache.reads == 3


def test_parameters_are_kept_in_the_type_asked_for(filled):
    cache = cache_of(filled, dtype=ml_dtypes.bfloat16)
    stack, places = cache.load_stack(NAMES[:2])
    assert {leaf.dtype for leaf in jax.tree.leaves(stack)} == {np.dtype(ml_dtypes.bfloat16)}
    assert cache.host_bytes == ONE  # two experts in half the bytes
    same(
        stack,
        places,
        jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), filled.load_stack(NAMES[:2])),
    )


def test_kernels_are_kept_in_a_type_of_their_own(filled):
    plain, narrow = (cache_of(filled, slots=6, kernel_dtype=dtype) for dtype in (None, ml_dtypes.bfloat16))
    stack, places = narrow.load_stack(NAMES[:3])
    assert {path: leaf.dtype for path, leaf in paths.flatten(stack).items()} == {
        DOWN: ml_dtypes.bfloat16,
        SCALE: np.float32,
    }
    wanted, of = plain.load_stack(NAMES[:3])
    same(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), stack), places, filled_rows(wanted, of))
    assert narrow.device_bytes == 6 * (2 * 3 * 2 * 2 + 3 * 4)


def filled_rows(stack, places):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[places], stack)


@pytest.mark.nightly
def test_as_many_experts_as_the_paper_has_stay_in_half_their_bytes(library, expert):
    names = [f"dream/{number}" for number in range(296)]
    for number, name in enumerate(names):
        library.add(expert(name, float(number)))
    cache = cache_of(library, device_bytes=296 * ONE // 2, dtype=ml_dtypes.bfloat16)
    cache.load_stack(names)
    stack, places = cache.load_stack(names[::-1])
    assert (cache.reads, cache.writes) == (296, 296)
    same(
        stack,
        places,
        jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), library.load_stack(names[::-1])),
    )


def test_an_expert_that_was_replaced_is_read_anew(filled, expert):
    cache = cache_of(filled)
    _, before = cache.load_stack(NAMES[:2])
    filled.add(expert(NAMES[0], 9.0), replace=True)
    stack, places = cache.load_stack(NAMES[:2])
    assert places.tolist() == before.tolist()
    same(stack, places, filled.load_stack(NAMES[:2]))
    assert (cache.reads, cache.writes) == (3, 3)


def test_an_expert_that_was_removed_is_refused_though_it_is_cached(filled):
    cache = cache_of(filled)
    cache.load_stack(NAMES[:2])
    filled.remove(NAMES[0])
    with pytest.raises(UserError, match="No expert named 'dream/a'"):
        cache.load_stack(NAMES[:2])


def test_the_first_library_that_has_an_expert_gives_it(filled, expert, tmp_path):
    other = Library.open(tmp_path / "other", create=True)
    other.add(expert(NAMES[0], 50.0))
    cache = ExpertCache([other, filled], "base", host_bytes=LOTS, device_bytes=LOTS)
    stack, places = cache.load_stack(NAMES[:2])
    assert paths.flatten(stack)[SCALE][places, 0].tolist() == [50.0, 2.0]


def test_experts_that_do_not_fit_are_refused_before_any_parameter_is_read(filled, expert, monkeypatch):
    filled.add(expert("dream/other", base="t5"))
    monkeypatch.setattr(files, "read_params", None)
    with pytest.raises(UserError, match="'base', got 'dream/other'"):
        cache_of(filled).load_stack(["dream/a", "dream/other"])
    with pytest.raises(UserError, match=rf"{DOWN} as \(2, 3, 2\) .*'dream/a', got \(2, 3, 4\) in 'quail/x'"):
        cache_of(filled).load_stack(["dream/a", "quail/x"])
    with pytest.raises(UserError, match=r" 3 experts of 60 bytes .* 120 bytes, which hold 2"):
        cache_of(filled, device_bytes=2 * ONE).load_stack(NAMES[:3])
    with pytest.raises(UserError, match="1,000,000 bytes and 1 slots, which hold 1"):
        cache_of(filled, slots=1).load_stack(NAMES[:2])
    with pytest.raises(UserError, match="at least one"):
        cache_of(filled).load_stack([])
    with pytest.raises(UserError, match="-1"):
        cache_of(filled, host_bytes=-1)


def test_a_damaged_file_is_refused_and_the_others_stay(filled):
    cache = cache_of(filled)
    cache.load_stack(NAMES[:1])
    file = filled.root / "dream" / "b" / files.PARAMS_FILE
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=files.PARAMS_FILE):
        cache.load_stack(NAMES[:2])
    stack, places = cache.load_stack(NAMES[:1])
    same(stack, places, filled.load_stack(NAMES[:1]))
    assert cache.writes == 1


@pytest.mark.parametrize("sizes", [{"expert": 4, "fsdp": 2}, {"expert": 1, "fsdp": 4, "tensor": 2}])
def test_on_a_mesh_a_stack_lies_as_experts_do_and_holds_the_same(base, tmp_path, sizes):
    library = Library.open(tmp_path, create=True)
    for number in range(5):
        tree = jax.tree.map(
            np.asarray, ex.init_expert("bottleneck", jax.random.key(number), base, {"width": 4})
        )
        spec = ExpertSpec(f"a/{number}", "bottleneck", "base", tuple(paths.flatten(tree)), ("a",), 1)
        library.add(Expert(spec, tree))
    mesh = meshes.make_mesh(**({"data": 1} | sizes))
    whole = cache_of(library)
    whole.load_stack(["a/0"])
    cache = cache_of(library, mesh=mesh, device_bytes=whole.device_bytes, neutral=base)
    stack, places = cache.load_stack([f"a/{number}" for number in (3, 1, 4)])
    for leaf, wanted in zip(
        jax.tree.leaves(stack),
        jax.tree.leaves(sharding.param_shardings(mesh, stack, experts=True)),
        strict=True,
    ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    same(stack, places, library.load_stack(["a/3", "a/1", "a/4"]))
    neutral = ex.make_neutral_expert(library.load_expert("a/0").params, base)
    same(stack, np.array([NEUTRAL_SLOT]), jax.tree.map(lambda leaf: np.asarray(leaf)[None], neutral))
    held = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves(stack):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert set(held.values()) == {cache.device_bytes}
