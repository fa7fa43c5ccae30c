"""From a published checkpoint to a model with its parameters, and to a run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.core import parts
from llm_jax.core.tables import InputError, lookup
from llm_jax.interop import names
from llm_jax.interop.checkpoint import Source
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.family import Family
from llm_jax.models.model import Model
from llm_jax.parallel.layout import Layout, shardings


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
      InputError: we do not know it.
    """
    return lookup(FAMILIES, str(config.get("model_type")), "family of checkpoints")


def model_of(config: Mapping[str, Any]) -> Model:
    """Our model for a config.json.

    Raises:
      InputError: we do not know the family, or it has settings that we cannot honour.
    """
    model = family_of(config).model(config)
    return parts.check(model, "model")


def read(source: Source, layout: Layout | None = None, note: Callable[[int], object] | None = None) -> tuple[Model, Any]:
    """The model of a checkpoint and its parameters in float32, read tensor by tensor into the shards of `layout`.

    Args:
      layout: by default each of the devices holds its share.
      note: called with the size of each array in bytes, when it is there.

    Raises:
      InputError: as `model_of`; or tensors are missing, left over, or of another shape.
    """
    family, model = family_of(source.config), model_of(source.config)
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    mesh = (layout or Layout(data=1, fsdp=len(jax.devices()))).mesh()
    tensors: names.Tensors = source.tensors
    if family.prefix and not any(name.startswith(family.prefix) for name in tensors.names()):
        tensors = WithoutHead(tensors, family.prefix)
    params = names.load(boxed, family.names(model), tensors, shardings(boxed, mesh), family.ignored, note)
    return model, params


@dataclasses.dataclass(frozen=True)
class WithoutHead:
    """The tensors of a checkpoint that was saved without its head, under the names that they have with one."""

    inner: names.Tensors
    prefix: str

    def names(self) -> Sequence[str]:
        return [self.prefix + name for name in self.inner.names()]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inner.shape(name.removeprefix(self.prefix))

    def read(self, name: str) -> np.ndarray:
        return self.inner.read(name.removeprefix(self.prefix))
