"""TSV-M, Iso-C, Iso-CTS and KnOTS: what they make of singular vectors; arbitrary ones have no say."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.iso_c import iso_c
from elm_jax.merging.iso_cts import iso_cts
from elm_jax.merging.knots import align_changes
from elm_jax.merging.lowrank import Factors, decompose, orthogonalize
from elm_jax.merging.tsvm import tsvm
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec

from .conftest import LAST, QUERY, change, merge, values

I, O, R = 9, 7, 2  # noqa: E741
METHODS = ("tsvm", "iso_c", "iso_cts", "knots", "wudi")


def random_factors(seed, experts=3):
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=(experts, *shape)).astype(np.float32) for shape in ((I, R), (R, O))]
    return [Factors(left, right) for left, right in zip(*made, strict=True)]


def product(factors):
    return np.asarray(factors.left @ factors.right, np.float64)


def polar(matrix, rank):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] @ right[:rank]


def test_orthogonal_experts_are_added_by_tsvm():
    # Rank one each, in directions of their own, so that nothing has to be made orthogonal.
    one, two = np.zeros((2, 4, 4), np.float32)
    one[0, 1], two[2, 3] = 5, 3
    merged = tsvm([one, two], [1.0, 2.0])
    np.testing.assert_allclose(product(merged), one + 2 * two, atol=1e-12)


def test_tsvm_of_lora_is_that_of_singular_vectors_with_values_above_0():
    experts = random_factors(0)
    left, sizes, right = [], [], []
    for expert in experts:
        u, s, v = np.linalg.svd(product(expert))
        left, sizes, right = [*left, u[:, :R]], [*sizes, s[:R]], [*right, v[:R]]
    wanted = polar(np.hstack(left), 6) @ np.diag(np.concatenate(sizes)) @ polar(np.vstack(right), 6)
    np.testing.assert_allclose(product(tsvm(experts, [1.0] * 3)), wanted, atol=1e-6)


def test_iso_c_makes_all_singular_values_of_the_sum_their_mean():
    experts = random_factors(1)
    u, s, v = np.linalg.svd(sum(map(product, experts)), full_matrices=False)
    merged = product(iso_c(experts, [1.0] * 3))
    np.testing.assert_allclose(merged, s[:6].mean() * u[:, :6] @ v[:6], atol=1e-6)
    np.testing.assert_allclose(np.linalg.svd(merged)[1], [s[:6].mean()] * 6 + [0], atol=1e-6)


def test_iso_cts_gives_each_expert_directions_outside_the_common_ones():
    # Six directions; of a share of one half each, three are left, one for each expert.
    experts = random_factors(2)
    u, s, v = np.linalg.svd(sum(map(product, experts)), full_matrices=False)
    left, sizes, right = [u[:, :3]], [s[:3]], [v[:3]]
    for expert in experts:
        own = np.linalg.svd(product(expert) @ (np.eye(O) - v[:3].T @ v[:3]))
        left, sizes, right = [*left, own[0][:, :1]], [*sizes, own[1][:1]], [*right, own[2][:1]]
    wanted = np.concatenate(sizes).mean() * polar(np.hstack(left), 6) @ polar(np.vstack(right), 6)
    np.testing.assert_allclose(product(iso_cts(experts, [1.0] * 3, 0.5)), wanted, atol=1e-6)


def test_all_directions_in_common_are_iso_c():
    experts = random_factors(3)
    common = product(iso_cts(experts, [1.0] * 3, 1.0))
    np.testing.assert_allclose(common, product(iso_c(experts, [1.0] * 3)), atol=1e-9)


def test_knots_aligns_without_loss():
    experts = random_factors(4)
    parts, shared = align_changes(experts)
    np.testing.assert_allclose(shared @ shared.T, np.eye(6), atol=1e-12)
    for part, expert in zip(parts, experts, strict=True):
        np.testing.assert_allclose(part @ shared, product(expert), atol=1e-5)


def test_an_expert_without_a_change_has_no_rounding_errors_for_one():
    parts, _ = align_changes([*random_factors(5, 2), Factors(np.zeros((I, R)), np.zeros((R, O)))])
    assert not parts[2].any()
    whole = np.random.default_rng(0).normal(size=(2, I, O)).astype(np.float32)
    assert not align_changes([*whole, np.zeros((I, O), np.float32)]).parts[2].any()


def lora(name, seed, *, turned=False, swapped=False):
    """A LoRA expert; `turned` has other factors of the same products."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, I, R)), rng.normal(size=(2, R, O))
    if turned:
        turn = np.linalg.qr(rng.normal(size=(R, R)))[0]
        a, b = a @ (turn * 3), (turn.T / 3) @ b
    flat = {f"{QUERY}/lora_a": a.astype(np.float32), f"{QUERY}/lora_b": b.astype(np.float32)}
    return Expert(ExpertSpec(f"{name}/p", "lora", "base", tuple(flat), (name,), 1), paths.unflatten(flat))


