"""Every kernel and every feature: in value and gradients it is the dense kernel's, or it is refused, by name.

The dense kernel itself is compared with NumPy in tests/layers/test_kernels.py. A kernel is enrolled by its line in
`KERNELS`, a feature by its line in `FEATURES` and in `CASES` here.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.layers import kernels
from llm_jax.layers.kernels import KERNELS, Auto, Chunked, Dense, Splash
from llm_jax.layers.masks import Causal, Full, Prefix, SlidingWindow
from llm_jax.layers.positions import Alibi, Buckets
from llm_jax.layers.scoring import FEATURES, Scoring
from llm_jax.layers.tokens import Tokens

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

T, S, K, H = 13, 20, 2, 8
HERE = kernels.platform()
SMALL: dict[str, Any] = dict(Chunked=Chunked(7, 5), Splash=Splash(128, interpret=HERE != "tpu"))  # else by default
HALF = ("Cudnn",)  # kernels for 16 bits; where there is no GPU, JAX's own formula computes Cudnn's call


def row(*documents: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Positions and segments of (segment, length) after one another."""
    return [i if s >= 0 else 0 for s, n in documents for i in range(n)], [s for s, n in documents for _ in range(n)]


def tokens(*rows: tuple[list[int], list[int]]) -> Tokens:
    return Tokens(*(jnp.asarray(each, jnp.int32) for each in zip(*rows, strict=True)))


ALONE = Tokens.of((2, T))
PACKED = tokens(row((0, 6), (-1, 2), (1, 5)), row((0, 3), (1, 7), (-1, 3)))
CACHE = tokens(row((0, 17), (-1, 3)), row((-1, 2), (0, 15), (-1, 3)))  # slots; the second row was padded on the left
LATEST = tokens((list(range(4, 17)), [0] * T), (list(range(2, 15)), [0] * T))
SOURCE = tokens(row((0, 20)), row((0, 5), (1, 9), (-1, 6)))

# what a call is made of: queries, keys (None: the same), and changes to a plain causal one
CASES: dict[str, tuple[Tokens, Tokens | None, dict[str, Any]]] = {
    "packing": (PACKED, None, {}),
    "a window": (PACKED, None, dict(mask=SlidingWindow(3))),
    "a prefix": (PACKED, None, dict(mask=Prefix(3))),
    "a soft cap": (PACKED, None, dict(soft_cap=2.0)),
    "dropout": (PACKED, None, dict(dropout=0.4)),
    "grouped queries": (PACKED, None, dict(group=3)),
    "a bias": (PACKED, None, dict(bias="t5")),
    "a cache": (LATEST, CACHE, dict(mask=SlidingWindow(6))),
    "another text's keys": (PACKED, SOURCE, dict(mask=Full())),
}
OTHERS = {
    "alone": (ALONE, None, {}),
    "encoder": (PACKED, None, dict(mask=Full())),
    "alibi": (ALONE, None, dict(bias="alibi")),
}


def call(at: Tokens, keys_at: Tokens | None, mask=Causal(), soft_cap=0.0, dropout=0.0, group=1, bias="none"):
    """Arrays, and a function of kernel and arrays that gives the output and the gradients by q, k, v and T5's table."""
    keys, slots = jax.random.split(jax.random.key(0), 5), keys_at or at
    shapes = [(2, T, K, group, H), (2, slots.segment_BT.shape[1], K, H), (16, K, group), (2, T, K, group, H)]
    q, k, table, d_o = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
    v = jax.random.normal(keys[4], k.shape)

    def run(kernel, q, k, v, table, d_o):
        def attend(q, k, v, table):
            biases = dict(none=lambda: None, alibi=lambda: Alibi().bias(K, group), t5=lambda: Buckets(table, True, 10))
            key = jax.random.key(7) if dropout else None
            scoring = Scoring(at, slots, biases[bias](), key, mask, H**-0.5, soft_cap, dropout, keys_at is None)
            return kernel(q, k, v, scoring)

        out, pull = jax.vjp(attend, q, k, v, table)
        return out, pull(d_o)

    return (q, k, v, table, d_o), run


@functools.cache
def dense(case: str):
    arrays, run = call_of(case)
    return jit(functools.partial(run, Dense()))(*arrays)


def call_of(case: str) -> tuple[Any, Any]:
    at, keys_at, changes = (CASES | OTHERS)[case]
    return call(at, keys_at, **changes)


