"""The stack: however it is run, it is the same function of the same parameters."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import SlidingWindow
from llm_jax.layers.moe import Capacity, MoE
from llm_jax.layers.norms import LayerNorm
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack, unstack

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

IDS = jnp.asarray([[3, 1, 4, 1, 5]], jnp.int32)


def make(run: Any = "auto", remat: Any = "none", repeats: int = 3) -> Decoder:
    ffn = SwiGLU(hidden=12)  # one template, used four times: nothing may be shared by that
    attention = Attention(key_heads=2, head=4, dropout=0.2, norm=LayerNorm())
    blocks = (Block(attention, ffn, dropout=0.1), Block(attention.clone(mask=SlidingWindow(2)), ffn, dropout=0.1))
    return Decoder(Embed(width=8, vocabulary=11, dropout=0.1), Stack(blocks, repeats, run, remat))


def test_what_routers_say_is_the_same_however_a_stack_is_run():
    """And their losses' gradients."""
    blocks = (Block(Attention(1, head=4), MoE(6, experts=4, dispatch=Capacity(0.5))),)
    params = begin(Decoder(Embed(8, 11), Stack(blocks, 2)))
    found = {}
    ways: Any = (("loop", "none"), ("scan", "full"))
    for run, remat in ways:
        model = Decoder(Embed(8, 11), Stack(blocks, 2, run, remat))

        @jit
        def both(params, model=model):
            def loss(params):
                _, said = model.apply({"params": params}, IDS, mutable=[ASIDE])
                return heard(said)["auxiliary"].sum(), heard(said)

            return jax.value_and_grad(loss, has_aux=True)(params)

        found[run, remat] = both(params)
    (value, said), gradients = found["loop", "none"]
    assert float(said["routers"][0]) == 2 and value > 0 and said["dropped"].shape == (1,)
    router = gradients["stack"]["layers"]["block_0"]["ffn"]["router"]["kernel"]
    assert (np.abs(np.asarray(router)).max((1, 2)) > 0).all()
    for a, b in zip(jax.tree.leaves(found["scan", "full"]), jax.tree.leaves(found["loop", "none"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def begin(model: Decoder):
    return jit(lambda key: nn.meta.unbox(model.init(key, IDS))["params"])(jax.random.key(0))


def test_loop_scan_and_remat_are_one_function():
    """Value and gradient, with dropout and without; parameters and caches too."""
    params = begin(make())
    found = {}
    for run, remat in (("loop", "none"), ("scan", "dots"), ("loop", "full")):
        model = make(run, remat)

        @jit
        def both(params, key, model=model):
            def loss(params, key):
                scores, caches = model.apply({"params": params}, IDS, dropout_key=key)
                assert caches is None
                return (scores**2).sum()

            cached, caches = model.apply({"params": params}, IDS, caches=model.empty_cache(1, 8, jnp.float32), start=0)
            last, _ = model.apply({"params": params}, IDS[:, :1], caches=caches, start=5)
            return jax.value_and_grad(loss)(params, key), loss(params, None), cached, last

        found[run, remat] = both(params, jax.random.key(2))
    for name, one in found.items():
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(found["loop", "none"]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(b).max()), err_msg=str(name))
    (dropped, _), plain, *_ = found["loop", "none"]
    assert abs(float(dropped) - float(plain)) > 1e-6


def test_no_two_uses_share_parameters():
    layers = begin(make())["stack"]["layers"]
    assert sorted(layers) == ["block_0", "block_1"]
    leaves = jax.tree_util.tree_leaves_with_path(layers)
    # a block: query, key, value, out; scale and bias of two norms of heads; two norms of the stream; three of SwiGLU
    assert len(leaves) == 2 * (4 + 4 + 2 + 3)
    kernels = {
        f"{jax.tree_util.keystr(p)}{i}": np.asarray(x[i]) for p, x in leaves for i in range(3) if "kernel" in str(p)
    }
    assert len(kernels) == 2 * 7 * 3
    for (one, a), (other, b) in itertools.combinations(kernels.items(), 2):
        assert a.shape != b.shape or np.abs(a - b).max() > 1e-3, (one, other)


def test_parameters_have_the_letter_of_layers_first():
    boxed = jax.eval_shape(make().init, jax.random.key(0), IDS)["params"]["stack"]["layers"]["block_0"]
    assert boxed["attention"]["query"]["kernel"].letters == "LDKGH"
    assert boxed["attention"]["query"]["kernel"].value.shape == (3, 8, 2, 1, 4)
    assert boxed["attention"]["query_norm"]["scale"].letters == "LH" and boxed["ffn_norm"]["scale"].letters == "LD"


def test_unstacked_gradients_come_back_stacked():
    layers = {"a": jnp.arange(6.0).reshape(3, 2), "b": {"c": jnp.arange(3.0)}}
    split = unstack(layers)
    assert len(split) == 3 and split[1]["b"]["c"] == 1.0
    np.testing.assert_array_equal(split[2]["a"], [4, 5])
    assert unstack(tuple(split)) == split

    def weighed(layers):
        return sum(
            ((i + 1) * (each["a"].sum() + each["b"]["c"]) for i, each in enumerate(unstack(layers))), jnp.float32(0)
        )

    gradient = jax.grad(weighed)(layers)
    np.testing.assert_array_equal(gradient["a"], [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(gradient["b"]["c"], [1, 2, 3])
