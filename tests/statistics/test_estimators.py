"""Statistics are what a T5 of NumPy's, row by row and without padding, sees and answers."""

import math

import jax
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.layers import relative_bucket
from elm_jax.records import Expert, ExpertSpec
from elm_jax.statistics import estimators

PROMPTS = [[5, 9, 11, 1], [7, 1]]
TARGETS = [[12, 1], [30, 31, 32, 1]]
PROJECTIONS = {
    "encoder": ["attention/query", "attention/key", "attention/value", "attention/out"],
    "decoder": [
        f"{block}/{name}"
        for block in ("self_attention", "encoder_decoder_attention")
        for name in ("query", "key", "value", "out")
    ],
}
PATHS = [
    f"{stack}/layers/{name}"
    for stack, own in PROJECTIONS.items()
    for name in (*own, "mlp/wi_0", "mlp/wi_1", "mlp/wo")
]


class Plain:
    """A T5 of one layer a stack in float64, one row at a time; it keeps what enters every projection."""

    def __init__(self, config, base, expert):
        self.config = config
        self.base = {path: np.asarray(value, np.float64) for path, value in paths.flatten(base).items()}
        self.expert = {path: np.asarray(value, np.float64) for path, value in paths.flatten(expert).items()}
        self.entered = {}

    def value(self, path, layer=0):
        found = self.expert[path] if path in self.expert else self.base[path]
        return found[layer] if "/layers/" in path else found

    def norm(self, path, x):
        size = np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
        return x / size * self.value(f"{path}/scale")[None]

    def dense(self, path, x):
        self.entered.setdefault(path, []).append(x)
        own = {
            name: self.expert[f"{path}/{name}"][0]
            for name in ("lora_a", "lora_b", "ia3_in", "ia3_out")
            if f"{path}/{name}" in self.expert
        }
        x = x * own["ia3_in"][None] if "ia3_in" in own else x
        y = x @ (self.value(f"{path}/kernel"))
        y = y + x @ own["lora_a"] @ own["lora_b"] if own.keys() >= {"lora_a", "lora_b"} else y
        return y * own["ia3_out"][None] if "ia3_out" in own else y

    def attention(self, path, x, source, bias, seen):
        heads, width = self.config.num_heads, self.config.head_dim
        q = self.dense(f"{path}/query", x).reshape(-1, heads, width)
        k = self.dense(f"{path}/key", source).reshape(-1, heads, width)
        v = self.dense(f"{path}/value", source).reshape(-1, heads, width)
        mixed = np.zeros_like(q)
        for head in range(heads):
            scores = np.where(seen, q[:, head] @ k[:, head].T + bias[head], -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, head]
        return self.dense(f"{path}/out", mixed.reshape(len(x), -1))

    def bias(self, stack, length):
        relative = np.arange(length)[None, :] - np.arange(length)[:, None]
        buckets = relative_bucket(
            relative,
            bidirectional=stack == "encoder",
            buckets=self.config.relpos_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        return self.base[f"{stack}/relpos_bias/rel_embedding"][:, buckets]

    def feed_forward(self, stack, x):
        normed = self.norm(f"{stack}/layers/pre_mlp_layer_norm", x)
        one = self.dense(f"{stack}/layers/mlp/wi_0", normed)
        gelu = one / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (one + 0.044715 * one**3)))
        return x + self.dense(f"{stack}/layers/mlp/wo", gelu * self.dense(f"{stack}/layers/mlp/wi_1", normed))

    def log_likelihood(self, prompt, target):
        x = self.base["token_embedder/embedding"][prompt]
        at = "encoder/layers"
        normed = self.norm(f"{at}/pre_attention_layer_norm", x)
        every = np.ones((len(prompt),) * 2, bool)
        x = x + self.attention(f"{at}/attention", normed, normed, self.bias("encoder", len(prompt)), every)
        encoded = self.norm("encoder/encoder_norm", self.feed_forward("encoder", x))
        x, at = self.base["token_embedder/embedding"][[0, *target[:-1]]], "decoder/layers"
        normed = self.norm(f"{at}/pre_self_attention_layer_norm", x)
        causal = np.tri(len(target), dtype=bool)
        bias = self.bias("decoder", len(target))
        x = x + self.attention(f"{at}/self_attention", normed, normed, bias, causal)
        normed = self.norm(f"{at}/pre_cross_attention_layer_norm", x)
        none, all_seen = np.zeros((self.config.num_heads, 1, 1)), np.ones((len(target), len(prompt)), bool)
        x = x + self.attention(f"{at}/encoder_decoder_attention", normed, encoded, none, all_seen)
        x = self.norm("decoder/decoder_norm", self.feed_forward("decoder", x))
        logits = self.dense("decoder/logits_dense", x)
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return shares[np.arange(len(target)), target].sum()


def expert_of(kind, base, **options):
    """An expert whose every value is drawn, so that none of it is without effect."""
    fresh = ex.init_expert(kind, jax.random.key(1), base, options)
    rng = np.random.default_rng(3)
    tree = jax.tree.map(lambda leaf: (leaf + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32), fresh)
    return Expert(ExpertSpec("a/b", kind, "base", tuple(paths.flatten(tree)), ("a",), 1), tree)


