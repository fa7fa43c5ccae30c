"""Mixture of experts: of many feed-forward layers, each token goes through the few that a router chooses for it.

Shazeer et al. 2017; Fedus et al. 2022 (Switch). A row of a batch is a *group* (Lepikhin et al. 2020, GShard): room and
losses are counted in each alone, so that microbatches and devices, which hold whole rows, change nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.auxiliary import say
from llm_jax.core.dims import Einsum, FanIn, Init, contract, shard, weigh
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Part, Positive, Size, replace, transform
from llm_jax.layers.feedforward import Activation, FeedForward, Silu
from llm_jax.layers.tokens import PADDING, Tokens

ROUTING = ("auxiliary", "load_balance", "router_z", "dropped")  # what `routing` sums, by the names of the metrics


@flax.struct.dataclass
class Choice:
    """Which experts a router chose: a token's weight for each, 0 for those it does not go to (padding goes to none)."""

    weight_BTE: jax.Array
    chosen_BTE: jax.Array  # bool
    top_k: int = flax.struct.field(pytree_node=False)


Experts = Callable[[jax.Array, str, str, str, jax.Array | None], jax.Array]


class Dispatch(Part):
    """How tokens come to their experts, and back."""

    def __call__(self, x_BTD: jax.Array, choice: Choice, experts: Experts) -> tuple[jax.Array, jax.Array]:
        """The experts' weighted sum [B, T, D], and the share of each row's choices that were dropped, [B].

        `experts(x, given, each, out, weight)` maps `x` of letters `given` + D by way of `each` + F to `out` + D. `each`
        has an E, and what lies in it is multiplied by `weight` (None: by 1), also of letters `each`.
        """
        raise NotImplementedError

    def drops(self, top_k: int, experts: int) -> bool:
        """Whether a row of many tokens may lose choices that the same tokens, one after another, do not."""
        return False


@dataclasses.dataclass(frozen=True)
class Dropless(Dispatch):
    """Every expert works on every token, and those not chosen count 0. Exact, at the cost of all experts.

    The form for generation, for imported models, and for few experts. See `Capacity` for many.
    """

    def __call__(self, x_BTD, choice, experts):
        weight_EBT = jnp.einsum("BTE->EBT", choice.weight_BTE)
        return experts(x_BTD, "BT", "EBT", "BT", weight_EBT), jnp.zeros(x_BTD.shape[:1], jnp.float32)


@dataclasses.dataclass(frozen=True)
class Capacity(Dispatch):
    """An expert has room for `factor` x T x k / E of a row's T tokens; who finds none passes by, in the residual.

    Padding counts for nothing: a row is the same however long those beside it are. Earlier tokens go first, so that
    how much room there is depends on later ones, but not who finds it first. In a step of generation a row has one
    token, which always finds room: there may be drops in training that generation has not.
    """

    factor: Positive = 1.25

    def room(self, tokens: int, top_k: int, experts: int) -> int:
        """For a row of so many tokens."""
        return min(tokens, max(1, math.ceil(self.factor * tokens * top_k / experts)))

    def drops(self, top_k, experts):
        return self.factor * top_k < experts

    def __call__(self, x_BTD, choice, experts):
        rooms = [self.room(n, choice.top_k, choice.chosen_BTE.shape[-1]) for n in range(x_BTD.shape[1] + 1)]
        room_B11 = jnp.asarray(rooms)[choice.chosen_BTE.any(-1).sum(1)][:, None, None]
        before_BTE = jnp.cumsum(choice.chosen_BTE, axis=1, dtype=jnp.int32) - 1  # in the queue, where chosen
        kept_BTE = choice.chosen_BTE & (before_BTE < room_B11)
        place_BTE = jnp.where(kept_BTE, before_BTE, -1)  # -1: a row of zeros
        place_BTEC = jax.nn.one_hot(place_BTE, rooms[-1], dtype=x_BTD.dtype)
        x_EBCD = contract("BTEC,BTD->EBCD", place_BTEC, x_BTD).astype(x_BTD.dtype)
        y_EBCD = experts(shard(x_EBCD, "EBCD"), "EBC", "EBC", "EBC", None)
        weighted_BTEC = place_BTEC * choice.weight_BTE[..., None].astype(x_BTD.dtype)
        y_BTD = contract("BTEC,EBCD->BTD", weighted_BTEC, y_EBCD).astype(x_BTD.dtype)
        lost_B, all_B = (x.sum((1, 2), dtype=jnp.float32) for x in (choice.chosen_BTE & ~kept_BTE, choice.chosen_BTE))
        return shard(y_BTD, "BTD"), lost_B / jnp.maximum(all_B, 1.0)


class Router(nn.Module):
    """Scores every expert for every token, in float32: [B, T, E]."""

    experts: Size
    init: Init = FanIn()

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        sizes = dict(D=x_BTD.shape[-1], E=self.experts)
        kernel_DE = weigh(self, "kernel", "DE", sizes, self.init, x_BTD.shape[-1])
        return shard(contract("BTD,DE->BTE", x_BTD, kernel_DE), "BTE")


