"""Norms against PyTorch's."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.layers.norms import LayerNorm, NoNorm, Norm, RMSNorm


def apply(norm: Norm, *inputs) -> Any:
    return norm.apply(*inputs)


X = (np.random.default_rng(0).normal(size=(2, 3, 4, 16)) * 3 + 1).astype(np.float32)
SCALE, BIAS = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("norm", "params", "wanted"),
    [
        (NoNorm(), {}, lambda x: x),
        (RMSNorm(), {"scale": SCALE}, lambda x: torch.nn.functional.rms_norm(x, (16,), torch.tensor(SCALE), 1e-6)),
        (RMSNorm(scale=False, epsilon=0.1), {}, lambda x: torch.nn.functional.rms_norm(x, (16,), None, 0.1)),
        (
            RMSNorm(offset=1.0),
            {"scale": SCALE},
            lambda x: torch.nn.functional.rms_norm(x, (16,), torch.tensor(SCALE) + 1, 1e-6),
        ),
        (
            LayerNorm(),
            {"scale": SCALE, "bias": BIAS},
            lambda x: torch.nn.functional.layer_norm(x, (16,), torch.tensor(SCALE), torch.tensor(BIAS), 1e-5),
        ),
        (
            LayerNorm(bias=False),
            {"scale": SCALE},
            lambda x: torch.nn.functional.layer_norm(x, (16,), torch.tensor(SCALE), None, 1e-5),
        ),
        (LayerNorm(0.1, scale=False, bias=False), {}, lambda x: torch.nn.functional.layer_norm(x, (16,), eps=0.1)),
    ],
)
def test_norms_are_pytorchs(norm, params, wanted):
    boxed = norm.init(jax.random.key(0), X, "H").get("params", {})
    assert {name: p.letters for name, p in boxed.items()} == dict.fromkeys(params, "H")
    np.testing.assert_allclose(apply(norm, {"params": params}, X), wanted(torch.tensor(X)), atol=1e-5)
    half = apply(norm, {"params": jax.tree.map(jnp.bfloat16, params)}, jnp.bfloat16(X))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), wanted(torch.tensor(X)), atol=0.06)


def test_several_dimensions_are_normalised_together():
    scale = SCALE.reshape(1, 16) * np.arange(1, 5, dtype=np.float32).reshape(4, 1)
    wanted = torch.nn.functional.rms_norm(torch.tensor(X), (4, 16), torch.tensor(scale), 1e-6)
    np.testing.assert_allclose(apply(RMSNorm(), {"params": {"scale": scale}}, X, "KH"), wanted, atol=1e-5)


def test_scales_begin_where_they_change_nothing():
    for norm in (RMSNorm(), RMSNorm(offset=1.0), LayerNorm()):
        variables = nn.meta.unbox(norm.init(jax.random.key(0), X))
        plain = apply(
            norm.clone(scale=False), {"params": {k: v for k, v in variables["params"].items() if k != "scale"}}, X
        )
        np.testing.assert_allclose(apply(norm, variables, X), plain, atol=1e-6)


def test_zeros_have_finite_gradients():
    for norm in (RMSNorm(scale=False), LayerNorm(scale=False, bias=False)):
        assert np.isfinite(jax.grad(lambda x, norm=norm: apply(norm, {}, x).sum())(jnp.zeros((1, 1, 4)))).all()
