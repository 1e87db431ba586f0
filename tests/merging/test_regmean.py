"""RegMean: outputs nearest to each expert's on its own inputs."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.regmean import regmean

from .conftest import EMBEDDING, LAST, LAYERS, QUERY, WO, D, F, change, merge, values


def test_each_expert_has_its_way_with_the_inputs_that_it_alone_has():
    one, two = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]])
    grams = [np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]
    np.testing.assert_allclose(regmean([one, two], [0.5, 0.5], grams, 1.0), [[1, 2], [7, 8]], rtol=1e-6)


def test_an_input_that_both_have_is_shared_by_how_much_of_it_each_saw():
    one, two = np.float32([[0], [0]]), np.float32([[4], [4]])
    grams = [np.diag([3.0, 1.0]), np.diag([1.0, 1.0])]
    np.testing.assert_allclose(regmean([one, two], [0.5, 0.5], grams, 1.0), [[1], [2]], rtol=1e-6)


def test_where_nobody_saw_any_input_the_mean_remains():
    one, two = np.float32([[0], [0]]), np.float32([[4], [8]])
    grams = [np.diag([1.0, 0.0]), np.diag([3.0, 0.0])]
    np.testing.assert_allclose(regmean([one, two], [0.25, 0.75], grams, 0.9), [[3.6], [6]], rtol=1e-6)
    np.testing.assert_allclose(regmean([one, two], [0.5, 0.5], [np.zeros((2, 2))] * 2, 0.9), [[2], [4]])


def test_alpha_of_zero_looks_at_the_diagonal_alone():
    rng = np.random.default_rng(0)
    changes, rows = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.normal(size=(2, 9, 4))
    grams = [own.T @ own for own in rows]
    f, g = (np.diagonal(gram)[:, None] for gram in grams)
    got = regmean(list(changes), [0.5, 0.5], grams, 0.0)
    np.testing.assert_allclose(got, (f * changes[0] + g * changes[1]) / (f + g), rtol=1e-4, atol=1e-6)


def test_no_other_kernel_is_nearer_to_the_outputs():
    rng = np.random.default_rng(0)
    changes, rows = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(3, 12, 5))
    shares = [0.2, 0.3, 0.5]
    roots = np.sqrt(shares)[:, None, None]
    # Least squares over all inputs at once, which needs the inputs themselves.
    stacked, outputs = (roots * rows).reshape(-1, 5), (roots * (rows @ changes)).reshape(-1, 4)
    wanted = np.linalg.lstsq(stacked, outputs)[0]
    got = regmean(list(changes), shares, [own.T @ own for own in rows], 1.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_kernels_go_by_their_inputs_and_the_rest_is_averaged(expert, statistics):
    experts, known = [expert("full", name) for name in "ab"], statistics("regmean", "full", 2)
    got, mean = (values(merge("regmean", experts, statistics=known))), values(merge("average", experts))
    for path in (LAST, EMBEDDING):
        np.testing.assert_allclose(got[path], mean[path], rtol=1e-6)
    path = f"{QUERY}/kernel"
    for layer in range(LAYERS):
        grams = [tree[path][layer] for tree in known]
        scaled = [np.where(np.eye(D) > 0, gram, 0.1 * gram).astype(np.float64) for gram in grams]
        right = sum(gram @ values(one)[path][layer] for gram, one in zip(scaled, experts, strict=True))
        np.testing.assert_allclose(
            got[path][layer], np.linalg.solve(sum(scaled), right), rtol=1e-3, atol=1e-4
        )


def test_lora_goes_by_the_inputs_of_its_projection(expert, statistics):
    experts, known = [expert("lora", name) for name in "ab"], statistics("regmean", "lora", 2)
    got = merge("regmean", experts, statistics=known, alpha=1.0, rank=6)
    for layer in range(LAYERS):
        grams = [tree[f"{WO}/kernel"][layer].astype(np.float64) for tree in known]
        right = sum(gram @ change(one, WO)[layer] for gram, one in zip(grams, experts, strict=True))
        np.testing.assert_allclose(
            change(got, WO)[layer], np.linalg.solve(sum(grams), right), rtol=1e-2, atol=1e-3
        )


def test_a_vector_goes_by_the_squares_of_what_it_multiplies(expert, statistics):
    experts, known = [expert("ia3", name) for name in "ab"], statistics("regmean", "ia3", 2)
    path = f"{WO}/ia3_in"
    assert known[0][path].shape == (LAYERS, F)
    f, g = (tree[path] for tree in known)
    one, two = (values(each)[path] for each in experts)
    got = values(merge("regmean", experts, statistics=known))[path]
    np.testing.assert_allclose(got, (f * one + g * two) / (f + g), rtol=1e-3, atol=1e-4)


def test_a_gram_matrix_that_cannot_be_one_is_refused(expert, statistics):
    known = statistics("regmean", "lora", 2)
    known[0][f"{QUERY}/kernel"][1, 2, 2] = -1
    with pytest.raises(UserError, match=f"'a/p' for {QUERY}/kernel"):
        merge("regmean", [expert("lora", name) for name in "ab"], statistics=known)
