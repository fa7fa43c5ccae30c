"""Generation: one pass over the prompts, then a compiled loop that adds a token to every row at each step.

Prompts of different lengths are padded on the left, so that all rows fill the same slot of the caches. Shapes are
rounded up, so that the next prompt of about the same length compiles nothing. Caches begin with room for a text of
some hundreds of tokens, and double when they are full: a text that may be long costs no more than it is long.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.finite import CAUSE
from llm_jax.core.quantized import is_quantized
from llm_jax.core.returned import unusable
from llm_jax.core.seeds import random_key
from llm_jax.inference.sampling import Sampler
from llm_jax.layers.cache import Cache
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.model import Generator, Model
from llm_jax.text.tokenizer import StreamDecoder

CHUNK = 64  # the most tokens a row gains in one call of the compiled loop
ROOM = 512  # tokens of a text that caches have room for at first
BEFORE_UNBOUNDED = 512  # tokens of a text where neither the caller nor the model bounds it


@flax.struct.dataclass
class Progress:
    """A batch under way."""

    key_B: jax.Array
    newest_B: jax.Array  # the latest token; one that was drawn has not been read yet
    position_B: jax.Array  # where it stands
    slot: jax.Array  # its slot in the caches
    seen_BV: jax.Array  # the tokens of the prompt and of the text so far
    done_B: jax.Array
    made: jax.Array  # how many tokens have been drawn
    sound_B: jax.Array  # whether the best score was a finite number, each time that a token was drawn
    temperature: jax.Array | None = None  # at which the log-probability of what is drawn is kept
    logp_B: jax.Array | None = None  # of the latest token

    def draw(self, logits_BV: jax.Array, sampler: Sampler, stops_V: jax.Array, never_V: jax.Array) -> Progress:
        """With the next token drawn: each step of each row has a key of its own, whoever else is in the batch."""
        vocabulary = self.seen_BV.shape[1]  # the tokenizer's; a model may have been given more
        key_B = jax.vmap(jax.random.fold_in, (0, None))(self.key_B, self.made)
        logits_BV = jnp.where(never_V[None], -jnp.inf, logits_BV[:, :vocabulary])
        best_B = logits_BV.max(-1)  # NaN if one of them is
        newest_B = sampler.draw(key_B, logits_BV, self.seen_BV)
        if not isinstance(newest_B, jax.Array) or (newest_B.shape, newest_B.dtype) != (key_B.shape, jnp.int32):
            raise unusable(f"{type(sampler).__name__}.draw()", newest_B, f"int32 [{len(key_B)}]: a token for each row")
        logp_B = None
        if self.temperature is not None:
            log_BV = jax.nn.log_softmax(logits_BV / self.temperature, axis=-1)
            logp_B = jnp.take_along_axis(log_BV, newest_B[:, None], axis=-1)[:, 0]
        return dataclasses.replace(
            self,
            logp_B=logp_B,
            newest_B=newest_B,
            position_B=self.position_B + 1,
            slot=self.slot + 1,
            seen_BV=self.seen_BV | (newest_B[:, None] == jnp.arange(vocabulary)[None]),
            done_B=self.done_B | stops_V[newest_B],
            made=self.made + 1,
            sound_B=self.sound_B & (self.done_B | jnp.isfinite(best_B)),
        )


def row_keys(seed: int, rows: Sequence[int]) -> jax.Array:
    """A key for each of these rows of a batch. It depends on the seed and the row's number alone.

    Raises:
      InputError: the seed is no whole number from 0 to 2^63 - 1.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(random_key(seed), jnp.asarray(rows, jnp.uint32))


def prepare(model: Model, params: Any, dtype) -> Any:
    """The parameters as steps want them, in `dtype`. Done once, not for every token; what is so already is no copy."""

    def cast(x: Any) -> Any:
        if is_quantized(x):
            return x.astype(dtype)
        return jnp.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else None)

    return model.prepared(jax.tree.map(cast, params, is_leaf=is_quantized))


