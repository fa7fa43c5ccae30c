"""Each optimiser against an independent implementation, and each schedule at its corners."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optax.contrib import muon

from llm_jax.core.dims import Fill, Lettered, Role, weigh
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.moe import MoE
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import RelativeBias
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.optim.optimizers import OPTIMIZERS, Adafactor, AdamW, Lion, Muon, is_matrix
from llm_jax.optim.schedules import Constant, Cosine, Linear, WarmupStableDecay
from llm_jax.optim.trainable import leaves

STEPS = 20
SHAPES = {
    "query": ("LDKGH", (2, 8, 2, 2, 3)), "out": ("LKGHD", (2, 2, 2, 3, 8)), "up": ("LDF", (2, 8, 10)),
    "down": ("LFD", (2, 10, 8)), "head": ("DV", (8, 11)),
}  # fmt: skip


@pytest.fixture(scope="module")
def boxed():
    rng = np.random.default_rng(0)

    def draw(letters, shape, role: Role = "kernel"):
        return Lettered(jnp.asarray(rng.normal(size=shape), jnp.float32), letters, role=role)

    kernels = {name: {"kernel": draw(*about)} for name, about in SHAPES.items()}
    vectors = {"norm": {"scale": draw("D", (8,), "scale")}, "bias": {"bias": draw("F", (10,), "bias")}}
    tables = {"embed": {"table": draw("VD", (11, 8), "table")}, "learned": {"table": draw("PD", (5, 8), "table")}}
    biases = {"t5": {"table": draw("PKG", (6, 2, 2), "bias")}, "heads": {"bias": draw("LKGH", (2, 2, 2, 3), "bias")}}
    # OLMo 2's norms of all heads together, and what has an axis of the width as kernels have
    biases |= {
        "query_norm": {"scale": draw("LKGH", (2, 2, 2, 3), "scale")},
        "gates": {"bias": draw("LJD", (2, 3, 8), "bias")},
    }
    kernels |= {"vector": {"kernel": draw("LF", (2, 10))}, "classes": {"kernel": draw("DO", (8, 3))}}
    return kernels | vectors | tables | biases


@pytest.fixture(scope="module")
def params(boxed):
    return jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: isinstance(x, Lettered))


def gradients(params, step):
    """Of sizes that are clipped at some steps and not at others."""
    rng = np.random.default_rng(step)
    size = 0.01 if step % 3 else 1.0
    return jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), jnp.float32), params)


def run(optimizer, boxed, params, steps=STEPS):
    transform = optimizer.transform(steps, boxed)

    @jax.jit
    def step(params, state, gradient):
        change, state = transform.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, change), state

    state = jax.jit(transform.init)(params)
    for i in range(steps):
        params, state = step(params, state, gradients(params, i))
    return params


def clipped(params, step, clip):
    given = jax.tree.map(np.float64, gradients(params, step))
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(given)))
    return jax.tree.map(lambda g: g * min(1.0, clip / norm), given)


def stays(path):
    """Whether a parameter is not decayed."""
    return path[-1].key in ("bias", "scale") or path[0].key == "t5"


def assert_close(found, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, expected)


def test_adamw_is_torchs(boxed, params):
    optimizer = AdamW(learning_rate=1e-2, schedule=Cosine(warmup=4, last=0.1), weight_decay=0.3, clip=1.0)
    leaves, tree = jax.tree.flatten(params)
    own = [torch.nn.Parameter(torch.tensor(np.asarray(x), dtype=torch.float64)) for x in leaves]
    kept = [stays(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    vectors = [p for p, stay in zip(own, kept, strict=True) if stay]
    matrices = [p for p, stay in zip(own, kept, strict=True) if not stay]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    torchs = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(STEPS):
        share = (step + 1) / 5 if step < 4 else 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 4) / (STEPS - 4)))
        for group in torchs.param_groups:
            group["lr"] = 1e-2 * share
        for p, g in zip(own, jax.tree.leaves(gradients(params, step)), strict=True):
            p.grad = torch.tensor(np.asarray(g), dtype=torch.float64)
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        torchs.step()
    expected = jax.tree.unflatten(tree, [p.detach().numpy() for p in own])
    assert_close(run(optimizer, boxed, params), expected, 2e-6)


def test_lion_is_the_papers(boxed, params):
    """Algorithm 2 of Chen et al. 2023."""
    optimizer = Lion(learning_rate=1e-2, schedule=Constant(), weight_decay=0.3, clip=1.0)
    expected = jax.tree.map(np.float64, params)
    momentum = jax.tree.map(np.zeros_like, expected)
    for step in range(STEPS):
        g = clipped(params, step, 1.0)
        sign = jax.tree.map(lambda m, g: np.sign(0.9 * m + 0.1 * g), momentum, g)
        expected = jax.tree_util.tree_map_with_path(
            lambda path, p, s: p - 1e-2 * (s + (0 if stays(path) else 0.3) * p), expected, sign
        )
        momentum = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g, momentum, g)
    assert_close(run(optimizer, boxed, params), expected, 2e-6)


ROWS = dict(query=(8, 12), out=(12, 8), up=(8, 10), down=(10, 8))  # each kernel as the matrix that it is, per layer


def test_muon_orthogonalises_each_layers_matrix(boxed, params):
    optimizer = Muon(learning_rate=1e-2, schedule=Constant(), weight_decay=0.0, clip=0.0)
    after = run(optimizer, boxed, params, steps=1)
    for name, (rows, columns) in ROWS.items():
        change = np.asarray(after[name]["kernel"] - params[name]["kernel"], np.float64).reshape(2, rows, columns)
        # scaled to the usual size of AdamW's: 0.2 sqrt(the larger dimension) (Liu et al. 2025)
        values = np.linalg.svd(change / (1e-2 * 0.2 * np.sqrt(max(rows, columns))), compute_uv=False)
        # five Newton-Schulz steps with Jordan's coefficients end between about 0.68 and 1.13
        assert values.min() > 0.6 and values.max() < 1.25, name


def test_muon_on_a_kernel_is_muon_on_its_matrices(boxed, params):
    optimizer = Muon(learning_rate=1e-2, schedule=Constant(), weight_decay=0.1, clip=0.0)
    after = run(optimizer, boxed, params, steps=4)
    plain = muon(1e-2, beta=0.95, weight_decay=0.1, consistent_rms=0.2)
    update = jax.jit(plain.update)
    for name, (rows, columns) in ROWS.items():
        for layer in range(2):
            matrix = params[name]["kernel"][layer].reshape(rows, columns)
            state = plain.init(matrix)
            for step in range(4):
                gradient = gradients(params, step)[name]["kernel"][layer].reshape(rows, columns)
                with jax.numpy_dtype_promotion("standard"):
                    change, state = update(gradient, state, matrix)
                matrix = matrix + change
            np.testing.assert_allclose(after[name]["kernel"][layer].reshape(rows, columns), matrix, atol=1e-4)


def test_muon_leaves_tables_output_layers_scales_and_biases_to_adamw(boxed, params):
    optimizer = Muon(learning_rate=1e-2, schedule=Constant(), weight_decay=0.1, clip=0.0, adam_rate=3e-3)
    muons = run(optimizer, boxed, params)
    adams = run(AdamW(learning_rate=3e-3, schedule=Constant(), weight_decay=0.1, clip=0.0), boxed, params)
    for name in params.keys() - ROWS.keys():
        assert_close(muons[name], adams[name], 2e-6)


@pytest.mark.parametrize("smallest", [4, 128])
def test_adafactor_lowers_a_quadratic_and_factors(smallest, boxed, params):
    optimizer = Adafactor(learning_rate=0.1, schedule=Constant(), smallest=smallest)
    transform = optimizer.transform(STEPS, boxed)
    state, now = jax.jit(transform.init)(params), params
    sizes = sum(x.size for x in jax.tree.leaves(state))
    assert (sizes < sum(x.size for x in jax.tree.leaves(params))) == (smallest == 4)
    update = jax.jit(transform.update)
    for _ in range(STEPS):
        change, state = update(now, state, now)  # the gradient of x^2 / 2
        now = jax.tree.map(jnp.add, now, change)
    assert sum((x**2).sum() for x in jax.tree.leaves(now)) < 0.2 * sum((x**2).sum() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("smallest", [2, 3, 128])
def test_adafactor_on_stacked_layers_is_optaxs_on_each_layer(smallest):
    """Though the stack is longer than a matrix is wide; and neither scales nor biases are factored."""
    rng = np.random.default_rng(1)
    shapes = dict(up=("LDF", (9, 4, 6), "kernel"), experts=("LEFD", (9, 7, 6, 4), "kernel"),
                  norm=("LKH", (9, 3, 4), "scale"), bias=("LF", (9, 6), "bias"))  # fmt: skip
    boxed = {
        name: Lettered(jnp.asarray(rng.normal(size=shape), jnp.float32), letters, role=role)
        for name, (letters, shape, role) in shapes.items()
    }
    params = jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: isinstance(x, Lettered))
    after = run(Adafactor(1e-2, Constant(), clip=0.0, smallest=smallest, weight_decay=0.1), boxed, params, steps=3)
    for name, (letters, shape, role) in shapes.items():
        matrix = role == "kernel"
        plain = optax.chain(
            optax.scale_by_factored_rms(factored=matrix, min_dim_size_to_factor=smallest),
            optax.clip_by_block_rms(1.0), optax.add_decayed_weights(0.1 * matrix), optax.scale(-1e-2),
        )  # fmt: skip
        update = jax.jit(plain.update)
        for place in np.ndindex(shape[: sum(letter in "LE" for letter in letters)]):
            one = params[name][place]
            state = plain.init(one)
            for step in range(3):
                with jax.numpy_dtype_promotion("standard"):
                    change, state = update(gradients(params, step)[name][place], state, one)
                one = one + change
            np.testing.assert_allclose(after[name][place], one, atol=1e-6, err_msg=f"{name} {place}")


def test_in_a_model_what_is_decayed_is_what_torch_has_as_matrices():
    """OLMo 2's norms of all heads (KGH and KH), T5's biases, a bias for each head, a router."""
    attention = Attention(2, 2, 4, bias=True, norm=LayerNorm(), norm_over="heads")
    model = Decoder(
        Embed(8, 11), Stack((Block(attention, MoE(6, experts=3)), Block(attention, SwiGLU(6))), 3), RelativeBias(),
        context=4,
    )  # fmt: skip
    found = leaves(is_matrix(jax.eval_shape(model.begin, jax.random.key(0))))
    kept = {path for path, decayed in found.items() if not decayed}
    assert kept == {path for path in found if path.endswith((".scale", ".bias")) or path == "positions.table"}
    assert sum("query_norm" in path for path in kept) == 4 and "embed.table" in found and len(kept) < len(found)


def test_a_parameter_of_ones_own_has_a_role_by_its_name_or_its_fan_in():
    class Own(nn.Module):
        def setup(self):
            sizes = dict(K=2, H=3, D=1)
            self.given = [
                weigh(self, "gain", "KH", sizes, Fill(1.0), 1), weigh(self, "mix", "KH", sizes, Fill(1.0), 3),
                weigh(self, "kernel", "DH", sizes, Fill(1.0), 1),
                weigh(self, "offsets", "KH", sizes, Fill(0.0), 3, role="bias"),
            ]  # fmt: skip

        def __call__(self):
            return self.given

    boxed = Own().init(jax.random.key(0))["params"]
    assert is_matrix(boxed) == dict(gain=False, mix=True, kernel=True, offsets=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_decoupled_and_on_matrices_alone(name, boxed, params):
    """Without gradients, a matrix shrinks by rate x decay, and biases and scales stay."""
    optimizer = OPTIMIZERS[name](learning_rate=0.1, schedule=Constant(), weight_decay=0.5)
    transform = optimizer.transform(STEPS, boxed)
    zeros = jax.tree.map(jnp.zeros_like, params)
    change, _ = jax.jit(transform.update)(zeros, jax.jit(transform.init)(params), params)
    for path, moved in jax.tree_util.tree_leaves_with_path(change):
        module, leaf = (key.key for key in path)
        rate = 1e-3 if name == "Muon" and module not in ROWS else 0.1
        share = 0.0 if stays(path) else -rate * 0.5
        np.testing.assert_allclose(moved, share * params[module][leaf], atol=1e-6, err_msg=f"{module}.{leaf}")


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_clip(clip, boxed, params):
    """The moment after one step is the clipped gradient's."""
    transform = AdamW(clip=clip, b1=0.0).transform(STEPS, boxed)
    _, state = jax.jit(transform.update)(gradients(params, 0), transform.init(params), params)
    (moment,) = (s.mu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    norm = np.sqrt(sum((np.float64(m) ** 2).sum() for m in jax.tree.leaves(moment)))
    assert norm == pytest.approx(clip, rel=1e-5) if clip else norm > 1


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        (Constant(), {0: 1, 99: 1}),
        (Constant(warmup=3), {0: 0.25, 2: 0.75, 3: 1, 99: 1}),
        (Cosine(warmup=0, last=0.1), {0: 1, 50: 0.55, 100: 0.1}),
        (Cosine(warmup=20, last=0.0), {0: 1 / 21, 19: 20 / 21, 20: 1, 60: 0.5, 100: 0, 200: 0}),
        (Linear(warmup=20, last=0.2), {0: 1 / 21, 20: 1, 60: 0.6, 100: 0.2, 150: 0.2}),
        (WarmupStableDecay(warmup=10, decay=0.2, last=0.5), {0: 1 / 11, 10: 1, 50: 1, 80: 1, 90: 0.75, 100: 0.5}),
        (Cosine(warmup=100), {0: 1 / 101, 99: 100 / 101}),  # all of it warmup
    ],
)
def test_schedules(schedule, corners):
    for step, share in corners.items():
        assert float(schedule.share(jnp.float32(step), 100)) == pytest.approx(share, abs=1e-6), step
        assert float(AdamW(2e-3, schedule).rate(jnp.int32(step), 100)) == pytest.approx(2e-3 * share, abs=1e-8)
