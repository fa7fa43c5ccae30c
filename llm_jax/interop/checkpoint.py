"""Checkpoints as others publish them: a Hugging Face folder (config.json and safetensors), or a .gguf file."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import tokenizers
from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.core.files import read_json, reading, user_path
from llm_jax.interop.configs.generation import begins, not_kept
from llm_jax.interop.configs.multimodal import is_multimodal, text_config, text_tensors
from llm_jax.interop.tokenizers.import_ import import_tokenizer
from llm_jax.interop.weights import Tensors, listed
from llm_jax.text.chat import ChatTemplate
from llm_jax.text.tokenizer import Tokenizer

CONFIG, GENERATION = "config.json", "generation_config.json"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER = "adapter_config.json"  # peft's


class Source(Protocol):
    """A published checkpoint.

    Attributes:
      config: what its config.json says, or what one would say.
      left: what of it an import leaves unread, a line for each kind.
      tensors: its tensors, by transformers' names.
      adds_bos, adds_eos: whether its tokenizer begins a plain text with the `bos` token, and ends it with `eos`.
    """

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def left(self) -> Sequence[str]: ...

    @property
    def tensors(self) -> Tensors: ...

    @property
    def adds_bos(self) -> bool: ...

    @property
    def adds_eos(self) -> bool: ...

    def tokenizer(self) -> tuple[Tokenizer, ChatTemplate]: ...


def open_source(path: str | Path) -> Source:
    """The checkpoint at `path`, of which nothing but the settings is read yet.

    Raises:
      InputError: there is none, or it is of a format that we do not read.
    """
    path = user_path(path)
    with reading(path):
        if path.is_file() and path.suffix == ".gguf":
            from llm_jax.interop.gguf.reader import Gguf  # the package `gguf` is an extra

            return Gguf(path)
        if path.is_dir():
            return Folder(path)
        if not path.exists():
            raise InputError(f"there is no {path}: name a Hugging Face folder, or a .gguf file")
    raise InputError(f"{path} is no Hugging Face folder and no .gguf file: name the folder that holds config.json")


class Folder:
    """A Hugging Face folder: config.json, model.safetensors (or shards and their index), tokenizer files."""

    def __init__(self, folder: Path):
        """Raises InputError: it lacks a file, or one is damaged; or it is no whole model that is read as it stands."""
        self.folder = folder
        with reading(folder):
            if (folder / ADAPTER).exists():
                raise InputError(
                    f"{folder} holds an adapter ({ADAPTER}), which belongs on a base model: merge the two first "
                    "(merge_and_unload of peft, then save_pretrained into another folder)"
                )
        with reading(path := folder / GENERATION):
            generation = read_json(path) if path.exists() else {}
        config = read_json(folder / CONFIG)
        if config.get("quantization_config"):
            raise InputError(f"{folder / CONFIG} has a quantization_config: use the checkpoint that is not quantised")
        self.left = [*_unread(folder), *not_kept(config, generation)]
        self.tensors: Tensors = SafeTensors(folder)
        if is_multimodal(config):
            config = text_config(config)
            self.tensors, images = text_tensors(self.tensors)
            self.left.append(f"the text model alone is read, without {len(images)} tensors of images: {listed(images)}")
        self.config = begins(config, generation)

    def tokenizer(self) -> tuple[Tokenizer, ChatTemplate]:
        """Raises InputError as `import_tokenizer`."""
        return self._imported

    @functools.cached_property
    def _imported(self) -> tuple[Tokenizer, ChatTemplate]:
        return import_tokenizer(self.folder, self.config.get("vocab_size"))

    @property
    def adds_bos(self) -> bool:
        """Raises InputError: the tokenizer puts something else before a text, or as `tokenizer`."""
        with_special, without, _ = self._framed
        return self._adds("bos", with_special[: _place(without, with_special)])

    @property
    def adds_eos(self) -> bool:
        """Raises InputError: the tokenizer puts something else after a text, or as `tokenizer`."""
        with_special, without, _ = self._framed
        return self._adds("eos", with_special[_place(without, with_special) + len(without) :])

    @property
    def separators(self) -> int | None:
        """How many `eos` the tokenizer puts between two texts; None for one, as we do where it does something else."""
        _, word, pair = self._framed
        special = self.tokenizer()[0].special
        before, after = ([special.get(role)] * adds for role, adds in (("bos", self.adds_bos), ("eos", self.adds_eos)))
        count = len(pair) - len(before) - 2 * len(word) - len(after)
        if count > 0 and pair == [*before, *word, *[special.get("eos")] * count, *word, *after]:
            return count if count > 1 else None
        logging.warning(
            "%s makes %s of two texts of the ids %s, which is not covered: two texts are given to this model with one "
            "eos between them", self.folder / "tokenizer.json", pair, word,
        )  # fmt: skip
        return None

    def _adds(self, role: str, found: Sequence[int]) -> bool:
        """Whether the ids `found` at an end of a text are the token with that role; there may be none."""
        if found and list(found) != [token := self.tokenizer()[0].special.get(role)]:
            where = dict(bos="before", eos="after")[role]
            if max(found) >= (rows := self.config.get("vocab_size", math.inf)):
                raise InputError(
                    f"{self.folder / 'tokenizer.json'} puts the id {max(found)} {where} a text, for which the model "
                    f"has no row: its embedding has {rows}; resize it (resize_token_embeddings of transformers)"
                )
            raise InputError(
                f"{self.folder / 'tokenizer.json'} puts the ids {listed([*map(str, found)])} {where} a text, "
                f"but the token {role} is {'not set' if token is None else token}: only that one is covered; "
                f"set {role}_token in tokenizer_config.json"
            )
        return bool(found)

    @functools.cached_property
    def _framed(self) -> list[list[int]]:
        """A text's ids with the special tokens that its tokenizer puts around it, and without; and its ids twice, with
        what is put around two texts and between them."""
        with reading(path := self.folder / "tokenizer.json"):
            rust = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        rust.no_padding()  # what was set when the file was saved is no part of what the tokenizer does to a text
        rust.no_truncation()
        special = {token.content for token in rust.get_added_tokens_decoder().values()}
        for text in ("a", *sorted(rust.get_vocab().keys() - special)):
            if without := rust.encode(text, add_special_tokens=False).ids:
                return [rust.encode(text).ids, without, rust.encode(text, text).ids]
        raise InputError(f"{path} is damaged: no text has a token")


def _place(part: Sequence[int], whole: Sequence[int]) -> int:
    """Where `part` begins in `whole`."""
    return next(at for at in range(len(whole)) if whole[at : at + len(part)] == part)


class SafeTensors:
    """The tensors of a folder, each read when it is asked for."""

    def __init__(self, folder: Path):
        """Raises InputError: there are none, a file is missing or damaged, or they are not where the index says."""
        self._where: dict[str, Any] = {}
        files, placed = _files(folder)
        for path in files:
            with reading(path):
                try:
                    file = safetensors.safe_open(path, "numpy")
                except safetensors.SafetensorError as error:
                    raise InputError(f"{path} is damaged: {error}") from None
            inside = file.keys()
            if lost := [name for name, where in placed.items() if where == path.name and name not in set(inside)]:
                raise InputError(f"{path} lacks {listed(lost)}, which {INDEX} says is there: download both again")
            self._where |= {name: file for name in inside if placed.get(name, path.name) == path.name}

    def names(self) -> Sequence[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Raises InputError: it does not hold floating-point numbers."""
        dtype = self._where[name].get_slice(name).get_dtype()
        if dtype not in FLOATS:
            raise InputError(f"{name} is of type {dtype}, which is not covered: it must be {', '.join(FLOATS)}")
        return self._where[name].get_tensor(name)


