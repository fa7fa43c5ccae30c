"""Reads a model.bin of CTranslate2 (its format 6), as far as Whisper's goes: float16 arrays, by names of its own.

The layout: a version; the name and revision of a specification; then how many arrays there are, and each as its name,
rank, sizes, kind, bytes; then names that stand for another array. A name has its length before it, and a zero at its
end. That the file is used up to its last byte, and that each array has as many bytes as its sizes ask for, is checked.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np

KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def arrays(path: Path) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    """The name of the specification, every array in its own kind, and which names stand for which others."""
    content, place = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal place
        (found,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return found

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return content[place - size : place - 1].decode()

    def array() -> np.ndarray:
        nonlocal place
        shape = [number("I") for _ in range(number("B"))]
        kind, size = np.dtype(KINDS[number("B")]), number("I")
        assert size == kind.itemsize * prod(shape), (shape, kind, size)
        place += size
        return np.frombuffer(content, kind, prod(shape), place - size).reshape(shape)

    assert number("I") == 6, "another version of the format"
    specification, _ = text(), number("I")
    found = {text(): array() for _ in range(number("I"))}
    others = {text(): text() for _ in range(number("I"))}
    assert place == len(content), f"{len(content) - place} bytes are left over"
    return specification, found, others


def whisper(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a Whisper model by transformers' names, in float32. Keys have no bias there; here it is 0."""
    specification, found, others = arrays(path)
    assert specification == "WhisperSpec" and others == {"decoder/projection/weight": "decoder/embeddings/weight"}
    made: dict[str, np.ndarray] = {}

    def take(theirs: str, ours: str, parts: tuple[str, ...] = ("",)) -> None:
        """The array in as many equal parts as there are names."""
        whole = found.pop(theirs).astype(np.float32)
        for part, piece in zip(parts, np.split(whole, len(parts)), strict=True):
            name = f"model.{ours.format(part=part)}"
            if name.endswith("k_proj.bias"):
                assert not piece.any(), name
            else:
                made[name] = piece

    def linear(theirs: str, ours: str, parts: tuple[str, ...] = ("",)) -> None:
        for kind in ("weight", "bias"):
            take(f"{theirs}/{kind}", f"{ours}.{kind}", parts)

    def norm(theirs: str, ours: str) -> None:
        take(f"{theirs}/gamma", f"{ours}.weight")
        take(f"{theirs}/beta", f"{ours}.bias")

    def layer(theirs: str, ours: str, decodes: bool) -> None:
        linear(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn.{{part}}_proj", ("q", "k", "v"))
        linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
        norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
        if decodes:
            linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
            linear(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn.{{part}}_proj", ("k", "v"))
            linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
        for number in (0, 1):
            linear(f"{theirs}/ffn/linear_{number}", f"{ours}.fc{number + 1}")
        norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")

    for side in ("encoder", "decoder"):
        number = 0
        while f"{side}/layer_{number}/ffn/linear_0/weight" in found:
            layer(f"{side}/layer_{number}", f"{side}.layers.{number}", side == "decoder")
            number += 1
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        take(f"{side}/position_encodings/encodings", f"{side}.embed_positions.weight")
    for number in (1, 2):
        linear(f"encoder/conv{number}", f"encoder.conv{number}")
    take("decoder/embeddings/weight", "decoder.embed_tokens.weight")
    left = [name for name, array in found.items() if array.ndim]
    assert not left, left  # what has no axes is a setting
    return made
