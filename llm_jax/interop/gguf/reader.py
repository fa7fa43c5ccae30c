"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): settings, vocabulary and tensors in one.

A file is presented as what it was converted from: a config.json, tensors by transformers' names with their layout, a
tokenizer.json. The `gguf` package reads it and undoes the quantisation, a tensor at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import InputError, lookup
from llm_jax.core.files import reading
from llm_jax.interop.gguf import tokenizer
from llm_jax.interop.gguf.architectures import ARCHITECTURES, Architecture, Metadata, huggingface_name
from llm_jax.interop.tokenizers.import_ import assemble
from llm_jax.text.chat import ChatTemplate
from llm_jax.text.tokenizer import Tokenizer


class Gguf:
    """A .gguf file.

    Attributes:
      config: what config.json says of such a model.
      left: nothing.
      tensors: its tensors, in float32, by the names that transformers gives them.
      adds_bos, adds_eos: whether a plain text begins with the `bos` token, and ends with `eos`.
    """

    left: Sequence[str] = ()

    def __init__(self, path: str | Path):
        """Raises InputError: there is no such file, it is damaged, a part, or of an architecture not covered."""
        self.path = Path(path)
        reader = _reader(self.path)
        self._fields = dict(reader.fields)
        if (parts := self._field("split.count") or 1) > 1:
            number = 1 + (self._field("split.no") or 0)
            raise InputError(
                f"{self.path} is file {number} of {parts} of a split model, which is not covered: join them "
                "(llama-gguf-split --merge FIRST_FILE WHOLE_FILE of llama.cpp)"
            )
        arch = self._field("general.architecture")
        architecture = lookup(ARCHITECTURES, str(arch), "GGUF architecture")
        metadata = Metadata(str(arch), self._field, {t.name: t for t in reader.tensors})
        self.config: Mapping[str, Any] = architecture.config(metadata)
        self.tensors = GgufTensors(metadata.tensors, architecture, self.config)

    def _field(self, name: str) -> Any:
        """A value of the metadata; None if it is not there."""
        return self._fields[name].contents() if name in self._fields else None

    @property
    def adds_bos(self) -> bool:
        return tokenizer.adds_bos(self._field)

    @property
    def adds_eos(self) -> bool:
        return bool(self._field("tokenizer.ggml.add_eos_token"))

    def tokenizer(self) -> tuple[Tokenizer, ChatTemplate]:
        """Its tokenizer, and its chat template (ours, if it has none).

        Raises:
          InputError: the tokenizer is of a kind that is not covered.
        """
        return assemble(*tokenizer.published(self._field), rows=self.config["vocab_size"])


class GgufTensors:
    """The tensors of a file, each read and dequantised when it is asked for."""

    def __init__(self, tensors: Mapping[str, Any], architecture: Architecture, config: Mapping[str, Any]):
        """Raises InputError: there are tensors that the architecture does not have."""
        self._architecture, self._config = architecture, config
        named = {huggingface_name(architecture, name): tensor for name, tensor in tensors.items()}
        self._tensors = {name: tensor for name, tensor in named.items() if name is not None}

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(int(size) for size in reversed(self._tensors[name].shape))
        return shape[::-1] if self._architecture.transposed(name) else shape

    def size(self, name: str) -> int:
        """In bytes, as it lies in the file."""
        return int(self._tensors[name].n_bytes)

    def read(self, name: str) -> np.ndarray:
        """Raises InputError: it is of a type that the `gguf` package cannot undo."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite, which is looked for later
                values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError:
            raise InputError(f"{name} is of type {tensor.tensor_type.name}, which cannot be read") from None
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        values = values.T if self._architecture.transposed(name) else values
        return self._architecture.undo(name, values, self._config)


@functools.lru_cache(maxsize=1)
def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError("reading .gguf files needs the package gguf: pip install -e '.[interop]'") from None
    return gguf


def _reader(path: Path) -> Any:
    package = _package()
    with reading(path):
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        try:
            return package.GGUFReader(path)
        except OSError:
            raise
        except Exception as error:  # what the package raises for a damaged file has no narrower type
            raise InputError(f"{path} is no GGUF file, or damaged: {' '.join(str(error).split())}") from None
