"""How PyTorch spells the layers that every family is made of, and a config.json their settings."""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.parts import is_part, settings, show
from llm_jax.interop.family import Config
from llm_jax.interop.weights import Theirs

FREE = ("init", "out_init", "dropout", "kernel", "run", "remat")  # what does not change scores


def architecture(config: Config, default: str) -> str:
    """Which of a family's models config.json is of; `default` where it does not say."""
    return (config.get("architectures") or [default])[0]


def linear(ours: str, theirs: str, axes: str, bias: bool = True) -> dict[str, Theirs]:
    """A projection: `axes` are the letters that come out and those that go in, as PyTorch's matrices lie ("KGH D")."""
    found = {f"{ours}.kernel": Theirs(f"{theirs}.weight", axes)}
    return found | ({f"{ours}.bias": Theirs(f"{theirs}.bias", axes.split()[0])} if bias else {})


def norm(ours: str, theirs: str) -> dict[str, Theirs]:
    """A norm over D; one without a bias has no use for that entry."""
    return {f"{ours}.scale": Theirs(f"{theirs}.weight", "D"), f"{ours}.bias": Theirs(f"{theirs}.bias", "D")}


def within(prefix: str, names: dict[str, Theirs]) -> dict[str, Theirs]:
    """The map with `prefix` before each of our paths."""
    return {f"{prefix}{path}": theirs for path, theirs in names.items()}


def expressed(ours: Any, written: Any, where: str = "model") -> None:
    """Nothing, if `written`, the model that a config.json says, computes what `ours` does in evaluation.

    Raises:
      InputError: it does not: the family has no setting for a part of ours. The message names the part.
    """
    if is_part(ours) and type(ours) is type(written):
        for name in settings(ours):
            if name not in FREE:
                expressed(getattr(ours, name), getattr(written, name), f"{where}.{name}")
    elif isinstance(ours, tuple) and isinstance(written, tuple) and len(ours) == len(written):
        for i, (one, other) in enumerate(zip(ours, written, strict=True)):
            expressed(one, other, f"{where}.{i}")
    elif ours != written:
        raise InputError(
            f"{where}={show(ours, True)} cannot be written for this family, which has {show(written, True)}"
        )
