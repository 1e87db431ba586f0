"""Room: as many experts as fit, beside a batch of a row at least, and one sentence where none does."""

import os
import re
from dataclasses import replace

import pytest

from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.models.sizes import size
from elm_jax.runs import plan, room

# Wide parameters and short rows, so that experts are most of what is needed.
WORK = plan.Work(
    size("tiny", emb_dim=64, num_encoder_layers=1, num_decoder_layers=1),
    kind="bottleneck",
    options={"width": 64},
    train_tokens=64,
    prompt=12,
    answer=4,
)
ONE: dict[str, int] = dict.fromkeys(sharding.AXES, 1)


def bytes_of(places, tokens, *, work=WORK, mesh=ONE, stretches=(1,)):
    """What a device needs for so many places and tokens, and rows so many times as long as the longest."""
    work = replace(work, group=places, train_tokens=tokens)
    return max(
        room.trained(replace(work, prompt=by * work.prompt, answer=by * work.answer), mesh)
        for by in stretches
    )


def enough(*given, **told):
    """The smallest memory of which what is taken holds so much."""
    return int(bytes_of(*given, **told) / room.FILLED) + 1


def test_as_many_experts_fit_as_memory_holds_and_not_one_more():
    memory = enough(20, 64, stretches=(1, 2))
    assert room.fit(WORK, memory) == (20, 64)
    assert room.fit(WORK, memory - 2) == (19, 64)


def test_no_more_places_than_are_wanted_and_all_tokens_beside_them():
    assert room.fit(WORK, 10**12) == (64, 64)
    assert room.fit(WORK, 10**12, most_places=5) == (5, 64)


def test_what_a_bottleneck_takes_is_what_is_held_and_the_larger_of_a_batch_and_a_move():
    """One layer a stack: 4 adapters of 2 * 64 * 64 kernels and 128 biases, 2 + 3 + 2 scales of 64."""
    own = 4 * (2 * 64 * 64 + 128) + 7 * 64
    need = plan.need(replace(WORK, group=40), ONE)
    assert need.state == 40 * (3 * 4 * own + 4 + 4)  # with moments, a count, and whether it stopped
    assert need.gradients == 40 * (4 * own + 4)  # with a loss
    assert need.activations == 40 * 3 * 4 * own


def test_batches_are_halved_until_eight_experts_fit_and_are_a_row_at_least():
    long = replace(WORK, prompt=48, answer=16, train_tokens=512)
    two, one = enough(8, 128, work=long, stretches=(1, 2)), enough(8, 64, work=long)
    assert one < two
    assert room.fit(long, two) == (8, 128)
    assert room.fit(long, two - 2)[1] == 64  # and more experts, for a row less
    assert room.fit(long, one) == (8, 64)
    assert room.fit(long, one - 2) == (7, 64)
    assert room.fit(long, enough(3, 64, work=long)) == (3, 64)


def test_fewer_than_eight_are_no_reason_to_halve_where_no_more_are_wanted():
    long = replace(WORK, prompt=48, answer=16, train_tokens=512)
    memory = enough(2, 512, work=long, stretches=(1, 2))
    assert room.fit(long, memory, most_places=2) == (2, 512)


def test_rows_that_are_longer_than_a_batch_make_it_as_long():
    assert room.fit(replace(WORK, train_tokens=1), 10**12, most_places=2) == (2, 16)


def test_each_part_of_a_mesh_has_its_experts_and_each_device_its_tokens():
    mesh = ONE | {"expert": 2, "data": 3}
    assert room.fit(WORK, 10**12, {"expert": 2, "data": 3}, most_places=5) == (6, 6 * 64)
    memory = enough(2 * 10, 6 * 64, mesh=mesh, stretches=(1, 2))
    assert room.fit(WORK, memory, mesh) == (20, 6 * 64)
    assert room.fit(WORK, memory - 2, mesh) == (18, 6 * 64)


def test_full_experts_train_one_to_a_part_of_the_mesh():
    full = replace(WORK, kind="full", options={})
    assert room.fit(full, 10**12) == (1, 64)
    assert room.fit(full, 10**12, {"expert": 4}) == (4, 256)


def test_with_remat_a_larger_batch_fits_the_same_memory():
    deep = replace(
        WORK,
        network=replace(WORK.network, num_encoder_layers=6, num_decoder_layers=6),
        prompt=96,
        train_tokens=1600,
    )
    memory = enough(8, 400, work=deep, stretches=(1, 2))
    again = replace(deep, network=replace(deep.network, remat=True))
    assert room.fit(deep, memory)[1] == 400
    assert room.fit(again, memory)[1] > 400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "(remat), or split the base over more devices (a mesh with fsdp), or train LoRA experts."),
        ({"kind": "lora", "options": {}}, "(remat), or split the base over more devices (a mesh with fsdp)."),
        (
            {"network": replace(WORK.network, remat=True)},
            "What takes less: split the base over more devices (a mesh with fsdp), or train LoRA experts.",
        ),
    ],
)
def test_not_even_one_expert_is_a_sentence_with_what_is_needed_what_is_there_and_what_to_do(change, says):
    work = replace(WORK, **change)
    needed, there = bytes_of(1, 16, work=work), 100_000
    with pytest.raises(UserError, match=re.escape(says)) as told:
        room.fit(work, there)
    assert f"about {plan.gb(needed)} GB on a device" in str(told.value)
    assert "rows of 12 + 4 tokens" in str(told.value)


def test_the_devices_of_a_machine_share_half_of_its_memory():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert room.memory() == whole // 2 // 8


def test_what_is_left_of_the_devices_scores_rows_of_its_own(base):
    assert room.spread(base) is base  # what a CPU is divided into is used on request alone
    for asked, whole in (({"fsdp": 2}, {"data": 4, "fsdp": 2}), ({"fsdp": -1}, {"data": 1, "fsdp": 8})):
        on = sharding.mesh_of(room.spread(base, asked))
        assert dict(on.shape) == {"expert": 1, "tensor": 1, **whole}
