"""A model that another run trained, to be asked and not trained: a teacher, a judge."""

from __future__ import annotations

import dataclasses
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part
from llm_jax.models.inherited import Inherited
from llm_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class Pretrained(Part):
    """The model of the run in the folder `run`, with its newest parameters.

    `model` is filled in when a training begins, and from then on the run's folder is not needed any more: the
    parameters are kept with what the training freezes. What a report asks is not: it is opened when the report is made.
    Both runs must have the same tokenizer, and write texts in the same way.
    """

    run: str
    model: Model = Inherited()

    def params(self, frozen: Any) -> Any:
        """The model's parameters, of what an objective gets as `frozen`.

        Raises:
          InputError: the run that is trained does not keep them.
        """
        kept = (frozen or {}).get("pretrained", {})
        if self.run not in kept:
            raise InputError(f"this run does not keep the parameters of {self.run}: it was trained without them")
        return kept[self.run]
