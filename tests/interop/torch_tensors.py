"""PyTorch's models as checkpoints in memory, drawn at random, and ours made from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
import transformers

from llm_jax.core.dims import is_lettered
from llm_jax.interop import weights
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.export import essence, write
from llm_jax.interop.family import Family
from llm_jax.interop.import_ import read
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.model import Model
from llm_jax.parallel.layout import Layout

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class InMemory:
    """`weights.Tensors` over a dictionary."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors = tensors

    def names(self):
        return list(self.tensors)

    def shape(self, name: str):
        return self.tensors[name].shape

    def read(self, name: str):
        return self.tensors[name]


def drawn(model: Any, seed: int) -> Any:
    """The PyTorch model with every parameter drawn anew, biases, scales and learnt buffers too; dropout is off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or ("embed_positions" in name and not tensor.requires_grad):
                continue
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    return model.eval()


def saved(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the tensors that `save_pretrained` writes: copies of tied weights are left out."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return config, safetensors.numpy.load_file(folder / "model.safetensors")


def imported(family: Family, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Our model and its parameters, with every tensor accounted for."""
    model = family.model(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    boxed = boxes(model)
    places = jax.tree.map(lambda _: one, boxed, is_leaf=is_lettered)
    return model, weights.load(boxed, family.names(model), InMemory(tensors), places, family.ignored, family.copies)


def boxes(model: Model) -> Any:
    return jax.eval_shape(model.begin, jax.random.key(0))


def exported(family: Family, model: Model, params: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Our model as their config.json and tensors."""
    return family.config(model), dict(weights.unload(boxes(model), params, family.names(model)))


def comes_back(family: Family, model: Model, params: Any, tensors: dict[str, np.ndarray], folder: Path) -> Any:
    """Their model of what we export: every tensor is bit for bit what it was, each has its place there, and our own
    reader finds the same in it."""
    config, unloaded = exported(family, model, params)
    write(model, params, folder, likely=config["model_type"])
    back = safetensors.numpy.load_file(folder / "model.safetensors")
    assert back.keys() == unloaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == back[name].dtype, name
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    same_model, same = read(open_source(folder), Layout(1))
    assert essence(same_model) == essence(model)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    kind = getattr(transformers, config["architectures"][0])
    theirs, said = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(said.values()), said
    return theirs.eval()


def begun(model: Model) -> Any:
    """Parameters of our own, unboxed."""
    return jax.jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(0))


def rows(lengths: list[int], vocabulary: int, seed: int, least: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] of texts so long, and 1 where there is one [B, T]: padding (0) is on the right."""
    real_BT = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    drawn = np.random.default_rng(seed).integers(least, vocabulary, real_BT.shape)
    return np.where(real_BT, drawn, 0).astype(np.int32), real_BT.astype(np.int32)


def padded(real_BT: np.ndarray) -> Tokens:
    """Where the tokens of `rows` stand."""
    position_BT = np.where(real_BT, np.arange(real_BT.shape[1])[None], 0)
    return Tokens(jnp.asarray(position_BT, jnp.int32), jnp.asarray(np.where(real_BT, 0, PADDING), jnp.int32))


def packed(ids_BT: np.ndarray, real_BT: np.ndarray) -> tuple[jax.Array, Tokens]:
    """All texts of `rows` behind each other in one row."""
    there = real_BT.astype(bool)
    position = np.broadcast_to(np.arange(there.shape[1])[None], there.shape)[there]
    segment = np.broadcast_to(np.arange(there.shape[0])[:, None], there.shape)[there]
    at = Tokens(jnp.asarray(position[None], jnp.int32), jnp.asarray(segment[None], jnp.int32))
    return jnp.asarray(ids_BT[there][None]), at


def close(ours: Any, theirs: torch.Tensor, real_BT: np.ndarray | None = None, within: float = 2e-4) -> None:
    """Asserts that they agree, where there are tokens; and that they are not all alike."""
    ours, wanted = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == wanted.shape
    if real_BT is not None:
        ours, wanted = ours[real_BT.astype(bool)], wanted[real_BT.astype(bool)]
    assert np.ptp(wanted, axis=0).max() > 0.1
    np.testing.assert_allclose(ours, wanted, atol=within, rtol=0)