def _unread(folder: Path) -> list[str]:
    """A line about an index beside a file with all tensors; none if there is no such index."""
    with reading(folder):
        both = (folder / SINGLE).exists() and (folder / INDEX).exists()
    return [f"{SINGLE} is read, and {INDEX} beside it is not, as in transformers"] if both else []


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files with tensors, and the file that an index names for each tensor: none where one file is the whole.

    Never one that would be unpickled, which can run any code.
    """
    with reading(folder):
        if (folder / SINGLE).exists():  # before an index, which may be of other files, as in transformers
            return [folder / SINGLE], {}
        if (folder / INDEX).exists():
            placed = read_json(folder / INDEX).get("weight_map")
            if not isinstance(placed, dict):
                raise InputError(f"{folder / INDEX} is damaged: it has no weight_map")
            placed = {name: str(file) for name, file in placed.items()}
            files = [folder / file for file in sorted(set(placed.values()))]
            if missing := [path.name for path in files if path.parent != folder or not path.is_file()]:
                raise InputError(f"{folder} lacks {missing[0]}, which {INDEX} names: download it again")
            return files, placed
        if pickles := [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]:
            raise InputError(
                f"{folder} has only {pickles[0]}, a pickle, which can run any code: convert it to safetensors first "
                "(save_pretrained of transformers does)"
            )
    raise InputError(f"{folder} has no {SINGLE} and no {INDEX}")
