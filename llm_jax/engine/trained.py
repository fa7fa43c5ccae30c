"""A trained model: what a report looks at, and a language model to write or to embed with."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from llm_jax.core.parts import conform
from llm_jax.data.documents import Document, Rendering
from llm_jax.data.images import Images
from llm_jax.data.pipeline import SplitName
from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.model import Generator
from llm_jax.models.vision import ImageClassifier
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Finished:
    """A filled-in experiment that was trained.

    Attributes:
      params: of the whole model.
      frozen: what its objective reads beside them.
      lm: it as a language model, where it is one.
    """

    experiment: Experiment
    tokenizer: Tokenizer
    params: Any
    frozen: Any = None

    @functools.cached_property
    def lm(self) -> LanguageModel:
        return language_model(self.experiment, self.tokenizer, self.params)

    @property
    def rendering(self) -> Rendering:
        """How its documents became tokens."""
        data = self.experiment.data
        return data.rendering

    def documents(self, split: SplitName) -> list[Any]:
        data = self.experiment.data
        return data.documents(split)

    def shortened(self, document: Document) -> Any:
        """A document as the rows of its data show it, where it is too long for one."""
        data = self.experiment.data
        return data.shortened(document, self.tokenizer)


def language_model(experiment: Experiment, tokenizer: Tokenizer, params: Any) -> LanguageModel:
    """What a filled-in experiment trained, ready to write, embed or classify, in the precision that it computes with.

    Raises:
      InputError: its model does none of these.
    """
    model = conform(experiment.model, Generator | Encoder | Classifier | ImageClassifier, "model")
    data, precision = experiment.data, experiment.precision
    rendering = data.rendering.settled
    return LanguageModel(
        model, params, tokenizer, template=rendering.template, dtype=precision.dtype,
        bos=rendering.bos, eos=rendering.eos, prompt_eos=rendering.prompt_eos,
        problem_type=experiment.objective.problem_type, labels=data.labels,
        separators=rendering.separators, normalized=data.normalized if isinstance(data, Images) else None,
    )  # fmt: skip