class Generation:
    """Texts in the making, one for each prompt: `advance` until `finished`.

    Attributes:
      end_B: int32, the token that ended each text; -1: none has.
      logps: for each text the log-probability of each of its tokens, with the one that ended it; see `logps_at`.
    """

    def __init__(
        self, model: Generator, params: Any, prompts: Sequence[Sequence[int]], *,
        max_tokens: int | Sequence[int] | None, sampler: Sampler, key_B: jax.Array, stops: Iterable[int],
        vocabulary: int, dtype, never: Iterable[int] = (), beside: Mapping[str, Any] | None = None,
        logps_at: float | None = None,
    ):  # fmt: skip
        """Reads the prompts and draws the first token of each text.

        Args:
          params: what `prepare` returned.
          prompts: token ids, at least one each.
          max_tokens: the most tokens a text gets, or a number for each; None: as many as the context has room for after
            its prompt.
          key_B: a key for each row (`row_keys`).
          stops: tokens that end a text, and are not part of it.
          vocabulary: the ids that may be drawn are below it.
          dtype: of the caches; the one that `params` were prepared in.
          never: tokens that are not drawn, however likely.
          beside: what else the model reads with each prompt, such as `image_BYXA` (`Generator.beside`).
          logps_at: the temperature at which log-probabilities are kept, among the tokens that may be drawn; None: none
            are.

        Raises:
          InputError: a setting is out of range, a prompt is empty, or with its text it is longer than the context; or
            the model sees tokens ahead that are not written yet; or it reads something else `beside` the prompts.
        """
        sampler.check()
        beside = beside or {}
        _check_beside(model, len(prompts), beside)
        self._most_B = _most(model, prompts, max_tokens)
        most = int(self._most_B.max())
        longest = max(map(len, prompts))
        padded = min(round_up(longest, finely=False), model.reads() or round_up(longest, finely=False))
        tokens_BT = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, padded - len(prompt) :] = prompt
        stops_V, never_V = np.zeros(vocabulary, bool), np.zeros(vocabulary, bool)
        stops_V[list(stops)] = True
        never_V[list(never)] = True
        length_B = np.array([len(p) for p in prompts], np.int32)
        opening = model.opening()
        begun = padded if opening is None else len(opening)
        self._slots, self._most_slots = (round_up(begun + n, finely=True) for n in (min(ROOM, most), most))

        self._model, self._params, self._sampler, self._max_tokens = model, params, sampler, most
        self._stops_V, self._never_V = stops_V, never_V
        self._open_B = np.ones(len(prompts), bool)
        self.end_B = np.full(len(prompts), -1, np.int32)
        logits_BV, self._caches, rows = _read(
            model, self._slots, vocabulary, jnp.dtype(dtype), params, tokens_BT, length_B, key_B, beside
        )
        self.logps: list[list[float]] = [[] for _ in prompts]
        if logps_at is not None:
            rows = dataclasses.replace(rows, temperature=jnp.float32(logps_at), logp_B=jnp.zeros(len(prompts)))
        self._rows = _draw(rows, logits_BV, sampler, stops_V, never_V)
        self._filled, self._made = begun, 0  # the token that was just drawn fills a slot when it is read

    @property
    def finished(self) -> bool:
        return self._made == self._max_tokens or not self._open_B.any()

    def close(self, row: int) -> None:
        """Nothing more is wanted of the row."""
        self._open_B[row] = False

    def advance(self, most: int = CHUNK) -> list[list[int]]:
        """The next tokens of each row, `most` or fewer; none of a row that is closed. How many makes no difference.

        Raises:
          InputError: the model's scores for a token are no finite numbers.
        """
        if self._made == 0:  # drawn when the prompts were read
            new_BN, logp = np.asarray(self._rows.newest_B)[:, None], self._rows.logp_B
            logp_BN = None if logp is None else np.asarray(logp)[:, None]
        else:
            if self._filled == self._slots:
                self._grow()
            count = min(most, CHUNK, self._max_tokens - self._made, self._slots - self._filled)
            rows = dataclasses.replace(self._rows, done_B=jnp.asarray(~self._open_B))
            self._caches, self._rows, new, logp, made = _go_on(
                self._model, self._params, self._caches, rows, self._sampler, self._stops_V, self._never_V, count
            )
            new_BN = np.asarray(new)[:, : int(made)]
            logp_BN = None if logp is None else np.asarray(logp)
            self._filled += new_BN.shape[1]
        if not (sound_B := np.asarray(self._rows.sound_B)).all():
            raise InputError(
                f"the model's scores for the next token of text {np.argmin(sound_B)} are not finite: {CAUSE}"
            )
        room_B, open_B = self._most_B - self._made, self._open_B.copy()
        self._made += new_BN.shape[1]
        said = [self._take(row, new_BN[row, : room_B[row]]) for row in range(len(new_BN))]
        if logp_BN is not None:
            for row in np.flatnonzero(open_B):
                ended = int(self.end_B[row] >= 0)
                self.logps[row] += logp_BN[row, : len(said[row]) + ended].tolist()
        return said

    def _grow(self) -> None:
        """Copies what is in the caches into longer ones: one after another, as there may be no room for all twice."""
        slots = min(2 * self._slots, self._most_slots)
        caches, tree = jax.tree.flatten(self._caches, is_leaf=lambda node: isinstance(node, Cache))
        self._caches = None
        for number, cache in enumerate(caches):  # a source that was read, or a recurrent state, stays as it is
            if isinstance(cache, Cache):
                caches[number] = _longer(cache, slots - self._slots)
        self._caches, self._slots = tree.unflatten(caches), slots

    def _take(self, row: int, new_N: np.ndarray) -> list[int]:
        if not self._open_B[row]:
            return []
        ends = np.flatnonzero(self._stops_V[new_N])
        if ends.size:
            self._open_B[row] = False
            self.end_B[row] = new_N[ends[0]]
            new_N = new_N[: ends[0]]
        if self._made >= self._most_B[row]:
            self._open_B[row] = False
        if (masked_N := new_N[self._never_V[new_N]]).size:
            wanted = "tokens whose logit is not -infinity"
            raise unusable(f"{type(self._sampler).__name__}.draw()", f"token {masked_N[0]}", wanted)
        return new_N.tolist()


