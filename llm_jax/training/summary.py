"""An experiment in words: its settings by path, its size, its cost."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import flax.linen as nn
import jax

from llm_jax.core import parts
from llm_jax.core.alphabet import is_lettered
from llm_jax.experiment import Experiment
from llm_jax.layers.kernels import choices
from llm_jax.models.flops import CONVENTION, active, count
from llm_jax.models.model import Generator, Model
from llm_jax.training.inherit import first_tokenizer, inherit
from llm_jax.training.loop import fill
from llm_jax.training.program import Program


def summary(experiment: Experiment) -> str:
    """The settings, then parameters by room, the kernels that `Auto` picks, FLOPs a token and cache bytes a token.

    Raises:
      InputError: the experiment cannot be filled in (no data, for a tokenizer that depends on it).
    """
    data, layout = _any(experiment.data), _any(experiment.layout)
    experiment = inherit(experiment)
    experiment = fill(experiment, first_tokenizer(experiment))
    lines = [f"{path} = {value}" for path, value in settings(experiment)]
    program = Program(experiment, layout.mesh())
    total, used = count(program.boxed), active(program.boxed)
    lines += ["", f"{total:,} parameters" + (f", of which {used:,} are active for a token" if used < total else "")]
    lines += [f"  {size:>13,}  {room}" for room, size in rooms(program.boxed).items()]
    with jax.set_mesh(program.mesh), choices() as picked:
        program.sums(nn.meta.unbox(program.boxed))
    lines += [f"attention kernel: {pick}" for pick in dict.fromkeys(picked)]
    model = experiment.model
    assert isinstance(model, Model)
    if flops := model.flops_per_token(program.boxed, data.length):
        tokens = data.batch * data.length * experiment.steps
        lines += [
            f"{flops:.4g} FLOPs a token, forward and backward ({CONVENTION})",
            f"{flops * tokens:.4g} FLOPs in all: {tokens:,} tokens in {experiment.steps:,} steps of "
            f"{data.batch} x {data.length}",
        ]
    if isinstance(model, Generator) and (context := model.limit()):
        cache = jax.eval_shape(lambda: model.empty_cache(1, context, _any(experiment.precision).dtype))
        size = sum(prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(cache))
        lines.append(f"{size / context:,.0f} cache bytes a token of context")
    return "\n".join(lines)


def settings(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Each path that `--set` can change, with its value; a part without parts in it takes one line."""
    for path, part in parts.walk(experiment):
        inside = [getattr(part, name) for name in parts.settings(part)]
        if path and not any(parts.is_part(i) or (isinstance(i, tuple) and any(map(parts.is_part, i))) for i in inside):
            yield path, parts.show(part, whole=True)
            continue
        if path:
            yield path, type(part).__name__
        for name, value in zip(parts.settings(part), inside, strict=True):
            if not parts.is_part(value) and not (isinstance(value, tuple) and any(map(parts.is_part, value))):
                yield f"{path}.{name}" if path else name, parts.show(value, whole=True)


def rooms(boxed: Any) -> dict[str, int]:
    """Parameters of each room of the model: embedding, positions, attention, ffn, norms, head."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_lettered):
        names = [key.key for key in path if key.key not in ("stack", "layers") and not key.key.startswith("block_")]
        room = "norms" if any("norm" in n for n in names) else names[0]
        sizes[room] = sizes.get(room, 0) + prod(leaf.value.shape)
    return sizes


def _any(part: Any) -> Any:
    return part
