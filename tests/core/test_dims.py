"""The alphabet: equations, what follows from them, and the one legend."""

from __future__ import annotations

import ast
import pathlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import llm_jax
from llm_jax.core.dims import LEGEND, RULES, Einsum, FanIn, Fill, Lettered, Normal, contract, lookup, partition, shard

SIZES = dict(B=2, T=3, D=8, K=2, G=3, H=4, F=5, V=7, S=6)


def draw(seed: int, letters: str) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[SIZES[a] for a in letters]).astype(np.float32)


def begin(layer: nn.Module, *inputs) -> Any:
    """The layer's first parameters; `layer.init` would be its setting of that name."""
    return nn.init(lambda layer, *inputs: layer(*inputs), layer)(jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize(
    "equation", ["BTD,DKGH->BTKGH", "BTD,DKH->BTKH", "BTKGH,KGHD->BTD", "BTD,DF->BTF", "BTF,FD->BTD"]
)
@pytest.mark.parametrize("bias", [False, True])
def test_einsum_is_numpys_in_float64(equation, bias):
    given, weight = equation.split("->")[0].split(",")
    x = draw(0, given)
    layer = Einsum(equation, {a: SIZES[a] for a in weight if a not in given}, bias)
    boxed = begin(layer, x)
    assert boxed["kernel"].letters == weight and boxed["kernel"].value.shape == tuple(SIZES[a] for a in weight)
    params = jax.tree.map(lambda p: p + 0.5, nn.meta.unbox(boxed))  # biases begin at zero, which would test nothing
    found: Any = layer.apply({"params": params}, x)
    wanted = np.einsum(equation, x.astype(np.float64), np.asarray(params["kernel"], np.float64))
    if bias:
        out = equation.split("->")[1]
        assert boxed["bias"].letters == "".join(a for a in out if a in weight)
        wanted += np.asarray(params["bias"]).reshape([SIZES[a] if a in weight else 1 for a in out])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_equation_fixes_the_fan_in():
    kernel = begin(Einsum("BTKGH,KGHD->BTD", dict(D=400)), jnp.zeros((1, 1, 4, 2, 8)))["kernel"]
    assert np.std(kernel.value) == pytest.approx((4 * 2 * 8) ** -0.5, rel=0.02)


@pytest.mark.parametrize(
    ("init", "deviation"), [(FanIn(), 0.1), (FanIn(2.0), 0.2), (Normal(), 0.02), (Normal(0.5), 0.5), (Fill(3.0), 0)]
)
def test_inits(init, deviation):
    drawn = init.draw(jax.random.key(0), (200, 100), 100)
    assert drawn.dtype == jnp.float32 and np.std(drawn) == pytest.approx(deviation, rel=0.02, abs=1e-6)
    assert np.mean(drawn) == pytest.approx(3.0 if isinstance(init, Fill) else 0.0, abs=0.05 * deviation + 1e-6)


@pytest.mark.parametrize(
    "equation", ["BTD,DKGH->BTKGH", "BTKGH,BSKH->BKGTS", "BKGTS,BSKH->BTKGH", "BTD,VD->BTV", "BTD,DV->BTV"]
)
def test_contracts_gradient_is_einsums(equation):
    a, b = (draw(i, letters) for i, letters in enumerate(equation.split("->")[0].split(",")))
    weigh = draw(2, equation.split("->")[1])

    def both(a, b):
        def gradient(f, a, b):
            return jax.value_and_grad(
                lambda a, b: (f(equation, a, b).astype(jnp.float32) * weigh).sum(), argnums=(0, 1)
            )(a, b)

        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (a, b))
        return gradient(contract, a, b), gradient(jnp.einsum, a, b), gradient(contract, *half)

    ours, theirs, halves = jax.jit(both)(a, b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * max(1, np.abs(y).max())), ours, theirs
    )
    for half, exact in zip(jax.tree.leaves(halves[1]), jax.tree.leaves(theirs[1]), strict=True):
        assert half.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(half, np.float32) - exact) / np.linalg.norm(exact)
        assert error < 0.01  # a bfloat16 number is good to 2^-9; sums in bfloat16 would lose more


