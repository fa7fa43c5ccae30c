"""Activations and feed-forward layers against PyTorch's."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from llm_jax.layers.feedforward import GEGLU, FeedForward, GatedFeedForward, Gelu, Relu, Silu, SquaredRelu, SwiGLU

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32) * 2


@pytest.mark.parametrize(
    ("activation", "wanted"),
    [
        (Relu(), torch.relu),
        (SquaredRelu(), lambda x: torch.relu(x) ** 2),
        (Gelu(), functional.gelu),
        (Gelu(tanh=True), lambda x: functional.gelu(x, approximate="tanh")),
        (Silu(), functional.silu),
    ],
)
def test_activations_are_pytorchs(activation, wanted):
    np.testing.assert_allclose(activation(X), wanted(torch.tensor(X)), atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "activation"),
    [
        (FeedForward(12, bias=True), functional.gelu),
        (FeedForward(12, Relu()), torch.relu),
        (GatedFeedForward(12, Relu(), bias=True), torch.relu),
        (SwiGLU(12), functional.silu),
        (GEGLU(12, bias=True), functional.gelu),
    ],
)
def test_feed_forward_is_pytorchs(layer, activation):
    begin = jit(nn.init(lambda layer, x: layer(x), layer))
    params = jax.tree.map(lambda p: p + 0.1, nn.meta.unbox(begin(jax.random.key(0), X)["params"]))

    def linear(name, x):
        weights = {k: torch.tensor(np.asarray(v)) for k, v in params[name].items()}
        return functional.linear(x, weights["kernel"].T, weights.get("bias"))

    x = torch.tensor(X)
    hidden = activation(linear("gate", x)) * linear("up", x) if "gate" in params else activation(linear("up", x))
    np.testing.assert_allclose(layer.apply({"params": params}, X), linear("down", hidden), atol=2e-5)
    assert ("bias" in params["down"]) == layer.bias
