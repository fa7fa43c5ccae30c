"""What `show` says of an experiment."""

from __future__ import annotations

from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.kernels import Auto, Chunked
from llm_jax.layers.moe import MoE
from llm_jax.training.summary import summary


def test_the_kernels_that_auto_picks_and_the_active_parameters(tiny):
    experts, plain = MoE(24, experts=4, top_k=1), SwiGLU(24)
    blocks = (
        Block(Attention(2, 1, 8, kernel=Auto()), experts), Block(Attention(2, 1, 8, kernel=Auto(few=8)), plain),
        Block(Attention(2, 1, 8, kernel=Chunked()), plain),
    )  # fmt: skip
    said = summary(tiny.override({"model.stack.pattern": blocks})).splitlines()
    assert [line for line in said if line.startswith("attention kernel")] == [
        "attention kernel: Auto() -> Dense(), because 16 queries are at most 512",
        "attention kernel: Auto() -> Chunked(), because 16 queries are more than 8",
    ]
    expert = 3 * 16 * 24
    every = 272 * 16 + 16 + 3 * (4 * 16 * 16 + 2 * 16) + 4 * expert + 4 * 16 + 2 * expert
    assert f"{every:,} parameters, of which {every - 3 * expert:,} are active for a token" in said
    assert not any("active" in line or "attention kernel" in line for line in summary(tiny).splitlines())
