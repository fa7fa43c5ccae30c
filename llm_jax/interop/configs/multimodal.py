"""The text model within a checkpoint of texts and images (Gemma 3), as a checkpoint of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llm_jax.interop.weights import Renamed, Tensors

# Settings of Gemma 3's text model that its published config.json leaves out, unless they differ.
GEMMA3 = dict(
    vocab_size=262_208, num_attention_heads=8, num_key_value_heads=4, head_dim=256, max_position_embeddings=131_072
)
TEXT = re.compile(r"(?:model\.)?language_model\.(?:model\.)?")  # as published, and as transformers 5 names it
HEAD = re.compile(r"(?:language_model\.)?lm_head\.weight")
IMAGES = re.compile(r"(?:model\.)?(vision_tower|multi_modal_projector)\.")


def is_multimodal(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), Mapping)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the text model alone."""
    text = {name: value for name, value in config["text_config"].items() if value is not None}
    return GEMMA3 | text | dict(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"])


def text_tensors(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors by the names that the text model has for them, and the names of those of images, which are left out.

    What is of neither keeps its name, and has no place in the model.
    """
    images = [name for name in tensors.names() if IMAGES.match(name)]
    text = [name for name in tensors.names() if not IMAGES.match(name)]
    usual = {"lm_head.weight" if HEAD.fullmatch(name) else TEXT.sub("model.", name, count=1): name for name in text}
    return Renamed(tensors, usual), images
