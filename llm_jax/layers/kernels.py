"""Attention kernels: the same sum, organised differently. Each is exact.

    kernel(q_BTKGH, k_BSKH, v_BSKH, scoring) -> o_BTKGH

`Scoring` says how a query scores a key; a kernel asks it for the block of scores at hand. A query that may see no key
at all (padding) gets zeros. What a kernel does not take (`FEATURES`) it refuses; `Auto` picks one that does.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp

from llm_jax.core.compat import device_platform
from llm_jax.core.dims import contract
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Part, Size
from llm_jax.layers import chunked, splash
from llm_jax.layers.scoring import FEATURES, NEVER, Scoring


class Kernel(Part):
    """How attention is computed. `takes` are the `FEATURES` that it honours: by default all."""

    takes: ClassVar[frozenset[str]] = frozenset(FEATURES)

    def __call__(self, q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, scoring: Scoring) -> jax.Array:
        raise NotImplementedError

    def refusal(self, q_BTKGH: jax.Array, scoring: Scoring) -> str | None:
        """Why it cannot compute this, in words; None: it can."""
        group = q_BTKGH.shape[3]
        asked = [name for name, asks in FEATURES.items() if name not in self.takes and asks(scoring, group)]
        return f"{type(self).__name__} does not take {' and '.join(asked)}" if asked else None

    def check(self, q_BTKGH: jax.Array, scoring: Scoring) -> None:
        """Nothing, if it can compute this.

        Raises:
          InputError: it cannot; the message says why, and what to use.
        """
        if (why := self.refusal(q_BTKGH, scoring)) is not None:
            raise InputError(f"{why}: set attention.kernel to Chunked(), or to Auto(), which picks one that can")


@dataclasses.dataclass(frozen=True)
class Dense(Kernel):
    """The reference: every score at once. Memory grows with T x S."""

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        rows, columns = slice(0, q_BTKGH.shape[1]), slice(0, k_BSKH.shape[1])
        score = scoring.scores(q_BTKGH, k_BSKH, scoring.bias, rows, columns)
        top = jax.lax.stop_gradient(jnp.maximum(score.max(-1, keepdims=True), NEVER / 10))
        weight = jnp.exp(score - top)
        total_BTKG = jnp.einsum("BKGTS->BTKG", weight)
        if (kept := scoring.kept(weight.shape, 0, 0)) is not None:
            weight = weight * kept
        o_BTKGH = contract("BKGTS,BSKH->BTKGH", weight.astype(v_BSKH.dtype), v_BSKH)
        return (o_BTKGH / jnp.maximum(total_BTKG, 1e-30)[..., None]).astype(q_BTKGH.dtype)


@dataclasses.dataclass(frozen=True)
class Chunked(Kernel):
    """Blocks of queries against blocks of keys, with the softmax kept as running sums (Rabe & Staats 2021; Dao 2022).

    Blocks that the mask rules out are skipped. Memory grows with `queries` x `keys`, also backward, where scores are
    computed again from the saved log-sums.
    """

    queries: Size = 128
    keys: Size = 1024

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        return chunked.attend(q_BTKGH, k_BSKH, v_BSKH, scoring, self.queries, self.keys)


@dataclasses.dataclass(frozen=True)
class Splash(Kernel):
    """The Pallas kernel for TPUs that JAX ships, in blocks that skip what a mask rules out (Dao et al. 2022).

    Which keys a query may see has to follow from slots and segments: a document's tokens lie side by side and in order,
    as all packings leave them. `interpret` runs it on any machine, slowly, for tests.
    """

    takes: ClassVar = frozenset({"packing", "a window", "a soft cap", "grouped queries", "another text's keys"})

    block: Size = 512  # of queries and of keys: a multiple of 128
    interpret: bool = False

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        self.check(q_BTKGH, scoring)
        return splash.attend(q_BTKGH, k_BSKH, v_BSKH, scoring, self.block, self.interpret)

    def refusal(self, q_BTKGH, scoring):
        if self.block % splash.LANES:
            return f"Splash works in blocks of multiples of {splash.LANES}, not of {self.block}"
        if not self.interpret and platform() != "tpu":
            return f"Splash is for TPUs, and this is a {platform()}"
        if jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1:
            return "Splash does not take rows that are split over devices"
        return super().refusal(q_BTKGH, scoring)


@dataclasses.dataclass(frozen=True)
class Cudnn(Kernel):
    """NVIDIA's fused kernel (cuDNN), by `jax.nn.dot_product_attention`. Only for 16-bit numbers.

    The mask goes in as an array [B, 1, T, S], so memory grows with T x S, if not with the heads. It takes no bias: of
    one that differs from row to row, cuDNN returns no gradient. Its gradients are the same bits at every call if XLA is
    told to fix the order of sums, as our programs do (`core.runtime.fix_order`).
    """

    takes: ClassVar = frozenset(FEATURES) - {"a soft cap", "dropout", "a bias"}

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        self.check(q_BTKGH, scoring)
        batch, length, *_, head = q_BTKGH.shape
        mask_BTS = scoring.mask.between(scoring.queries, scoring.keys)
        pad_T, pad_S = ((0, x % 2) for x in mask_BTS.shape[1:])  # cuDNN wants even numbers
        q_BTNH = jnp.pad(q_BTKGH.reshape(batch, length, -1, head), ((0, 0), pad_T, (0, 0), (0, 0)))
        k_BSKH, v_BSKH = (jnp.pad(x, ((0, 0), pad_S, (0, 0), (0, 0))) for x in (k_BSKH, v_BSKH))
        o_BTNH = jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=jnp.pad(mask_BTS, ((0, 0), pad_T, pad_S))[:, None],
            scale=scoring.scale, implementation="cudnn",
        )  # fmt: skip
        o_BTKGH = o_BTNH[:, :length].reshape(q_BTKGH.shape)
        return jnp.where(mask_BTS.any(-1)[:, :, None, None, None], o_BTKGH, 0)

    def refusal(self, q_BTKGH, scoring):
        head = q_BTKGH.shape[-1]
        if platform() != "gpu":
            return f"Cudnn is for NVIDIA's GPUs, and this is a {platform()}"
        if q_BTKGH.dtype not in (jnp.bfloat16, jnp.float16):
            return f"Cudnn computes in 16 bits, and precision.compute is {q_BTKGH.dtype}"
        if head % 8 or head > 128:
            return f"Cudnn takes heads up to 128 wide, in multiples of 8, not of {head}"
        return super().refusal(q_BTKGH, scoring)


@dataclasses.dataclass(frozen=True)
class Auto(Kernel):
    """The platform's own kernel where it takes what is asked; else `Dense` for few queries, and `Chunked` for many.

    On a TPU that is `Splash`, on a GPU `Cudnn`. A step of generation, of one query, is always `Dense`.
    """

    few: Count = 512  # queries

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        kernel, why = self.choice(q_BTKGH, scoring)
        if (heard := _choices.get()) is not None:
            heard.append(f"Auto() -> {type(kernel).__name__}(), because {why}")
        return kernel(q_BTKGH, k_BSKH, v_BSKH, scoring)

    def choice(self, q_BTKGH: jax.Array, scoring: Scoring) -> tuple[Kernel, str]:
        """The kernel, and why, in words."""
        queries, own = q_BTKGH.shape[1], OWN.get(platform())
        why = own.refusal(q_BTKGH, scoring) if own is not None and queries > 1 else None
        if own is not None and queries > 1 and why is None:
            return own, f"this is a {platform()}"
        few = queries <= self.few
        count = f"{queries} queries are {'at most' if few else 'more than'} {self.few}"
        return Dense() if few else Chunked(), f"{why}, and {count}" if why else count


OWN: dict[str, Kernel] = {"tpu": Splash(), "gpu": Cudnn()}  # the kernels made for a platform

_choices: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("choices", default=None)


@contextlib.contextmanager
def choices() -> Iterator[list[str]]:
    """What `Auto` picks in programs that are traced within, in words."""
    made: list[str] = []
    token = _choices.set(made)
    try:
        yield made
    finally:
        _choices.reset(token)


def platform() -> str:
    """Where the program is to run, "cpu", "gpu" or "tpu": the mesh in use may be of another machine than this one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device_platform(device)
    return "gpu" if name in ("cuda", "rocm") else name


KERNELS = dict(Dense=Dense, Chunked=Chunked, Splash=Splash, Cudnn=Cudnn, Auto=Auto)