def test_sums_of_bfloat16_are_wide():
    ones = jnp.ones((1, 1, 5000), jnp.bfloat16)
    assert (
        contract("BTD,DF->BTF", ones, jnp.ones((5000, 1), jnp.bfloat16))[0, 0, 0] == 5000
    )  # bfloat16 would stop at 256


# ----------------------------------------------------------------------------------------------------------- partition


def mesh(**axes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize(
    ("letters", "shape", "wanted"),
    [
        ("BTD", (8, 16, 32), (("data", "fsdp"), None, None)),  # fsdp is taken by the batch, so D stays whole
        ("DF", (32, 64), ("fsdp", "tensor")),
        ("VD", (64, 32), ("tensor", "fsdp")),
        ("DKH", (32, 1, 8), ("fsdp", None, None)),  # one key head cannot be split
        ("DKGH", (32, 2, 3, 8), ("fsdp", "tensor", None, None)),
        ("BTKGH", (4, 16, 2, 1, 8), (("data", "fsdp"), None, "tensor", None, None)),
        ("BTD", (2, 16, 32), ("data", None, "fsdp")),  # the batch divides by data alone, which leaves fsdp to D
        ("BTD", (3, 16, 33), (None, None, None)),
        ("KV", (2, 2), ("tensor", None)),
        ("LDF", (3, 32, 64), (None, "fsdp", "tensor")),
        ("V.", (64, 32), ("tensor", None)),
    ],
)
def test_partition(letters, shape, wanted):
    assert partition(letters, shape, mesh(data=2, fsdp=2, tensor=2)) == PartitionSpec(*wanted)


def test_partition_uses_only_the_axes_there_are():
    assert partition("BTD", (8, 16, 32), mesh(data=8, fsdp=1)) == PartitionSpec("data", None, None)
    assert partition("LBT", (4, 2, 16), mesh(stage=2, sequence=2)) == PartitionSpec("stage", None, "sequence")
    assert partition("EF", (8, 6), mesh(expert=4, tensor=2)) == PartitionSpec("expert", "tensor")


def test_shard_pins_within_a_mesh_and_is_nothing_without():
    x = jnp.zeros((8, 2, 4))
    assert shard(x, "BTD") is x
    with jax.set_mesh(mesh(data=2, tensor=4)):
        assert jax.jit(lambda x: shard(x, "BTF"))(x).sharding.spec == PartitionSpec("data", None, "tensor")


def test_letters_follow_an_added_axis():
    box = Lettered(jnp.zeros((2, 3)), "DF").add_axis(0, {nn.PARTITION_NAME: "L"})
    assert box.letters == "LDF" and box.remove_axis(0, {}).letters == "DF" and box.unbox().shape == (2, 3)
    assert box.replace_boxed(1).letters == "LDF"


# -------------------------------------------------------------------------------------------------------------- legend


def test_every_letter_has_a_legend():
    assert set(RULES) <= set(LEGEND)
    files = [p for p in pathlib.Path(llm_jax.__file__).parent.rglob("*.py") if p.name != "torch_reference.py"]
    trees = [ast.parse(p.read_text()) for p in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    suffixes = [found[1] for name in names if (found := re.fullmatch(r"[a-z]\w*_([A-Z]+)", name))]
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    equations = [text for text in texts if re.fullmatch(r"[A-Z]+(,[A-Z]+)?->[A-Z]+", text)]
    assert len(equations) > 10 and len(suffixes) > 50
    for letters in equations + suffixes:
        assert set(letters) - set(",->") <= set(LEGEND), letters


def test_a_lookup_s_gradient_is_summed_in_float32():
    ids_BT = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 2000)))  # bfloat16 sums stall at some 256
    weight_BTD = jnp.asarray(np.random.default_rng(1).random((4, 2000, 8)), jnp.bfloat16)

    def gradient(dtype):
        total = lambda table_VD: (lookup(table_VD, ids_BT) * weight_BTD.astype(dtype)).astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(total)(jnp.ones((5, 8), dtype))

    narrow, wide = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert narrow.dtype == jnp.bfloat16 and (wide[3:] == 0).all()
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, rtol=2**-8)
