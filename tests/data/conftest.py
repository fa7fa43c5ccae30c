import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from llm_jax.data.documents import Document, Text
from llm_jax.data.sources import Source
from llm_jax.text.recipes import Bytes


@dataclasses.dataclass(frozen=True)
class Words(Source):
    """A made-up corpus: `count` texts of 1 to `longest` letters, all different."""

    count: int = 60
    longest: int = 40
    seed: int = 0

    def documents(self) -> Iterator[Document]:
        rng = np.random.default_rng(self.seed)
        for i in range(self.count):
            letters = rng.integers(ord("a"), ord("z") + 1, rng.integers(1, self.longest + 1))
            yield Text(f"{i:03d}" + bytes(letters.astype(np.uint8)).decode())


@pytest.fixture
def words() -> type[Words]:
    return Words


@pytest.fixture(scope="session")
def tokenizer():
    return Bytes().train([])
