"""What the benchmark asks of a framework, and the shapes of model that it asks it for."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

Precision = Literal["float32", "bfloat16"]
PROMPT = 16  # tokens that decoding begins with


@dataclasses.dataclass(frozen=True)
class Shape:
    """A GPT without biases: LayerNorm before, GELU between, 4 times the width inside, learned positions, a tied head.

    Attributes:
      decode: how many sequences to write at once, each in a measurement of its own.
    """

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    vocabulary: int
    decode: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of a training step."""
        return self.batch * self.context

    @property
    def parameters(self) -> int:
        """Those that do arithmetic: all but the table of positions. The tied table counts once, as the head."""
        block = 12 * self.width**2 + 2 * self.width
        return self.layers * block + self.width + self.vocabulary * self.width

    @property
    def flops_per_token(self) -> int:
        """6N + 12·L·D·T: training, by the convention of PaLM's appendix B (Chowdhery et al. 2022)."""
        return 6 * self.parameters + 12 * self.layers * self.width * self.context


class Contender(Protocol):
    """A model of some shape and precision with its optimiser: clipping at norm 1, AdamW that decays matrices only.

    "bfloat16" means float32 parameters and optimiser, with matrix products of bfloat16 inputs. Every method returns
    only when the work is done.

    Attributes:
      platform: what it runs on, "cpu" or "gpu".
    """

    platform: str

    def train_step(self) -> float:
        """One step on the same random batch as ever; its loss."""
        ...

    def decode(self, batch: int, tokens: int) -> list[list[int]]:
        """`tokens` ids for each of `batch` sequences, greedily, with a cache, after the prompt 0, 1, ... 15."""
        ...

    def matmul(self, size: int) -> None:
        """One product of two square matrices, in the precision of the model's."""
        ...


SHAPES = dict(
    nanogpt_char=Shape(layers=4, heads=4, width=128, context=64, batch=12, vocabulary=65),
    six_384=Shape(layers=6, heads=6, width=384, context=256, batch=8, vocabulary=4096, decode=(1, 8)),
    gpt2_124m=Shape(layers=12, heads=12, width=768, context=1024, batch=1, vocabulary=50257, decode=(1, 8)),
)
