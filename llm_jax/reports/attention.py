"""Which token attends to which: the weights of every layer and head of a model on a text, and a figure of them.

    lm = llm_jax.load("runs/a")
    ids = lm.tokenizer.encode("The cat sat on the mat.")
    weights = attention_maps(lm.model, lm.params, ids)  # a layer each: float32 [heads, T, S]
    Path("maps.png").write_bytes(draw(weights, spelt(lm.tokenizer, ids)))

It is the model that computes: its attention kernels are exchanged for one that keeps what it weighs.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Size, replace, transform, walk
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Finding, Report
from llm_jax.layers.attention import Attention
from llm_jax.layers.kernels import Dense
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.model import Generator, Model, Translator
from llm_jax.models.stack import Stack
from llm_jax.text.special import frame
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class _Watched(Dense):
    """Dense, and its weights [B, K, G, T, S] are added to `seen`."""

    seen: list[jax.Array] = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        rows, columns = slice(0, q_BTKGH.shape[1]), slice(0, k_BSKH.shape[1])
        score = scoring.scores(q_BTKGH, k_BSKH, scoring.bias, rows, columns)
        self.seen.append(jax.nn.softmax(score, axis=-1))
        return super().__call__(q_BTKGH, k_BSKH, v_BSKH, scoring)


def attention_maps(
    model: Model, params: Any, ids: Sequence[int], types: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Of each layer, float32 [heads, T, S]: the share of query T's attention that key S gets; rows sum to 1.

    Heads are in the order of the checkpoint's: those that share a key are neighbours.

    Args:
      params: in the precision that they are to be applied in; of a Classifier or a Scorer, whole.
      ids: the tokens of a text.
      types: which kind of text each is of, for an Encoder that tells them apart.

    Raises:
      InputError: the model has no attention over a text alone, or the text is longer than it reads.
    """
    if isinstance(model, Classifier | Scorer):
        model, params = model.backbone, params["backbone"]
    check_maps(model, len(ids))
    types_BT = None if types is None else jnp.asarray([types], jnp.int32)
    seen = _weights(model, params, jnp.asarray([ids], jnp.int32), types_BT)
    return [np.asarray(weight).reshape(-1, *weight.shape[-2:]) for weight in seen]


def check_maps(model: Model, length: int) -> None:
    """Checks that a model has maps of a text of so many tokens.

    Raises:
      InputError: it has none of any text, or reads fewer.
    """
    if isinstance(model, Classifier | Scorer):
        model = model.backbone
    if not isinstance(model, Generator | Encoder) or isinstance(model, Translator):
        raise InputError(f"attention maps are of a Decoder or an Encoder, not of {type(model).__name__}")
    if not any(isinstance(part, Attention) for _, part in walk(model)):
        raise InputError(f"{type(model).__name__} has no attention")
    if not 0 < length <= (model.limit() or length):
        raise InputError(f"the text has {length} tokens, and the model reads 1 to {model.limit()}: choose another")


@functools.partial(jax.jit, static_argnums=0)
def _weights(model: Model, params: Any, ids_BT: jax.Array, types_BT: jax.Array | None) -> list[jax.Array]:
    """Of each layer, [1, K, G, T, S]."""
    kernel = _Watched()

    def watch(part: Any) -> Any:
        if isinstance(part, Attention):
            return replace(part, kernel=kernel)
        return replace(part, run="loop", remat="none") if isinstance(part, Stack) else part

    transform(model, watch).apply({"params": params}, ids_BT, None, types_BT, method="vectors")
    return kernel.seen


def spelt(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as a label: its text, or the name of a special token; spaces and line ends can be seen."""
    named = {i: f"<{name.strip('<>|')}>" for name, i in tokenizer.special.items()}
    texts = [named.get(i) or tokenizer.bytes_of(i).decode(errors="replace") for i in ids]
    return [text.replace(" ", "\N{MIDDLE DOT}").replace("\n", "\\n").replace("\t", "\\t") for text in texts]


def draw(
    weights: Sequence[np.ndarray], tokens: Sequence[str], title: str = "", layers: Sequence[int] | None = None
) -> bytes:
    """A PNG: a row of panels for each layer, a column for each head; queries go down, keys to the right.

    `layers` are the numbers of those in `weights`, from 0.
    """
    from matplotlib.colors import PowerNorm  # slow to import, and only reports draw
    from matplotlib.figure import Figure

    layers = range(len(weights)) if layers is None else layers
    columns, size = max(len(weight) for weight in weights), min(max(1.3, 0.16 * len(tokens)), 5.0)
    font = min(8.0, 0.8 * 72 * size / len(tokens))  # points: as high as a cell, nearly
    figure = Figure(figsize=(size * columns + 1.9, (size + 0.25) * len(weights) + 0.8), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))
    axes: Any = figure.subplots(len(weights), columns, squeeze=False)
    labels, places = [token.replace("$", r"\$") for token in tokens], range(len(tokens))
    image = None
    for row, (layer, weight_NTS) in enumerate(zip(layers, weights, strict=True)):
        for column, axis in enumerate(axes[row]):
            if column >= len(weight_NTS):
                axis.set_axis_off()
                continue
            # the square root, or all but the strongest would look like none
            image = axis.imshow(weight_NTS[column], cmap="BuPu", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
            axis.set_title(f"layer {layer}, head {column}", fontsize=8, pad=3)
            last = row == len(weights) - 1
            axis.set_xticks(places if last else [], labels if last else [], rotation=90, fontsize=font)
            axis.set_yticks(places if column == 0 else [], labels if column == 0 else [], fontsize=font)
            axis.tick_params(length=0, pad=2)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "20%", "50%", "100%"], fontsize=8)
    bar.set_label("share of the query's attention", fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


@dataclasses.dataclass(frozen=True)
class AttentionMaps(Report):
    """A figure of the attention of the run on `text`, of at most `most` layers, evenly from the first to the last.

    Told in numbers: how much of it goes, in the mean over all layers, heads and queries but the first, to the text's
    first token, to the query's own and to the one before it.
    """

    text: str = "The quick brown fox jumps over the lazy dog."
    most: Size = 6

    def check(self, planned):
        check_maps(planned.experiment.model, len(self._ids(planned)))

    def _ids(self, finished: Finished) -> list[int]:
        experiment: Any = finished.experiment
        rendering, special = experiment.data.rendering.settled, finished.tokenizer.special
        ends = frame(special, "eos", rendering.eos and isinstance(experiment.model, Encoder))
        return [*frame(special, "bos", rendering.bos), *finished.tokenizer.encode(self.text), *ends]

    def __call__(self, finished):
        experiment: Any = finished.experiment
        ids = self._ids(finished)
        weights = attention_maps(experiment.model, finished.params, ids)
        chosen = np.unique(np.linspace(0, len(weights) - 1, min(self.most, len(weights))).round().astype(int)).tolist()
        tokens = spelt(finished.tokenizer, ids)
        figure = draw([weights[layer] for layer in chosen], tokens, f"{experiment.name}: who attends to whom", chosen)
        lines = [f"attention to {self.text!r}, {len(ids)} tokens, {len(weights)} layers"]
        if len(ids) > 1:
            every = np.concatenate(weights)
            own = every.diagonal(axis1=1, axis2=2)[:, 1:].mean()
            before = every.diagonal(-1, axis1=1, axis2=2).mean()
            first = every[:, 1:, 0].mean()
            lines.append(f"  to the first token {first:.3f}, to itself {own:.3f}, to the token before {before:.3f}")
        return Finding(lines, {}, {"attention.png": figure})


REPORTS = dict(AttentionMaps=AttentionMaps)