@pytest.mark.parametrize("method", METHODS)
def test_what_lora_merges_to_depends_on_its_products_alone(method):
    options = {"density": 1.0} if method == "knots" else {}  # where no rounding error trims a value
    merged = [
        merge(method, [lora(name, seed, turned=turned) for seed, name in enumerate("abc")], **options)
        for turned in (False, True)
    ]
    one, two = (change(each, QUERY) for each in merged)
    np.testing.assert_allclose(one, two, atol=2e-4)
    assert np.abs(one).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_full_expert_whose_change_has_a_low_rank_merges_as_lora_of_it(method):
    factors, base = [lora(name, seed) for seed, name in enumerate("abc")], np.ones((2, I, O), np.float32)
    whole = []
    for one in factors:
        flat = {f"{QUERY}/kernel": base + change(one, QUERY)}
        spec = ExpertSpec(one.spec.id, "full", "base", tuple(flat), one.spec.datasets, 1)
        whole.append(Expert(spec, paths.unflatten(flat)))
    # Iso-CTS counts directions by the ranks of LoRA, of which a whole matrix does not tell.
    options = {"common": 1.0} if method == "iso_cts" else {"density": 1.0} if method == "knots" else {}
    wanted = change(merge(method, factors, **options), QUERY)
    got = values(merge(method, whole, base=paths.unflatten({f"{QUERY}/kernel": base}), **options))
    np.testing.assert_allclose(got[f"{QUERY}/kernel"] - base, wanted, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_signs_of_singular_vectors_have_no_say(method, monkeypatch):
    experts = [lora(name, seed) for seed, name in enumerate("ab")]
    # The second undoes the first, but for a little: many sums of TIES are 0.
    opposed = [
        experts[0],
        Expert(
            experts[1].spec,
            paths.unflatten(
                {
                    f"{QUERY}/lora_a": -values(experts[0])[f"{QUERY}/lora_a"],
                    f"{QUERY}/lora_b": values(experts[0])[f"{QUERY}/lora_b"],
                }
            ),
        ),
    ]
    before = [change(merge(method, pair), QUERY) for pair in (experts, opposed)]
    svd, rng = np.linalg.svd, np.random.default_rng(0)

    def flipped(matrix, **options):
        u, s, v = svd(matrix, **options)
        signs = rng.choice([-1.0, 1.0], len(s))
        return u * signs, s, v * signs[:, None]

    monkeypatch.setattr(np.linalg, "svd", flipped)
    after = [change(merge(method, pair), QUERY) for pair in (experts, opposed)]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_matrix_is_averaged(expert, toy_base, method):
    experts = [expert("full", name) for name in "ab"]
    got, mean = (values(merge(name, experts, base=toy_base)) for name in (method, "average"))
    np.testing.assert_allclose(got[LAST], mean[LAST], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["ia3", "bottleneck"])
def test_experts_without_matrices_are_refused(expert, method, kind):
    with pytest.raises(UserError, match="matrices"):
        merge(method, [expert(kind, name) for name in "ab"])


def test_nothing_has_no_singular_values_above_0():
    for nothing in (np.zeros((4, 3)), Factors(np.zeros((4, 2)), np.zeros((2, 3))), np.zeros((4, 0))):
        left, sizes, right = decompose(nothing)
        assert (left.shape[1], len(sizes), len(right)) == (0, 0, 0)


def test_a_rounded_product_has_the_rank_of_its_factors():
    factors = random_factors(6)[0]
    assert len(decompose(np.float32(product(factors))).sizes) == len(decompose(factors).sizes) == R


def test_columns_are_made_orthogonal_but_for_those_that_repeat():
    column = np.array([[3.0], [4.0]])
    np.testing.assert_allclose(orthogonalize(column), [[0.6], [0.8]])
    twice = orthogonalize(np.hstack([column, column]))
    np.testing.assert_allclose(twice, np.array([[0.6] * 2, [0.8] * 2]) / 2**0.5)
