"""Recurrent cells: what a layer knows of a text so far, and how a token changes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Fill, Init, contract, weigh
from llm_jax.layers.tokens import PADDING, Tokens

Parts = tuple[jax.Array, ...]
Feed = Callable[[jax.Array, jax.Array], jax.Array]  # of the state [B, D] and the segment [B] to more input [B, D]


@flax.struct.dataclass
class State:
    """What a layer knows: the parts of the cell's state, of which the first is its output, and of which document."""

    parts_BD: Parts
    segment_B: jax.Array


class Matrix(nn.Module):
    """A weight by itself: a loop over time cannot make one inside."""

    letters: str
    sizes: Mapping[str, int]
    init: Init

    @nn.compact
    def __call__(self) -> jax.Array:
        return weigh(self, "kernel", self.letters, self.sizes, self.init, self.sizes[self.letters[0]])


class Cell(nn.Module):
    """A layer of a recurrent network. Padding leaves its state alone, and a new document begins with a new one.

    So documents that share a row, and prompts padded on the left, are as if alone. Sums are in float32.
    """

    init: Init = FanIn()

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, at: Tokens, state: State | None = None, *, begin: Parts | None = None,
        feed: Feed | None = None, width: int | None = None,
    ) -> tuple[jax.Array, State]:  # fmt: skip
        """The outputs [B, T, D], and the state after them.

        Args:
          state: after the tokens before; None: there are none.
          begin: [B, T, D] each: the state from which a document would begin at each token; None: zeros.
          feed: gives more input for each token, from the state before it.
          width: of the state; by default that of `x_BTD`.
        """
        batch, _, width = *x_BTD.shape[:2], width or x_BTD.shape[2]
        sizes, dtype = dict(J=self.gates(), D=width, F=width), x_BTD.dtype
        input_BTJF = Einsum("BTD,DJF->BTJF", dict(J=self.gates(), F=width), True, self.init, name="input")(x_BTD)
        kernel_DJF = Matrix("DJF", sizes, self.init, name="recurrent")()
        fed_DJF = Matrix("DJF", sizes, self.init, name="fed")() if feed is not None else None
        bias_F = self.candidate_bias(width)
        state = self.empty(batch, width, dtype) if state is None else state
        begin = tuple(jnp.zeros_like(x_BTD[:, :, :1]) for _ in state.parts_BD) if begin is None else begin

        def step(state: State, now: tuple[jax.Array, jax.Array, Parts]) -> tuple[State, jax.Array]:
            input_BJF, segment_B, begin_BD = now
            real_B, new_B = segment_B != PADDING, segment_B != state.segment_B
            before = tuple(
                jnp.where((real_B & new_B)[:, None], b, p) for b, p in zip(begin_BD, state.parts_BD, strict=True)
            )
            total_BJF = input_BJF.astype(jnp.float32)
            if feed is not None and fed_DJF is not None:
                total_BJF = total_BJF + contract("BD,DJF->BJF", feed(before[0], segment_B), fed_DJF)
            after = self.next(before, total_BJF, contract("BD,DJF->BJF", before[0], kernel_DJF), bias_F)
            parts = tuple(
                jnp.where(real_B[:, None], a.astype(dtype), p) for a, p in zip(after, state.parts_BD, strict=True)
            )
            return State(parts, jnp.where(real_B, segment_B, state.segment_B)), parts[0]

        over_time = (input_BTJF.swapaxes(0, 1), at.segment_BT.T, tuple(b.swapaxes(0, 1) for b in begin))
        state, y_TBD = jax.lax.scan(step, state, over_time)
        return y_TBD.swapaxes(0, 1), state

    def gates(self) -> int:
        """How many vectors are computed of each token and the state."""
        raise NotImplementedError

    def parts(self) -> int:
        """How many vectors the state consists of."""
        return 1

    def candidate_bias(self, width: int) -> jax.Array | None:
        return None

    def next(self, before: Parts, input_BJF: jax.Array, state_BJF: jax.Array, bias_F: jax.Array | None) -> Parts:
        """The state after a token, from what the token and the state before it give to each gate."""
        raise NotImplementedError

    def empty(self, batch: int, width: int, dtype) -> State:
        zeros = jnp.zeros((batch, width), dtype)
        return State((zeros,) * self.parts(), jnp.full(batch, PADDING, jnp.int32))


class Elman(Cell):
    """The simple recurrent network (Elman 1990): a tanh of a token and of the state."""

    def gates(self):
        return 1

    def next(self, before, input_BJF, state_BJF, bias_F):
        return (jnp.tanh((input_BJF + state_BJF)[:, 0]),)


class GRU(Cell):
    """The gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as cuDNN has it."""

    def gates(self):
        return 3  # reset, update, candidate

    def candidate_bias(self, width):
        return weigh(self, "candidate_bias", "F", dict(F=width), Fill(0.0), 1, role="bias")

    def next(self, before, input_BJF, state_BJF, bias_F):
        reset_BF, update_BF = (jax.nn.sigmoid((input_BJF + state_BJF)[:, gate]) for gate in range(2))
        assert bias_F is not None
        from_state_BF = state_BJF[:, 2] + bias_F[None].astype(jnp.float32)
        candidate_BF = jnp.tanh(input_BJF[:, 2] + reset_BF * from_state_BF)
        return ((1 - update_BF) * candidate_BF + update_BF * before[0].astype(jnp.float32),)


class LSTM(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    def gates(self):
        return 4  # input, forget, candidate, output

    def parts(self):
        return 2

    def next(self, before, input_BJF, state_BJF, bias_F):
        total_BJF = input_BJF + state_BJF
        enter_BF, forget_BF, out_BF = (jax.nn.sigmoid(total_BJF[:, gate]) for gate in (0, 1, 3))
        memory_BF = forget_BF * before[1].astype(jnp.float32) + enter_BF * jnp.tanh(total_BJF[:, 2])
        return out_BF * jnp.tanh(memory_BF), memory_BF


CELLS = dict(Elman=Elman, GRU=GRU, LSTM=LSTM)