class MoE(FeedForward):
    """Gated experts, `hidden` wide each, of which a softmax router chooses `top_k` for each token (Qwen3-MoE, Mixtral).

    `normalize` makes a token's weights sum to 1. `balance` weighs the load-balancing loss (Fedus et al. 2022, equation
    4, with an expert's share of all choices: 1 when even), `z` the router's z-loss (Zoph et al. 2022, equation 5). Both
    are means over a row's tokens, summed over the layers, and reach the objective on the side.

    Raises:
      InputError: more experts are chosen than there are, or `bias` is set: experts have none.
    """

    activation: Activation = Silu()
    experts: Size = 8
    top_k: Size = 2
    normalize: bool = True
    dispatch: Dispatch = Dropless()
    balance: NonNegative = 0.01
    z: NonNegative = 0.001
    router_init: Init = FanIn()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, at: Tokens | None = None) -> jax.Array:
        if self.top_k > self.experts:
            raise InputError(f"MoE chooses top_k={self.top_k} of {self.experts} experts: raise experts, or lower top_k")
        if self.bias:
            raise InputError("the experts of MoE have no biases: set bias=False")
        real_BT = jnp.ones(x_BTD.shape[:2], bool) if at is None else at.segment_BT != PADDING
        score_BTE = Router(self.experts, self.router_init, name="router")(x_BTD)
        choice = self._choose(score_BTE, real_BT)
        y_BTD, dropped_B = self.dispatch(x_BTD, choice, self._experts)
        self._say(score_BTE, choice, real_BT, dropped_B)
        return y_BTD

    def _choose(self, score_BTE: jax.Array, real_BT: jax.Array) -> Choice:
        share_BTE = jax.nn.softmax(score_BTE, axis=-1)
        _, best = jax.lax.top_k(share_BTE, self.top_k)  # [B, T, k]
        chosen_BTE = jax.nn.one_hot(best, self.experts, dtype=bool).any(2) & real_BT[..., None]
        weight_BTE = jnp.where(chosen_BTE, share_BTE, 0.0)
        if self.normalize:
            weight_BTE = weight_BTE / jnp.maximum(weight_BTE.sum(-1, keepdims=True), 1e-30)
        return Choice(weight_BTE, chosen_BTE, self.top_k)

    def _experts(self, x: jax.Array, given: str, each: str, out: str, weight: jax.Array | None) -> jax.Array:
        sizes, active = dict(E=self.experts, F=self.hidden, D=x.shape[-1]), self.top_k / self.experts
        inward, outward = f"{given}D,EDF->{each}F", f"{each}F,EFD->{out}D"
        gate = self.activation(Einsum(inward, sizes, False, self.init, active, name="gate")(x))
        h = gate * Einsum(inward, sizes, False, self.init, active, name="up")(x)
        if weight is not None:
            h = h * weight[..., None].astype(h.dtype)
        return Einsum(outward, sizes, False, self.out_init, active, name="down")(h)

    def _say(self, score_BTE: jax.Array, choice: Choice, real_BT: jax.Array, dropped_B: jax.Array) -> None:
        """For each row: the two losses, their weighted sum, the share dropped, and that there was one more router."""
        real_BT1 = real_BT[..., None]
        count_B1 = jnp.maximum(real_BT1.sum(1), 1).astype(jnp.float32)
        share_BE = jnp.where(real_BT1, jax.nn.softmax(score_BTE, axis=-1), 0.0).sum(1) / count_B1
        chosen_BE = choice.chosen_BTE.sum(1).astype(jnp.float32) / (count_B1 * self.top_k)
        balance_B = self.experts * (share_BE * chosen_BE).sum(-1)
        log_BT = jax.nn.logsumexp(score_BTE, axis=-1)
        z_B = jnp.where(real_BT, log_BT**2, 0.0).sum(1) / count_B1[:, 0]
        say(self, dict(
            auxiliary=self.balance * balance_B + self.z * z_B, load_balance=balance_B, router_z=z_B,
            dropped=dropped_B, routers=jnp.ones_like(z_B),
        ))  # fmt: skip


def without_drops(model: Any) -> Any:
    """The model as it writes: with the same parameters, whatever it drops in training."""

    def change(part: Any) -> Any:
        drops = isinstance(part, MoE) and part.dispatch.drops(part.top_k, part.experts)
        return replace(part, dispatch=Dropless()) if drops else part

    return transform(model, change)


def routing(said: Mapping[str, jax.Array], weight_B: jax.Array) -> dict[str, jax.Array]:
    """Sums for an objective, from what its model's layers said and what each row's targets weigh; {} without routers.

    `auxiliary`, the losses by the layers' own settings, is summed over layers; `load_balance`, `router_z` and `dropped`
    (the share of choices that found no room) are means over them. Divided by the weight all are means over rows.
    """
    if "routers" not in said:
        return {}
    mean = {name: said[name] / said["routers"] for name in ROUTING if name != "auxiliary"}
    return {name: (value_B * weight_B).sum() for name, value_B in (mean | {"auxiliary": said["auxiliary"]}).items()}


DISPATCHES = dict(Dropless=Dropless, Capacity=Capacity)

MIXTURES = dict(MoE=MoE)