def test_every_feature_is_asked_for_by_its_case_and_by_no_other():
    assert CASES.keys() == FEATURES.keys()
    for case in CASES:
        asked = []

        def note(q, k, v, scoring, asked=asked):
            asked += [name for name, asks in FEATURES.items() if asks(scoring, q.shape[3])]
            return q

        arrays, run = call_of(case)
        jax.eval_shape(functools.partial(run, note), *arrays)
        also = {"a cache": {"a window"}}.get(case, set())
        assert set(asked) == {"packing", case} | also


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
@pytest.mark.parametrize("name", [name for name in KERNELS if name not in ("Dense", "Auto")])
def test_a_feature_is_the_dense_kernels_or_refused(name, case, monkeypatch):
    kernel, (arrays, run) = SMALL.get(name, KERNELS[name]()), call_of(case)
    tolerance = 3e-6
    if name in HALF:
        arrays, tolerance = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays), 0.03
        if HERE != "gpu":
            monkeypatch.setattr(kernels, "platform", lambda: "gpu")
            monkeypatch.setattr(jax.nn, "dot_product_attention", _on_a_cpu)
    feature = dict(alone="packing", encoder="packing", alibi="a bias").get(case, case)
    if feature not in kernel.takes:
        with pytest.raises(InputError, match=rf"{name} does not take .*{feature}.*: set attention.kernel to Chunked"):
            jax.eval_shape(functools.partial(run, kernel), *arrays)
        return
    found = jit(functools.partial(run, kernel))(*arrays)
    for a, b in zip(*map(jax.tree.leaves, (found, dense(case))), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=tolerance * max(1.0, np.abs(b).max()))
    if case == "another text's keys":  # the second row's padding has no source
        assert (np.asarray(found[0], np.float32)[1, -3:] == 0).all()


@pytest.mark.parametrize("here", ["cpu", "gpu", "tpu"])
def test_auto_picks_a_kernel_that_takes_what_is_asked(here, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: here)
    monkeypatch.setattr(jax.nn, "dot_product_attention", _on_a_cpu)
    picked = set()
    for case in CASES | OTHERS:
        arrays, run = call_of(case)
        with kernels.choices() as said:
            jax.eval_shape(functools.partial(run, Auto(few=4)), *(x.astype(jnp.bfloat16) for x in arrays))
        picked |= set(said)
    own = dict(cpu=None, gpu="Cudnn()", tpu="Splash()")[here]
    assert {line.split()[2].rstrip(",") for line in picked} == {"Chunked()", own} - {None}


def _on_a_cpu(*operands, implementation, **settings):
    """cuDNN's call by JAX's own formula, which takes the same arguments, in float32."""
    assert implementation == "cudnn"
    assert operands[0].shape[1] % 2 == operands[1].shape[1] % 2 == 0, "cuDNN wants even lengths"
    wide = [x.astype(jnp.float32) for x in operands]
    return DOT_PRODUCT_ATTENTION(*wide, implementation="xla", **settings).astype(operands[0].dtype)


DOT_PRODUCT_ATTENTION = jax.nn.dot_product_attention


@pytest.mark.parametrize(
    ("kernel", "message", "here"),
    [
        (Splash(), "Splash is for TPUs, and this is a cpu: set attention.kernel to Chunked", "cpu"),
        (Splash(100), "Splash works in blocks of multiples of 128, not of 100", "tpu"),
        (KERNELS["Cudnn"](), "Cudnn is for NVIDIA's GPUs, and this is a tpu", "tpu"),
    ],
)
def test_what_cannot_run_here_says_so(kernel, message, here, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: here)
    arrays, run = call_of("alone")
    with pytest.raises(InputError, match=message):
        run(kernel, *arrays)


def test_cudnn_refuses_wide_numbers_and_odd_heads(monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    arrays, run = call_of("alone")
    with pytest.raises(InputError, match="Cudnn computes in 16 bits, and precision"):
        run(KERNELS["Cudnn"](), *arrays)
    odd = [x.astype(jnp.bfloat16)[..., :5] for x in arrays[:3]]
    with pytest.raises(InputError, match="heads up to 128 wide, in multiples of 8, not of 5"):
        run(KERNELS["Cudnn"](), *odd, *arrays[3:])