def plainly(config, base, expert):
    """Returns path -> what entered it over both rows, one below the other."""
    return {path: np.concatenate(found) for path, found in row_by_row(config, base, expert).items()}


def row_by_row(config, base, expert):
    """Returns path -> what entered it, of one row and of the other."""
    network = Plain(config, base, expert.params)
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        network.log_likelihood(prompt, target)
    return network.entered


@pytest.fixture
def lora(base):
    return expert_of("lora", base, rank=2, projections=("query", "value", "wo"))


def test_means_of_inputs_are_over_rows_of_means_over_their_real_tokens(config, base, lora):
    entered = row_by_row(config, base, lora)
    found = estimators.mean_inputs(config, base, lora, PROMPTS, TARGETS, PATHS)
    assert set(found) == set(PATHS)
    for path in PATHS:
        means = [row.mean(0) for row in entered[path]]
        assert found[path].shape == (1, len(means[0]))
        np.testing.assert_allclose(found[path][0], np.mean(means, axis=0), rtol=2e-4, atol=2e-5)


def test_gram_matrices_are_those_of_every_real_token_with_the_expert_in_place(config, base, lora):
    entered = plainly(config, base, lora)
    wanted = [f"{path}/kernel" for path in PATHS]
    found = estimators.regmean_statistics(config, base, lora, PROMPTS, TARGETS, wanted)
    for path in PATHS:
        inputs = entered[path]
        np.testing.assert_allclose(
            found[f"{path}/kernel"][0], inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-3
        )
    without = estimators.regmean_statistics(config, base, expert_of("ia3", base), PROMPTS, TARGETS, wanted)
    assert np.abs(without[f"{PATHS[-1]}/kernel"] - found[f"{PATHS[-1]}/kernel"]).max() > 0.1


def test_the_output_layer_of_a_full_expert_has_one_gram_matrix_without_layers(config, base):
    full = expert_of("full", base)
    path = "decoder/logits_dense"
    inputs = plainly(config, full.params, full)[path]
    found = estimators.regmean_statistics(config, base, full, PROMPTS, TARGETS, [f"{path}/kernel"])
    np.testing.assert_allclose(found[f"{path}/kernel"], inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-3)


def test_vectors_are_weighed_by_the_squares_of_what_they_multiply(config, base):
    ia3 = expert_of("ia3", base)
    entered = plainly(config, base, ia3)
    inner, outer = "encoder/layers/mlp/wo", "decoder/layers/encoder_decoder_attention/value"
    wanted = [f"{inner}/ia3_in", f"{outer}/ia3_out"]
    found = estimators.regmean_statistics(config, base, ia3, PROMPTS, TARGETS, wanted)
    kernel = np.asarray(paths.flatten(base)[f"{outer}/kernel"])[0]
    np.testing.assert_allclose(
        found[f"{inner}/ia3_in"][0], (entered[inner] ** 2).mean(0), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        found[f"{outer}/ia3_out"][0], ((entered[outer] @ kernel) ** 2).mean(0), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("lora", "encoder/layers/attention/query/kernel"),
        ("lora", "decoder/layers/mlp/wo/kernel"),
        ("ia3", "encoder/layers/mlp/wo/ia3_in"),
        ("full", "encoder/layers/pre_mlp_layer_norm/scale"),
        ("full", "token_embedder/embedding"),
    ],
)
def test_fisher_is_the_mean_square_of_the_slopes_of_each_row_s_log_likelihood(config, base, kind, path):
    options = {"rank": 2, "projections": ("query", "wo")} if kind == "lora" else {}
    expert = expert_of(kind, base, **options)
    found = estimators.fisher_statistics(config, base, expert, PROMPTS, TARGETS, [path])[path]
    network = Plain(config, base if kind != "full" else expert.params, expert.params)
    values = network.expert[path] if path in network.expert else network.base[path]
    if path == "token_embedder/embedding":
        values = network.base[path]
    assert found.shape == values.shape
    step, largest = 1e-5, np.argsort(found.ravel())[-3:]
    for place in (np.unravel_index(number, values.shape) for number in largest):
        slopes = []
        for prompt, target in zip(PROMPTS, TARGETS, strict=True):
            either = []
            for side in (step, -step):
                values[place] += side
                either.append(network.log_likelihood(prompt, target))
                values[place] -= side
            slopes.append((either[0] - either[1]) / (2 * step))
        assert found[place] == pytest.approx(np.mean(np.square(slopes)), rel=5e-3)


def test_rows_that_fill_no_batch_count_once_each(config, base, lora):
    many = estimators.BATCH_ROWS + 3
    path = f"{PATHS[0]}/kernel"
    once = estimators.fisher_statistics(config, base, lora, PROMPTS[:1], TARGETS[:1], [path])[path]
    often = estimators.fisher_statistics(config, base, lora, PROMPTS[:1] * many, TARGETS[:1] * many, [path])[
        path
    ]
    np.testing.assert_allclose(often, once, rtol=1e-3, atol=1e-8)
    gram = estimators.regmean_statistics(config, base, lora, PROMPTS[:1], TARGETS[:1], [path])[path]
    grams = estimators.regmean_statistics(config, base, lora, PROMPTS[:1] * many, TARGETS[:1] * many, [path])[
        path
    ]
    np.testing.assert_allclose(grams, gram, rtol=1e-4, atol=1e-4)
