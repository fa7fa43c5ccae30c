"""Which keys a query may see: symbolic, so that a kernel can skip what a mask rules out, and combined with `&`."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax

from llm_jax.core.parts import Count, Part, Size
from llm_jax.layers.tokens import PADDING, Tokens

Band = tuple[float, float]  # tokens back and ahead: math.inf where there is no bound


class Mask(Part):
    """A rule between two tokens. Every mask also keeps a query to its own document, and away from empty slots."""

    def rule(self, queries: Tokens, keys: Tokens) -> jax.Array | None:
        """[B, T, S] bool beyond the segments, or None: no more than the segments rule."""
        raise NotImplementedError

    def span(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The keys, as slots [low, high), that queries in slots [start, stop) of the same `length` slots may see."""
        raise NotImplementedError

    def reach(self) -> int | None:
        """How many of the latest tokens a query can see, itself included; None: all of them."""
        return None

    def ahead(self) -> int | None:
        """How many of a document's first tokens are seen by tokens before them: 0 is causal; None: any token may be."""
        raise NotImplementedError

    def band(self) -> Band | None:
        """How far back and ahead a query sees, if distance within the document is all that decides; else None."""
        return None

    def between(self, queries: Tokens, keys: Tokens) -> jax.Array:
        """[B, T, S] bool: may the query see the key?"""
        same_BTS = queries.segment_BT[:, :, None] == keys.segment_BT[:, None, :]
        allowed_BTS = same_BTS & (keys.segment_BT != PADDING)[:, None, :]
        rule_BTS = self.rule(queries, keys)
        return allowed_BTS if rule_BTS is None else allowed_BTS & rule_BTS

    def __and__(self, other: Mask) -> Mask:
        return Both((self, other))


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every token of the document, before and after."""

    def rule(self, queries, keys):
        return None

    def span(self, start, stop, length):
        return 0, length

    def band(self):
        return math.inf, math.inf

    def ahead(self):
        return None


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """The token itself and those before it."""

    def rule(self, queries, keys):
        return keys.position_BT[:, None, :] <= queries.position_BT[:, :, None]

    def span(self, start, stop, length):
        return 0, stop

    def band(self):
        return math.inf, 0

    def ahead(self):
        return 0


@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """The last `size` tokens, itself included (Beltagy et al. 2020; Mistral)."""

    size: Size = 128

    def rule(self, queries, keys):
        distance_BTS = queries.position_BT[:, :, None] - keys.position_BT[:, None, :]
        return (distance_BTS >= 0) & (distance_BTS < self.size)

    def span(self, start, stop, length):
        return max(0, start - self.size + 1), stop

    def reach(self):
        return self.size

    def band(self):
        return self.size - 1, 0

    def ahead(self):
        return 0


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """The first `size` tokens of a document see each other; the rest is causal (Raffel et al. 2020)."""

    size: Count = 0

    def rule(self, queries, keys):
        causal_BTS = Causal().rule(queries, keys)
        return causal_BTS | (keys.position_BT < self.size)[:, None, :]

    def span(self, start, stop, length):
        return 0, length  # packed documents may begin anywhere in the row

    def ahead(self):
        return self.size


@dataclasses.dataclass(frozen=True)
class Both(Mask):
    """What all of `masks` allow."""

    masks: tuple[Mask, ...] = ()

    def rule(self, queries, keys):
        rules = [r for r in (m.rule(queries, keys) for m in self.masks) if r is not None]
        return functools.reduce(lambda a, b: a & b, rules) if rules else None

    def span(self, start, stop, length):
        spans = [m.span(start, stop, length) for m in self.masks]
        return max((low for low, _ in spans), default=0), min((high for _, high in spans), default=length)

    def band(self):
        bands = [band for m in self.masks if (band := m.band()) is not None]
        if len(bands) < len(self.masks):
            return None
        return min((back for back, _ in bands), default=math.inf), min((a for _, a in bands), default=math.inf)

    def reach(self):
        return min((r for m in self.masks if (r := m.reach()) is not None), default=None)

    def ahead(self):
        return min((a for m in self.masks if (a := m.ahead()) is not None), default=None)


MASKS = dict(Full=Full, Causal=Causal, SlidingWindow=SlidingWindow, Prefix=Prefix, Both=Both)
