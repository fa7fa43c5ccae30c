"""An experiment, or a model alone, in words: its settings by path, its size, its cost. Nothing is initialised."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core import parts
from llm_jax.core.dims import is_lettered
from llm_jax.core.parts import Part
from llm_jax.engine.init_from import first_tokenizer, inherit
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment, assign
from llm_jax.layers.cache import Cache, Memory
from llm_jax.layers.kernels import choices
from llm_jax.models.alignments import Read
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.flops import CONVENTION, active, count
from llm_jax.models.model import Generator, Model

ROOMS = dict(
    embed="embedding", type_table="embedding", patches="patches", leading_vectors="patches", positions="positions",
    attention="attention", cross="cross-attention", ffn="ffn", norm="norms", project="projection", head="head",
    scores="head", pooling="pooling",
)  # fmt: skip  # the name of a submodule -> the room that it is counted in; any other is a room of its own
SIDES = ("", "image", "text", "encoder", "decoder", "actor", "critic")
COLUMNS = ("float32", "bfloat16")


def summary(experiment: Experiment) -> str:
    """The settings, then parameters by room, FLOPs a token and cache bytes a token.

    Raises:
      InputError: the experiment cannot be filled in (no data, for a tokenizer that depends on it).
    """
    data = experiment.data
    experiment = inherit(experiment)
    tokenizer = first_tokenizer(experiment)
    experiment = fill(experiment, tokenizer)
    program = Program(experiment, experiment.layout.mesh(), tokenizer)
    model = experiment.model
    lines = [f"{path} = {value}" for path, value in settings(experiment)]
    lines += ["", *cost(model, program.boxed, data.length), *trained(program)]
    template = program.template
    with jax.set_mesh(program.mesh), choices() as picked:
        program.sums(template.params, template.frozen)
    lines += told(picked)
    if flops := model.flops_per_token(program.boxed, data.length):
        tokens = data.batch * data.length * experiment.steps
        lines.append(
            f"{flops * tokens:.4g} FLOPs in all: {tokens:,} tokens in {experiment.steps:,} steps of "
            f"{data.batch} x {data.length}"
        )
    return "\n".join(lines)


def trained(program: Program) -> list[str]:
    """How many parameters are trained, and what the frozen ones take, where there are any."""
    moved, frozen = program.parted
    if not frozen:
        return []
    size, stored = count(moved), sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))
    return [
        f"{size:,} parameters are trained, {size / count(program.boxed):.2%} of the model's number; "
        f"the frozen ones take {stored:,} bytes",
        "  their gradients are not computed, though FLOPs are given as if they were: up to a third less is done",
    ]


@dataclasses.dataclass(frozen=True)
class Alone(Part):
    """A model without an experiment, its settings under the paths that they have in one."""

    model: Model


def model_summary(model: Model, assignments: list[str], modules: tuple[str, ...] = ()) -> str:
    """What `summary` says of a model by itself, in rows as long as its context, with what a user typed changed in it.

    Raises:
      InputError: there is no such setting, or the value does not fit.
    """
    alone = assign(Alone(model), assignments, modules)
    model = alone.model
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    lines = [f"{path} = {value}" for path, value in settings(alone)]
    length = model.limit() or 1
    with choices() as picked:
        jax.eval_shape(lambda key: model.init(key, model.blank(length), dropout_key=key), jax.random.key(0))
    return "\n".join([*lines, "", *cost(model, boxed, length), *told(picked)])


def told(picked: Sequence[str]) -> list[str]:
    """A line for each kernel that `Auto` picks."""
    return [f"attention kernel: {pick}" for pick in dict.fromkeys(picked)]


def settings(whole: Any) -> Iterator[tuple[str, str]]:
    """Each path that `--set` can change, with its value.

    A part without parts in it takes one line, and so does one that is just as an earlier one of its pattern.
    """
    seen, copies = [], ()
    for path, part in parts.walk(whole):
        if path.startswith(copies):
            continue
        twins = [at for at, known in seen if known == part and at.rpartition(".")[0] == path.rpartition(".")[0]]
        if twins and path.rpartition(".")[2].isdecimal():
            copies += (f"{path}.",)
            yield path, f"as {twins[0]}"
            continue
        seen.append((path, part))
        inside = [getattr(part, name) for name in parts.settings(part)]
        if path and not any(parts.is_part(i) or (isinstance(i, tuple) and any(map(parts.is_part, i))) for i in inside):
            yield path, parts.show(part, whole=True)
            continue
        if path:
            yield path, type(part).__name__
        for name, value in zip(parts.settings(part), inside, strict=True):
            if not parts.is_part(value) and not (isinstance(value, tuple) and any(map(parts.is_part, value))):
                yield f"{path}.{name}" if path else name, parts.show(value, whole=True)


def cost(model: Model, boxed: Any, length: int) -> list[str]:
    """Parameters by room, FLOPs and cache bytes a token, of rows of `length` tokens."""
    total, used = count(boxed), active(boxed)
    lines = [f"{total:,} parameters" + (f", of which {used:,} are active for a token" if used < total else "")]
    lines += [f"  {size:>15,}  {size / total:6.1%}  {room}" for room, size in rooms(boxed).items()]
    if flops := model.flops_per_token(boxed, length):
        token = "a target and a source token" if isinstance(model, EncoderDecoder) else "a token"
        use = "generation: forward" if isinstance(model, Generator) else "use: forward"
        lines += [
            f"FLOPs {token}, in rows of {length:,}",
            f"  {flops:>15.4g}  training: forward and backward",
            f"  {flops / 3:>15.4g}  {use}, a third of it",
            f"  {'convention':>15}  {CONVENTION}",
        ]
    if not isinstance(model, Generator):
        return [*lines, "cache bytes a token: none, as this model does not generate"]
    dtypes, context = ", ".join(COLUMNS), model.limit()
    if context:
        lines.append(f"cache bytes a token ({dtypes}), in a context of {context:,}")
    else:
        lines.append(f"cache bytes ({dtypes}), in texts of any length")
    kept = caches(model, context or length)
    return lines + ["".join(f"  {size:>15,}" for size in sizes) + f"  {what}" for what, sizes in kept]


def rooms(boxed: Any) -> dict[str, int]:
    """Parameters of each room of the model: embedding, positions, attention, ffn, norms, head, of each side apart."""
    sizes: dict[tuple[str, str], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_lettered):
        names = [key.key for key in path if key.key not in ("stack", "layers") and not key.key.startswith("block_")]
        side = names.pop(0) if names[0] in SIDES else ""
        room = "norms" if any("norm" in name for name in names) else ROOMS.get(names[0], names[0])
        sizes[side, room] = sizes.get((side, room), 0) + prod(leaf.value.shape)
    order = list(dict.fromkeys(ROOMS.values()))

    def place(at: tuple[str, str]) -> tuple[bool, int, int]:
        """As data flows: what comes after the sides is not of them."""
        number = order.index(at[1]) if at[1] in order else len(order)
        return not at[0] and number >= order.index("projection"), SIDES.index(at[0]), number

    return {f"{side} {room}".strip(): sizes[side, room] for side, room in sorted(sizes, key=place)}


def caches(model: Generator, context: int) -> list[tuple[str, tuple[int, ...]]]:
    """What generation keeps of a token: whether it is kept for good or for a while, and bytes in either precision.

    Keys and values are counted, and 8 bytes a layer of where the token stands; of a recurrent model, its states and
    what it read of a source.
    """
    found: dict[str, list[int]] = {}
    for column, dtype in enumerate(COLUMNS):
        cache = jax.eval_shape(lambda dtype=dtype: model.empty_cache(1, context, jnp.dtype(dtype)))
        for one in jax.tree.leaves(cache, is_leaf=lambda node: isinstance(node, (Cache, Memory, Read))):
            size = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
            what = "in all, whatever the length"
            if isinstance(one, (Cache, Memory, Read)):
                slots = one.tokens.position_BT.shape[-1]
                size //= slots
                rolls = isinstance(one, Cache) and one.rolling
                each = "each token of the source" if isinstance(one, (Memory, Read)) else "each token"
                what = f"each of the last {slots:,}" if rolls else each
            found.setdefault(what, [0] * len(COLUMNS))[column] += size
    return [(what, tuple(sizes)) for what, sizes in found.items()]
