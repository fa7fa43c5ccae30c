"""Images with captions and classes, and the packaged digits."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError
from llm_jax.core.files import reading, user_path
from llm_jax.core.parts import Number, Positive, Size
from llm_jax.data.cache import Corpus
from llm_jax.data.documents import Document, Picture
from llm_jax.data.loader import Filler, Rows
from llm_jax.data.packing import One, Packing
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import check_several
from llm_jax.data.sources import Source

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNLABELLED = -1  # the class of a row that holds no image


@dataclasses.dataclass(frozen=True)
class Images(Data):
    """Pictures of a source, one a row, with their captions.

    A batch has, beside what `Data` puts into it of the captions, `image_BYXA` (float32) and `label_B` (int32, the
    number of the class; -1 in a row of padding). `ByHash` parts pictures by the hash of their pixels.

    The model gets `(pixels * scale - mean) / deviation`, in training and wherever it is asked later: pixels are those
    of the source, whose range `scale` knows (1/255 for bytes).

    Attributes:
      mean, deviation: of each channel, or one for all.
    """

    packing: Packing = One()
    scale: Positive = 1.0
    mean: tuple[Number, ...] = (0.0,)
    deviation: tuple[Positive, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.packing, One):
            raise InputError("an image has a row of its own: data.packing must be One()")

    def normalized(self, image_BYXA: np.ndarray) -> np.ndarray:
        """What the model gets of pixels as the source has them: float32.

        Raises:
          InputError: `mean` or `deviation` is neither one number nor one for each channel.
        """
        channels = image_BYXA.shape[-1]
        for name, given in (("mean", self.mean), ("deviation", self.deviation)):
            if len(given) not in (1, channels):
                raise InputError(
                    f"data.{name} has {len(given)} numbers, the images {channels} channels: give one, or one each"
                )
        if (self.scale, set(self.mean), set(self.deviation)) == (1.0, {0.0}, {1.0}):
            return image_BYXA.astype(np.float32)
        mean, deviation = (np.array(given, np.float32) for given in (self.mean, self.deviation))
        return ((image_BYXA.astype(np.float32) * np.float32(self.scale) - mean) / deviation).astype(np.float32)

    @property
    def _labelled(self):
        return True

    def blank(self, rows):
        picture: Any = self.documents("train")[0]
        _check([picture])
        return super().blank(rows) | _no_images(rows, picture.image_YXA.shape)

    def _check_training(self, documents):
        _check(documents)
        pictures: list[Any] = documents
        if pictures and all(picture.label >= 0 for picture in pictures):
            check_several([picture.label for picture in pictures])

    def _filler(self, *arguments: Any) -> Any:
        return PictureFiller(super()._filler(*arguments))

    def _corpora(self, tokenizer, split):
        parts = [part[split] for part in self._split_documents]
        _check([picture for part in parts for picture in part])
        return [
            None if corpus is None else Album.of(corpus, documents, self.normalized)
            for corpus, documents in zip(super()._corpora(tokenizer, split), parts, strict=True)
        ]


class Album(Corpus):
    """The captions of pictures as token ids, and beside them the pictures.

    Attributes:
      image_NYXA: float32.
      label_N: int32.
    """

    whole = True  # there is a picture, and its class
    image_NYXA: np.ndarray
    label_N: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, pictures: list[Any], normalized: Callable[[np.ndarray], np.ndarray]) -> Album:
        """The pictures whose captions are in `corpus`, `normalized` as the model gets them.

        Raises:
          InputError: one of them has no caption.
        """
        album = cls(corpus.path)
        album.image_NYXA = normalized(np.stack([picture.image_YXA for picture in pictures]))
        album.label_N = np.array([picture.label for picture in pictures], np.int32)
        if len(album.offsets) - 1 != len(pictures):
            raise InputError("a picture without a caption has no tokens: set data.rendering.bos, or name every picture")
        return album

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | dict(image_NYXA=self.image_NYXA, label_N=self.label_N)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.image_NYXA, self.label_N = state["image_NYXA"], state["label_N"]


def _check(documents: list[Any]) -> None:
    for document in documents:
        if not isinstance(document, Picture):
            raise InputError(f"Images needs pictures, not a {type(document).__name__}: use data=Data(...) for texts")
    shapes = sorted({picture.image_YXA.shape for picture in documents})
    if len(shapes) > 1:
        raise InputError(f"pictures must have one size, not {' and '.join(map(str, shapes))}: scale them")


def _no_images(rows: int, shape: tuple[int, ...]) -> HostBatch:
    return dict(image_BYXA=np.zeros((rows, *shape), np.float32), label_B=np.full(rows, UNLABELLED, np.int32))


@dataclasses.dataclass
class PictureFiller:
    """Fills batches with captions, and puts their pictures beside them."""

    captions: Filler

    @property
    def components(self) -> list[Rows]:
        return self.captions.components

    def __call__(self, component_B: np.ndarray, number_B: np.ndarray) -> HostBatch:
        batch = self.captions(component_B, number_B)
        albums: list[Any] = [rows.corpus for rows in self.components]
        batch |= _no_images(len(component_B), albums[0].image_NYXA.shape[1:])
        for c, (rows, album) in enumerate(zip(self.components, albums, strict=True)):
            if len(here := np.flatnonzero(component_B == c)):
                for start, _, which in rows.pieces(number_B[here]):
                    number = np.searchsorted(album.offsets, start, side="right") - 1
                    batch["image_BYXA"][here[which]] = album.image_NYXA[number]
                    batch["label_B"][here[which]] = album.label_N[number]
        return batch


# ---------------------------------------------------------------------------------------------------- files, packaged


@dataclasses.dataclass(frozen=True)
class ImageFolder(Source):
    """The images of a folder, in a folder for each class, whose name is the class's and the caption.

    Every image is scaled to `rows` x `columns` pixels (bilinear; its proportions may change), with 3 channels, red,
    green and blue, or 1, its brightness. Pixels are from 0 to 255: set `Images(scale=1/255)`. Hidden files are left
    out; any other file must be an image.

    Raises:
      InputError: there are no folders of images, or a file is none.
    """

    path: str
    rows: Size
    columns: Size
    channels: Literal[1, 3] = 3

    def documents(self) -> Iterator[Document]:
        for number, folder in enumerate(self._folders()):
            for file in sorted(folder.rglob("*")):
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
                    yield Picture(read_image(file, self.rows, self.columns, self.channels), folder.name, number)

    def class_names(self) -> tuple[str, ...]:
        return tuple(folder.name for folder in self._folders())

    def _folders(self) -> list[Path]:
        path = user_path(self.path)
        with reading(path):
            found = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
        if not found:
            raise InputError(f"there is no folder for a class in {path}: put the images of each class into one")
        return found


def read_image(file: str | Path, rows: int, columns: int, channels: int = 3) -> np.ndarray:
    """float32 [rows, columns, channels] from 0 to 255: an image file, scaled to that size, as `ImageFolder` has it.

    Raises:
      InputError: it is no image.
    """
    from PIL import Image, UnidentifiedImageError  # slow to import, and few read images

    with reading(path := user_path(file)):
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} is no image that can be read: {error}") from None
    scaled = image.resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(scaled, np.float32).reshape(rows, columns, channels)


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """1,797 handwritten digits of 8 x 8 pixels from 0 to 1 (scikit-learn, BSD; Alpaydin & Kaynak 1998, UCI).

    The caption is the digit's name in the place of `{}`.
    """

    caption: str = "{}"

    def documents(self) -> Iterator[Document]:
        spec = importlib.util.find_spec("sklearn")  # found, not imported: only its data is wanted
        if spec is None or spec.origin is None:
            raise InputError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
        file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        with reading(file):
            lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
        for line in lines:
            *pixels, label = map(int, line.split(","))
            image_YXA = np.array(pixels, np.float32).reshape(8, 8, 1) / 16
            yield Picture(image_YXA, self.caption.replace("{}", NAMES[label]), label)

    def class_names(self) -> tuple[str, ...]:
        return NAMES


SOURCES = dict(Digits=Digits, ImageFolder=ImageFolder)
