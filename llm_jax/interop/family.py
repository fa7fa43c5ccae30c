"""What llm_jax knows of one published kind of checkpoint: its settings and its names, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.core.tables import InputError
from llm_jax.interop.names import Names
from llm_jax.models.model import Model

Config = Mapping[str, Any]  # a config.json


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint. A file of `families/` makes it, and ends with it.

    Attributes:
      architectures: what config.json's "architectures" says of its members; the first one is written on export.
      model: our model from a config.json; raises InputError for settings that it cannot honour.
      config: a config.json from our model, in whole; raises InputError where the family has no setting for a part.
      names: where each of our parameters is found.
      ignored: patterns (of whole names) of tensors that hold nothing of their own: buffers, copies of tied weights.
    """

    architectures: tuple[str, ...]
    model: Callable[[Config], Model]
    config: Callable[[Model], dict[str, Any]]
    names: Callable[[Model], Names]
    ignored: tuple[str, ...] = ()


def setting(config: Config, name: str, *allowed: Any, default: Any = None) -> Any:
    """`config[name]` (or `default`), which must be one of `allowed` where these are given.

    Raises:
      InputError: it is something else: the checkpoint is of a variant that is not covered.
    """
    value = config.get(name, default)
    if allowed and value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise InputError(f"config.json has {name}={value!r}, which is not covered: it may be {choices}")
    return value
