"""Mixtures of experts: the router against NumPy in float64, the layer against the transformers library's Qwen3-MoE."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from transformers.models.qwen3_moe import modeling_qwen3_moe
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.layers.moe import ROUTING, Capacity, Dropless, MoE, routing
from llm_jax.layers.tokens import Tokens
from llm_jax.parallel.layout import shardings

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B, T, D, F, E, K = 3, 10, 8, 6, 5, 2
LAYER = MoE(F, experts=E, top_k=K, balance=0.5, z=0.25)
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
SEGMENT = np.asarray([[0] * 10, [0] * 4 + [1] * 3 + [-1] * 3, [-1] * 10], np.int32)
AT = Tokens(jnp.zeros((B, T), jnp.int32), jnp.asarray(SEGMENT))


def begin(layer: MoE, key: jax.Array) -> Any:
    return nn.init(lambda layer, x: layer(x), layer)(key, X)["params"]


@pytest.fixture(scope="module")
def params() -> Any:
    return jit(lambda key: nn.meta.unbox(begin(LAYER, key)))(jax.random.key(0))


@functools.partial(jit, static_argnums=0)
def run(layer, params, x, at=None):
    """The output and what was said; then the gradients of both together."""

    def loss(params, x):
        y, said = layer.apply({"params": params}, x, at, mutable=[ASIDE])
        return (y.astype(jnp.float32) ** 2).sum() + heard(said)["auxiliary"].sum(), (y, heard(said))

    gradients, (y, said) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, said, gradients


def numpys(params, x, normalize: bool, real, room: int = T):
    """[B, T, D], and by row the share of choices dropped and the losses: one token after the other, in float64."""
    weights = {name: np.asarray(params[name]["kernel"], np.float64) for name in ("router", "gate", "up", "down")}
    y, lost, balance, z = np.zeros(x.shape), [], [], []
    for b in range(x.shape[0]):
        taken, chosen, dropped, shares, squares = np.zeros(E, int), np.zeros(E), 0, np.zeros(E), 0.0
        for t in np.flatnonzero(real[b]):
            token = x[b, t].astype(np.float64)
            scores = token @ weights["router"]
            share = np.exp(scores - scores.max())
            share /= share.sum()
            squares += np.log(np.exp(scores).sum()) ** 2
            best = np.argsort(-share)[:K]
            total = share[best].sum() if normalize else 1.0
            shares += share
            for e in best:
                chosen[e] += 1
                if taken[e] == room:
                    dropped += 1
                    continue
                taken[e] += 1
                gate = token @ weights["gate"][e]
                hidden = gate / (1 + np.exp(-gate)) * (token @ weights["up"][e])
                y[b, t] += share[e] / total * (hidden @ weights["down"][e])
        count = max(real[b].sum(), 1)
        lost.append(dropped / max(chosen.sum(), 1))
        balance.append(E * (shares / count) @ (chosen / (count * K)))
        z.append(squares / count)
    return y, np.asarray(lost), np.asarray(balance), np.asarray(z)


@pytest.mark.parametrize(
    ("dispatch", "normalize", "room"),
    [(Dropless(), True, T), (Dropless(), False, T), (Capacity(0.75), True, 3), (Capacity(0.25), False, 1)],
    ids=str,
)
def test_a_mixture_is_numpys_sum(dispatch, normalize, room, params):
    """Output, dropped choices and both losses, with packed documents, padding, and a row of padding alone."""
    layer = LAYER.clone(dispatch=dispatch, normalize=normalize)
    y, said, _ = run(layer, params, X, AT)
    wanted, lost, balance, z = numpys(params, X, normalize, SEGMENT >= 0, room)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(said["dropped"], lost, atol=1e-6)
    np.testing.assert_allclose(said["load_balance"], balance, atol=1e-5)
    np.testing.assert_allclose(said["router_z"], z, rtol=1e-5)
    np.testing.assert_allclose(said["auxiliary"], 0.5 * balance + 0.25 * z, rtol=1e-5)
    assert (lost[:2] > 0).all() == isinstance(dispatch, Capacity) and (np.asarray(y)[2] == 0).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_dropless_is_transformers_qwen3_moe(normalize, params):
    config = Qwen3MoeConfig(
        hidden_size=D, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=K, norm_topk_prob=normalize
    )
    torch_layer: Any = modeling_qwen3_moe.Qwen3MoeSparseMoeBlock(config)
    kernels = {name: torch.tensor(np.asarray(params[name]["kernel"])) for name in params}
    with torch.no_grad():
        torch_layer.gate.weight.copy_(kernels["router"].T)
        torch_layer.experts.gate_up_proj.copy_(torch.cat([kernels["gate"].mT, kernels["up"].mT], 1))
        torch_layer.experts.down_proj.copy_(kernels["down"].mT)
        wanted = torch_layer(torch.tensor(X)).numpy()
    y, said, _ = run(LAYER.clone(normalize=normalize), params, X)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    for row in range(B):  # theirs is k when even, ours 1
        scores = torch.tensor(X[row]) @ kernels["router"]
        theirs: Any = modeling_qwen3_moe.load_balancing_loss_func((scores,), E, K)
        np.testing.assert_allclose(said["load_balance"][row], float(theirs) / K, rtol=1e-5)


def test_with_room_for_all_nothing_is_dropped_and_the_forms_agree(params):
    """Value and every gradient, which are finite also where room is short."""
    (y, said, gradients), (y2, said2, gradients2) = (
        run(LAYER.clone(dispatch=d), params, X, AT) for d in (Dropless(), Capacity(E / K))
    )
    assert (np.asarray(said2["dropped"]) == 0).all()
    for a, b in zip(jax.tree.leaves((y, said, gradients)), jax.tree.leaves((y2, said2, gradients2)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(run(LAYER.clone(dispatch=Capacity(0.1)), params, X, AT)))
    assert Capacity(1.25).room(64, 2, 8) == 20
    assert Capacity(0.1).room(4, 1, 8) == 1 and Capacity(99.0).room(4, 1, 8) == 4


def test_a_row_does_not_depend_on_how_long_others_are(params):
    """Padded to the length of another, on either side, it drops the same and says the same."""
    layer, row = LAYER.clone(dispatch=Capacity(0.5)), X[:1, :4]
    alone, said, _ = run(layer, params, row)
    assert 0 < said["dropped"][0] < 1
    for before, after in ((0, 6), (6, 0)):
        padded = np.pad(row, ((0, 0), (before, after), (0, 0)))
        segment = np.pad(np.zeros((1, 4), np.int32), ((0, 0), (before, after)), constant_values=-1)
        y, also, _ = run(layer, params, padded, Tokens(jnp.zeros((1, T), jnp.int32), jnp.asarray(segment)))
        np.testing.assert_allclose(y[:, before : T - after], alone, atol=1e-6)
        np.testing.assert_allclose(also["dropped"], said["dropped"])


def test_no_token_depends_on_a_later_one(params):
    layer = LAYER.clone(dispatch=Capacity(0.5))
    whole, _, _ = run(layer, params, X)
    other = X.copy()
    other[:, 7:] = np.random.default_rng(1).normal(size=(B, 3, D))
    np.testing.assert_allclose(run(layer, params, other)[0][:, :7], whole[:, :7], atol=1e-6)


def test_an_even_router_has_losses_of_1_and_of_the_squared_logarithm(params):
    even = params | {"router": {"kernel": jnp.zeros((D, E))}}
    _, said, _ = run(LAYER, even, X)
    np.testing.assert_allclose(said["load_balance"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(said["router_z"], np.log(E) ** 2, rtol=1e-6)


def test_sums_add_up_over_rows(params):
    weight_B = jnp.asarray([2.0, 5.0, 0.0])
    _, said, _ = run(LAYER.clone(dispatch=Capacity(0.5)), params, X, AT)
    sums = routing(said, weight_B)
    assert sorted(sums) == sorted(ROUTING) and routing({}, weight_B) == {}
    for name in ROUTING:
        np.testing.assert_allclose(sums[name], 2 * said[name][0] + 5 * said[name][1], rtol=1e-6)
    two = routing(jax.tree.map(lambda x: 2 * x, said), weight_B)  # two like layers
    np.testing.assert_allclose(two["load_balance"], sums["load_balance"], rtol=1e-6)
    np.testing.assert_allclose(two["auxiliary"], 2 * sums["auxiliary"], rtol=1e-6)


@pytest.mark.parametrize("dispatch", [Dropless(), Capacity(0.75)], ids=str)
def test_experts_over_devices(dispatch):
    """Each of four groups of devices holds two of the experts."""
    layer = MoE(F, experts=8, dispatch=dispatch)
    boxed: Any = jax.eval_shape(lambda key: begin(layer, key), jax.random.key(0))
    params = jit(lambda key: nn.meta.unbox(begin(layer, key)))(jax.random.key(0))
    x = np.concatenate([X, X[:1]])
    wanted = run(layer, params, x)
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    where = shardings(boxed, mesh)
    assert where["down"]["kernel"].spec == PartitionSpec("expert", None, None)
    with jax.set_mesh(mesh):
        found = run(layer, jax.device_put(params, where), jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near_float32(params):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    for dispatch in (Dropless(), Capacity(2.5)):
        layer = LAYER.clone(dispatch=dispatch)
        y, said, _ = run(layer, half, jnp.asarray(X, jnp.bfloat16))
        assert y.dtype == jnp.bfloat16 and said["load_balance"].dtype == jnp.float32
        exact, _, _ = run(layer, *jax.tree.map(lambda p: p.astype(jnp.float32), (half, jnp.bfloat16(X))))
        assert np.linalg.norm(np.asarray(y, np.float32) - exact) / np.linalg.norm(exact) < 0.02


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (MoE(F, experts=2, top_k=3), "MoE chooses top_k=3 of 2 experts: raise experts, or lower top_k"),
        (MoE(F, bias=True), "the experts of MoE have no biases: set bias=False"),
    ],
)
def test_what_cannot_be(layer, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda key: begin(layer, key), jax.random.key(0))


def test_weights_have_their_letters_and_their_active_share():
    boxed: Any = jax.eval_shape(lambda key: begin(LAYER, key), jax.random.key(0))
    letters = {name: boxed[name]["kernel"].letters for name in boxed}
    assert letters == dict(router="DE", gate="EDF", up="EDF", down="EFD")
    assert {name: boxed[name]["kernel"].active for name in boxed} == dict(router=1.0, gate=0.4, up=0.4, down=0.4)
    many = MoE(32, experts=64, top_k=2)
    drawn: Any = nn.meta.unbox(begin(many, jax.random.key(0)))
    assert abs(float(jnp.std(drawn["down"]["kernel"])) - 32**-0.5) < 0.01, "the fan-in is one expert's"
