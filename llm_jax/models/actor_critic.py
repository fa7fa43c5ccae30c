"""A policy with a critic beside it, as PPO trains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from llm_jax.core.parts import conform, replace
from llm_jax.layers.tokens import Tokens
from llm_jax.models.heads import Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.models.model import Generator


class ActorCritic(Generator):
    """Writes as its `actor` does; its `critic` puts a value on the text so far.

    The critic has a backbone of its own, so that the value's loss cannot disturb what the actor knows. (One trunk for
    both would halve the memory.)
    """

    actor: Generator | Inherited
    critic: Scorer

    @property
    def _writer(self) -> Generator:
        return conform(self.actor, Generator, "model.actor")

    def __call__(self, tokens_BT, at=None, *, caches=None, start=0, dropout_key=None):
        if self.is_initializing():
            self.critic(tokens_BT, at)
        return self._writer(tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key)

    def values(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """[B, T] float32: the value of the text before each of a batch's targets."""
        return self.critic(batch["tokens_BT"], Tokens(batch["position_BT"], batch["segment_BT"]))

    def hidden(self, tokens_BT, at=None, *, caches=None, start=0, dropout_key=None):
        return self._writer.hidden(tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key)

    def score(self, x_BTD):
        return self._writer.score(x_BTD)

    def predict(self, batch, dropout_key):
        return self._writer.predict(batch, dropout_key)

    def last_scores(self, tokens_BT, at, caches, start):
        return self._writer.last_scores(tokens_BT, at, caches, start)

    def empty_cache(self, batch, length, dtype):
        return self._writer.empty_cache(batch, length, dtype)

    def filled(self, vocabulary, context, source=0, start=None):
        critic = self.critic.filled(vocabulary, context)
        return replace(self, actor=self.actor.filled(vocabulary, context), critic=critic)

    def trunks(self) -> tuple[str, ...]:
        """Both begin as the model that they are built on."""
        return ("actor", "critic.backbone")

    def prepared(self, params):
        return {**params, "actor": self.actor.prepared(params["actor"])}

    def ahead(self):
        return self._writer.ahead()

    def limit(self):
        return self.actor.limit()

    def reads(self):
        return self.actor.reads()

    def words(self):
        return self.actor.words()

    def flops_per_token(self, boxed: Any, length):
        parts = (self.actor, boxed["actor"]), (self.critic, boxed["critic"])
        return sum(part.flops_per_token(inner, length) for part, inner in parts)


MODELS = dict(ActorCritic=ActorCritic)
