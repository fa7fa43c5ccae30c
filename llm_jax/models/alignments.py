"""How a recurrent decoder consults its source: all of it in one vector, or by the first kinds of attention."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Init, contract
from llm_jax.core.parts import Count
from llm_jax.layers.tokens import Tokens
from llm_jax.models.cells import Feed, Matrix


@flax.struct.dataclass
class Read:
    """A source that was read: a vector for each token, and what an alignment compares with, made once."""

    x_BSD: jax.Array
    key_BSF: jax.Array | None
    tokens: Tokens
    forward: int = flax.struct.field(pytree_node=False)  # so many of D are of the forward direction, the rest backward


def summary(source: Read, segment_BT: jax.Array) -> jax.Array:
    """[B, T, D]: of each target token's own source, what each direction ends with."""
    match_BTS = segment_BT[:, :, None] == source.tokens.segment_BT[:, None, :]
    first_BT = match_BTS.argmax(-1)
    last_BT = match_BTS.shape[-1] - 1 - match_BTS[..., ::-1].argmax(-1)
    forward_BSD, backward_BSD = source.x_BSD[..., : source.forward], source.x_BSD[..., source.forward :]
    ends = jnp.take_along_axis(forward_BSD, last_BT[..., None], 1)
    return jnp.concatenate([ends, jnp.take_along_axis(backward_BSD, first_BT[..., None], 1)], -1)


def weights(score_BTS: jax.Array, segment_BT: jax.Array, source: Read) -> jax.Array:
    """Softmax in float32 over the tokens of each target token's own source."""
    match_BTS = segment_BT[:, :, None] == source.tokens.segment_BT[:, None, :]
    return jax.nn.softmax(jnp.where(match_BTS, score_BTS, -1e30), axis=-1)


class Alignment(nn.Module):
    """What of the source joins a token before the decoder's state (`enter`, `feed`), and after it (`combine`)."""

    compares: ClassVar[bool] = False  # whether `keys` gives anything

    width: Count = 0  # of what is compared; 0 stands for the model's
    init: Init = FanIn()

    def keys(self, x_BSD: jax.Array) -> jax.Array | None:
        """What a state is compared with, for each token of the source: made once."""
        return None

    def enter(self, x_BTD: jax.Array, summary_BTD: jax.Array) -> jax.Array:
        """The decoder's input, with what does not depend on its state."""
        return x_BTD

    def feed(self, source: Read) -> Feed | None:
        """What depends on the state before a token."""
        return None

    def combine(self, y_BTD: jax.Array, at: Tokens, source: Read) -> jax.Array:
        return y_BTD


class FixedContext(Alignment):
    """No attention: one vector stands for all of the source, and is shown with every token (Cho et al. 2014)."""

    @nn.compact
    def enter(self, x_BTD, summary_BTD):
        return x_BTD + Einsum("BTD,DF->BTF", dict(F=self.width), init=self.init, name="context")(summary_BTD)


class Bahdanau(Alignment):
    """Additive attention (Bahdanau et al. 2015): a small network compares the state before a token with each source."""

    compares: ClassVar[bool] = True

    def setup(self):
        sizes = dict(D=self.width, F=self.width)
        self.key = Einsum("BSD,DF->BSF", sizes, True, self.init)
        self.query = Matrix("DF", sizes, self.init)
        self.vector = Matrix("F", sizes, self.init)

    def keys(self, x_BSD):
        return self.key(x_BSD)

    def feed(self, source):
        query_DF, vector_F = self.query(), self.vector()
        assert source.key_BSF is not None
        key_BSF, x_BSD = source.key_BSF, source.x_BSD

        def feed(state_BD: jax.Array, segment_B: jax.Array) -> jax.Array:
            query_BF = contract("BD,DF->BF", state_BD, query_DF)
            compared_BSF = jnp.tanh(key_BSF.astype(jnp.float32) + query_BF[:, None]).astype(x_BSD.dtype)
            share_BTS = weights(contract("BSF,F->BS", compared_BSF, vector_F)[:, None], segment_B[:, None], source)
            return contract("BS,BSD->BD", share_BTS[:, 0].astype(x_BSD.dtype), x_BSD).astype(x_BSD.dtype)

        return feed


class Luong(Alignment):
    """Multiplicative attention (Luong et al. 2015, "general", global): the state after a token is compared."""

    compares: ClassVar[bool] = True

    def setup(self):
        self.key = Einsum("BSD,DF->BSF", dict(F=self.width), init=self.init)
        self.context = Einsum("BTD,DF->BTF", dict(F=self.width), init=self.init)
        self.state = Einsum("BTD,DF->BTF", dict(F=self.width), True, self.init)

    def keys(self, x_BSD):
        return self.key(x_BSD)

    def combine(self, y_BTD, at, source):
        assert source.key_BSF is not None
        share_BTS = weights(contract("BTD,BSD->BTS", y_BTD, source.key_BSF), at.segment_BT, source)
        context_BTD = contract("BTS,BSD->BTD", share_BTS.astype(y_BTD.dtype), source.x_BSD).astype(y_BTD.dtype)
        return jnp.tanh(self.context(context_BTD) + self.state(y_BTD))


ALIGNMENTS = dict(FixedContext=FixedContext, Bahdanau=Bahdanau, Luong=Luong)
