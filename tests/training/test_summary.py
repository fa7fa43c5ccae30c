"""What `show` says of an experiment."""

from __future__ import annotations

from llm_jax.core.quantized import Nf4
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.kernels import Auto, Chunked
from llm_jax.layers.moe import MoE
from llm_jax.optim.trainable import Dora, Lora, TrainAll
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


def test_how_many_parameters_are_trained(tiny):
    """Of rank 2: 2 x (16 + 16) for each of four kernels of attention, and 2 x (16 + 24) for three of feed-forward."""
    plain, tuned, few = (summary(tiny.override({"tuning": t})) for t in (TrainAll(), Lora(2), Dora(2, base=Nf4())))
    total = 272 * 16 + 4 * 16 * 16 + 3 * 16 * 24 + 3 * 16
    assert "trained" not in plain and f"{total:,} parameters\n" in plain
    assert (
        f"496 parameters are trained, {496 / total:.2%} of the model's number; the frozen ones take {4 * total:,}"
        in tuned
    )
    kernels = 4 * 16 * 16 + 3 * 16 * 24  # of 4.5 bits each; the norms of what they produce are kept besides
    norms = 4 * 16 + 2 * 24 + 16
    stored = 4 * (total - kernels) + kernels * 4.5 / 8 + 4 * norms
    assert f"{496 + norms} parameters are trained" in few and f"take {stored:,.0f} bytes" in few
