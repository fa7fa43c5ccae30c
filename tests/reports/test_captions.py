"""The report on captions: what is counted, and the figure."""

import io
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Picture, Rendering, Text
from llm_jax.reports.captions import Captions, grid
from llm_jax.text.recipes import Bytes

PICTURES = [Picture(np.full((4, 4, 1), i / 9, np.float32), ("light", "dark $")[i % 2], i % 2) for i in range(10)]


def finished(documents: list[Any], room: int | None = None) -> Any:
    """A model that calls the first of the pictures it is given wrong; what it was asked is kept."""
    asked = []

    def generate(prompts, max_tokens, temperature, images):
        asked.append((list(prompts), max_tokens, temperature, np.stack(images)))
        said = [("light", "dark $")[round(float(image.mean() * 9)) % 2] for image in images]
        return [said[0] + "!", *said[1:]]

    lm, tokenizer = SimpleNamespace(generate=generate, room=lambda prompt: room), Bytes().train([])
    return SimpleNamespace(
        lm=lm, tokenizer=tokenizer, rendering=Rendering(), documents=lambda split: documents, asked=asked
    )


def test_captions_are_counted_and_drawn():
    model = finished(PICTURES)
    finding = Captions(batch=4, drawn=9)(model)
    assert finding.lines == ["validation: 7/10 captions exact"] and finding.metrics == {"validation_exact_match": 0.7}
    assert [len(prompts) for prompts, *_ in model.asked] == [4, 4, 2]
    assert all(
        set(most) == {7} and len(most) == len(images) and temperature == 0
        for _, most, temperature, images in model.asked
    )
    np.testing.assert_array_equal(np.concatenate([images for *_, images in model.asked])[:, 0, 0, 0] * 9, range(10))
    (name,) = finding.figures
    assert name == "validation_captions.png"
    pixels = matplotlib.image.imread(io.BytesIO(finding.figures[name]), format="png")
    assert pixels.shape[:2] == (390, 1120)  # two rows of eight
    assert Captions(limit=2, drawn=0)(finished(PICTURES)).lines == ["validation: 1/2 captions exact"]
    Captions(drawn=0)(bounded := finished(PICTURES, room=6))
    assert all(set(most) == {6} for _, most, *_ in bounded.asked), "as many as there is room for"
    assert not Captions(drawn=0)(finished(PICTURES)).figures


def test_a_mistake_is_red():
    def red(said: str) -> int:
        pixels = matplotlib.image.imread(
            io.BytesIO(grid([PICTURES[0]], [said], [said == PICTURES[0].caption], "")), format="png"
        )
        return int(((pixels[..., 0] > 0.9) & (pixels[..., 1] < 0.3)).sum())

    assert red("light") == 0 and red("dark") > 20


def test_there_must_be_pictures():
    with pytest.raises(InputError, match="Captions needs pictures, and the validation documents have none"):
        Captions()(finished([Text("a")]))