def room(model: Generator, prompt: Sequence[int]) -> int | None:
    """The most tokens that a model can write after a prompt; 0: it cannot read it. None: there is no bound.

    The last of them is drawn and never read, so it takes no place of the context: as much as a row of data teaches.
    """
    opening, context, reads = model.opening(), model.limit(), model.reads()
    if not prompt or len(prompt) < model.ahead() or (reads is not None and len(prompt) > reads):
        return 0
    return None if context is None else max(0, context + 1 - len(prompt if opening is None else opening))


def _most(
    model: Generator, prompts: Sequence[Sequence[int]], max_tokens: int | Sequence[int] | None
) -> np.ndarray:  # fmt: skip
    """[B]: the most tokens that each text gets. Raises as `Generation` does."""
    apart = isinstance(max_tokens, list | tuple | np.ndarray)  # a number for each, as `room` tells them
    asked: list[int | None] = (
        [*cast("Sequence[int]", max_tokens)] if apart else [cast("int | None", max_tokens)] * len(prompts)
    )
    if len(asked) != len(prompts):
        raise InputError(f"max_tokens has {len(asked)} numbers for {len(prompts)} prompts: give one each, or one")
    for number in asked:
        if number is not None:
            check_max_tokens(number)
    context, ahead, most = model.limit(), model.ahead(), []
    opening = model.opening()  # None: the text follows the prompt in the same row
    reads = None if opening is None else model.reads()
    for number, (prompt, wanted) in enumerate(zip(prompts, asked, strict=True)):
        where = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if not prompt:
            raise InputError(f"{where} is empty: there is no token to go on from")
        if len(prompt) < ahead:
            raise InputError(
                f"{where} has {len(prompt)} tokens, but the model reads the first {ahead} of a text at once: "
                "lengthen it"
            )
        if reads is not None and len(prompt) > reads:
            raise InputError(f"{where} has {len(prompt)} tokens, and the model reads at most {reads}: shorten it")
        left = BEFORE_UNBOUNDED if context is None else context - len(prompt if opening is None else opening)
        left += apart and left >= 0  # what is told for each text may use the place after the context: it is not read
        if context is not None and left < (wanted or 1):
            advice = f"ask for at most {left} tokens" if left > 0 else f"shorten it to at most {context - 1} tokens"
            raise InputError(
                f"{where} has {len(prompt)} tokens, and with max_tokens={wanted or 1} that is more than the "
                f"model's context of {context}: {advice}"
            )
        most.append(wanted or left)
    return np.array(most)


def check_max_tokens(max_tokens: int) -> None:
    """Raises InputError: it is no whole number, 1 or more."""
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, numbers.Integral) or max_tokens < 1:
        raise InputError(f"max_tokens must be 1 or more, not {max_tokens!r}: a whole number")


def _check_beside(model: Generator, rows: int, beside: Mapping[str, Any]) -> None:
    needed = model.beside()
    if set(beside) != set(needed):
        what = f"{' and '.join(needed)} beside each prompt" if needed else "text alone"
        raise InputError(
            f"{type(model).__name__} reads {what}, but was given {' and '.join(beside) or 'prompts alone'}"
        )
    for name, value in beside.items():
        if len(value) != rows:
            raise InputError(f"{name} has {len(value)} rows for {rows} prompts: give one each")


