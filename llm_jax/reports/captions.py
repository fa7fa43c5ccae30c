"""What a finished captioner says of pictures, in numbers and in a figure."""

from __future__ import annotations

import dataclasses
import io
import math
import operator
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Size, conform
from llm_jax.data.answers import answer_of
from llm_jax.data.documents import Picture
from llm_jax.data.pipeline import SplitName
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Finding, Report
from llm_jax.models.model import Generator


@dataclasses.dataclass(frozen=True)
class Captions(Report):
    """The share of pictures whose caption the model gives exactly, decoding greedily; the first `limit` (0: all).

    The figure shows `drawn` of them, mistakes first.
    """

    split: SplitName = "validation"
    limit: Count = 0
    batch: Size = 500
    drawn: Count = 40

    def check(self, planned):
        self._pictures(planned)
        model = conform(planned.lm.model, Generator, "model")
        if set(model.beside()) != {"image_BYXA"}:
            name = type(model).__name__
            raise InputError(f"Captions needs a model that writes of images, such as a Captioner, not a {name}")

    def _pictures(self, finished: Finished) -> list[Picture]:
        found = [d for d in finished.documents(self.split) if isinstance(d, Picture)][: self.limit or None]
        if not found:
            raise InputError(f"Captions needs pictures, and the {self.split} documents have none: use data=Images(...)")
        return found

    def __call__(self, finished):
        pictures, lm = self._pictures(finished), finished.lm
        wanted = [answer for p in pictures if (answer := answer_of(p, finished.tokenizer, finished.rendering))]
        longest, room = max(answer.tokens for answer in wanted) + 1, lm.room("")
        most = longest if room is None else min(longest, room)
        said: list[str] = []
        for i in range(0, len(pictures), self.batch):
            images = [p.image_YXA for p in pictures[i : i + self.batch]]
            said += lm.generate([""] * len(images), max_tokens=[most] * len(images), temperature=0.0, images=images)
        right_N = [caption == answer.taught for caption, answer in zip(said, wanted, strict=True)]
        line = f"{self.split}: {sum(right_N)}/{len(pictures)} captions exact"
        finding = Finding([line], {f"{self.split}_exact_match": sum(right_N) / len(pictures)})
        if self.drawn:
            order = sorted(range(len(pictures)), key=lambda i: right_N[i])[: self.drawn]
            finding.figures[f"{self.split}_captions.png"] = grid(
                [pictures[i] for i in order], [said[i] for i in order], [right_N[i] for i in order],
                f"{line}, mistakes first",
            )  # fmt: skip
        return finding


def grid(pictures: list[Picture], said: list[str], right: list[bool], title: str, columns: int = 8) -> bytes:
    """A PNG of the pictures, each under what was said of it; a mistake is red, with the right caption in brackets."""
    from matplotlib.figure import Figure  # slow to import, and only reports draw

    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(1.4 * columns, 1.7 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, caption, wrong in zip(axes.flat, pictures, said, map(operator.not_, right), strict=False):
        one_colour = picture.image_YXA.shape[-1] == 1
        axis.imshow(picture.image_YXA[..., 0] if one_colour else picture.image_YXA[..., :3], cmap="gray_r")
        shown = f"{caption} ({picture.caption})" if wrong else caption
        axis.set_title(shown.replace("$", r"\$"), color="red" if wrong else "black", fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


REPORTS = dict(Captions=Captions)
