"""A model that another run has."""

from __future__ import annotations

from llm_jax.core.errors import InputError
from llm_jax.models.model import Model


class Inherited(Model):
    """Stands in an experiment for the model of the run that its `init_from` names, until a training begins."""

    def filled(self, vocabulary, context, source=0, start=None):
        raise InputError("model=Inherited() stands for the model of a run: set init_from to the run's folder")
