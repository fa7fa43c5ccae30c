"""What llm_jax knows of one published kind of checkpoint: its settings and its names, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llm_jax.core.errors import InputError, lookup
from llm_jax.core.parts import show
from llm_jax.interop.weights import Names
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import GEGLU, Activation, GatedFeedForward, Gelu, Relu, Silu, SquaredRelu, SwiGLU
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack

Config = Mapping[str, Any]  # a config.json
Kind = TypeVar("Kind")


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint. A file of `families/` makes it, and ends with it.

    Attributes:
      architectures: what config.json's "architectures" says of its members; the first one is written on export.
      model: our model from a config.json; raises InputError for settings that it cannot honour.
      config: a config.json from our model; raises InputError where a part is of another kind. It need not look at every
        setting: an export reads the config back with `model`, and refuses if that is not the model it began with.
      names: where each of our parameters is found.
      ignored: patterns (of whole names) of tensors that hold nothing a model of ours reads, such as buffers.
      copies: for patterns of tensors that may be there as copies of another, tied weights, the name of that original
        (which may refer to groups of the pattern, as in `re.sub`).
      prefix: what stands before the names of a model with a head; a checkpoint without the head lacks it.
      skips_padding: whether positions are counted without config.json's padding token, which a text must not have.
    """

    architectures: tuple[str, ...]
    model: Callable[[Config], Model]
    config: Callable[[Model], dict[str, Any]]
    names: Callable[[Model], Names]
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    skips_padding: bool = False


def setting(config: Config, name: str, *allowed: Any, default: Any = None) -> Any:
    """`config[name]` (or `default`), which must be one of `allowed` where these are given.

    Raises:
      InputError: it is something else: the checkpoint is of a variant that is not covered.
    """
    value = config.get(name, default)
    if allowed and value not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise InputError(f"config.json has {name}={value!r}, which is not covered: it must be {choices}")
    return value


def need(config: Config, name: str) -> Any:
    """`config[name]`.

    Raises:
      InputError: there is none.
    """
    if config.get(name) is None:
        raise InputError(f"config.json has no {name}")
    return config[name]


def expect(part: Any, kind: type[Kind], where: str) -> Kind:
    """`part`, for an export to a family that has only this kind of it.

    Raises:
      InputError: it is of another kind.
    """
    if not isinstance(part, kind):
        raise InputError(f"{where} is {show(part)}, not {kind.__name__}")
    return part


# ------------------------------------------------------------------------------------------------------------- stacks


def stack_of(blocks: Sequence[Block]) -> Stack:
    """The blocks in a row, as repeats of the shortest pattern that makes them."""
    for size in range(1, len(blocks) + 1):
        repeats, rest = divmod(len(blocks), size)
        if not rest and list(blocks[:size]) * repeats == list(blocks):
            return Stack(tuple(blocks[:size]), repeats)
    raise InputError("config.json has no layers")


def blocks_of(stack: Stack) -> list[Block]:
    """Every block in a row."""
    return list(stack.pattern) * stack.repeats


# -------------------------------------------------------------------------------------------------------- activations

ACTIVATIONS: dict[str, Activation] = {
    "silu": Silu(), "swish": Silu(), "gelu": Gelu(), "gelu_pytorch_tanh": Gelu(tanh=True),
    "gelu_new": Gelu(tanh=True), "gelu_fast": Gelu(tanh=True), "relu": Relu(), "relu2": SquaredRelu(),
}  # fmt: skip


def activation(config: Config, name: str, default: str) -> Activation:
    """What config.json's setting `name` calls so.

    Raises:
      InputError: we have none of that name.
    """
    return lookup(ACTIVATIONS, config.get(name) or default, "activation")


def activation_name(part: Activation, usual: str = "") -> str:
    """The name in config.json; of several the family's `usual` one.

    Raises:
      InputError: it has none.
    """
    names = [name for name, known in ACTIVATIONS.items() if known == part]
    if names:
        return usual if usual in names else names[0]
    raise InputError(f"no published family has the activation {show(part, whole=True)}")


def gated(hidden: int, activation: Activation, bias: bool = False) -> GatedFeedForward:
    """A gated feed-forward layer by its usual name."""
    match activation:
        case Silu():
            return SwiGLU(hidden, bias=bias)
        case Gelu():
            return GEGLU(hidden, activation, bias)
    return GatedFeedForward(hidden, activation, bias)