def round_up(length: int, finely: bool) -> int:
    """The next power of two (from 16), or with `finely` the next of four steps between two powers."""
    power = max(16, 1 << (length - 1).bit_length())
    step = max(16, power // 8) if finely else power
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _read(model: Generator, slots: int, vocabulary: int, dtype, params: Any, tokens_BT, length_B, key_B, beside):
    """Reads prompts that end at the right edge of `tokens_BT`: the next tokens' scores, `slots` of caches, the rows."""
    batch, padded = tokens_BT.shape
    position_BT = jnp.arange(padded, dtype=jnp.int32)[None] - (padded - length_B)[:, None]
    real_BT = position_BT >= 0
    at = Tokens(jnp.maximum(position_BT, 0), jnp.where(real_BT, 0, PADDING))
    logits_BV, caches = model.apply({"params": params}, tokens_BT, at, slots, dtype, method="read", **beside)
    if (opening := model.opening()) is not None:  # the prompt was read apart: the text has its own beginning
        padded, length_B = len(opening), jnp.full_like(length_B, len(opening))
        tokens_BT = jnp.broadcast_to(jnp.array(opening, jnp.int32)[None], (batch, padded))
        real_BT = jnp.ones((batch, padded), bool)
    counted_BT = jnp.where(real_BT, tokens_BT, vocabulary)  # out of range: a padded slot is no token seen
    seen_BV = jnp.zeros((batch, vocabulary), bool).at[jnp.arange(batch)[:, None], counted_BT].set(True, mode="drop")
    rows = Progress(
        key_B=key_B, newest_B=tokens_BT[:, -1], position_B=length_B - 1, seen_BV=seen_BV,
        done_B=jnp.zeros(batch, bool), slot=jnp.int32(padded - 1), made=jnp.int32(0), sound_B=jnp.ones(batch, bool),
    )  # fmt: skip
    return logits_BV, caches, rows


_longer = jax.jit(Cache.longer, static_argnums=1)


@jax.jit
def _draw(rows: Progress, logits_BV: jax.Array, sampler: Sampler, stops_V, never_V) -> Progress:
    """`Progress.draw`, compiled apart from reading: prompts of another length compile the model only."""
    return rows.draw(logits_BV, sampler, stops_V, never_V)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _go_on(model: Generator, params: Any, caches: Any, rows: Progress, sampler: Sampler, stops_V, never_V, count):
    """Up to `count` more tokens for the rows that are not done.

    Returns:
      Caches, rows, their tokens [B, CHUNK], the log-probabilities of these (None: they are not kept), and how many.
    """

    def unfinished(carry: tuple[Any, Progress, jax.Array, jax.Array | None, jax.Array]) -> jax.Array:
        _, rows, _, _, made = carry
        return (made < count) & ~rows.done_B.all()

    def step(carry: tuple[Any, Progress, jax.Array, jax.Array | None, jax.Array]):
        caches, rows, new_BN, logp_BN, made = carry
        at = Tokens(rows.position_B[:, None], jnp.zeros_like(rows.position_B)[:, None])
        logits_BV, caches = model.apply(
            {"params": params}, rows.newest_B[:, None], at, caches, rows.slot, method="last_scores"
        )
        rows = rows.draw(logits_BV, sampler, stops_V, never_V)
        if logp_BN is not None:
            logp_BN = logp_BN.at[:, made].set(rows.logp_B)
        return caches, rows, new_BN.at[:, made].set(rows.newest_B), logp_BN, made + 1

    new_BN = jnp.zeros((rows.newest_B.shape[0], CHUNK), jnp.int32)
    logp_BN = None if rows.logp_B is None else jnp.zeros(new_BN.shape)
    return jax.lax.while_loop(unfinished, step, (caches, rows, new_BN, logp_BN, jnp.int32(0)))


class Writer:
    """Tokens to text in whole characters, up to the first of the stop strings, which may span tokens."""

    def __init__(self, stream: StreamDecoder, stop: Sequence[str]):
        self._stream, self._stop = stream, stop
        self._held = ""  # what may turn out to begin a stop string
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """The text that is certain once these tokens are in; sets `stopped` when a stop string is complete."""
        said = []
        for token in ids:
            if self.stopped:
                break
            said.append(self._add(self._stream.push(token)))
        return "".join(said)

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        said = self._add(self._stream.flush())
        rest, self._held = self._held, ""
        return said + rest

    def _add(self, text: str) -> str:
        whole = self._held + text
        found = [at for stop in self._stop if (at := whole.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return whole[: min(found)]
        begun = next((i for i in range(len(whole)) if any(s.startswith(whole[i:]) for s in self._stop)), len(whole))
        self._held = whole[begun:]
        return whole[:begun]
