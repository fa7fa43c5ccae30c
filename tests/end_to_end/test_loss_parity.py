"""The whole training step beside PyTorch: initial weights and batches are the same, so every loss must be.

The model, the clipping and AdamW are PyTorch's own; the schedule and what decays are as nanoGPT's train.py has them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import llm_jax
from benchmarks.contender import Shape
from benchmarks.torch_reference import Gpt
from llm_jax.data.sources import TextFiles
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment
from llm_jax.parallel.layout import place

STEPS, WARMUP, RATE, LAST, DECAY, CLIP = 50, 10, 3e-3, 0.1, 2.0, 0.6
SMALL = {
    "model.embed.width": 32, "model.stack.repeats": 2, "model.stack.pattern.0.attention.key_heads": 4,
    "model.stack.pattern.0.attention.head": 8, "model.stack.pattern.0.ffn.hidden": 128, "model.positions.length": 24,
    "data.length": 24, "data.batch": 8, "steps": STEPS, "log_every": 1, "layout.data": 1,
    "optimizer.learning_rate": RATE, "optimizer.schedule.warmup": WARMUP, "optimizer.schedule.last": LAST,
    "optimizer.weight_decay": DECAY, "optimizer.clip": CLIP,
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Experiment, list[dict[str, np.ndarray]]]:
    """nanogpt_char, small and on a text of its own, filled in; and the batches that its data serve."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(1, 9))) for _ in range(200)]
    path.write_text(" ".join(rng.choice(words, 4000)))
    experiment: Any = llm_jax.get("nanogpt_char").override(SMALL | {"data.source": TextFiles(str(path), "")})
    tokenizer = experiment.data.prepare(experiment.tokenizer)
    stream = experiment.data.train(tokenizer, seed=3)
    batches = [dict(next(stream)) for _ in range(STEPS)]
    return fill(experiment, tokenizer), batches


def ours(experiment: Any, batches: list[dict[str, np.ndarray]]) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """The initial parameters; then of each step the loss, the gradient's norm and the rate."""
    program = Program(experiment, experiment.layout.mesh())
    state = program.begin()
    first, told = jax.device_get(state.params), []
    with jax.set_mesh(program.mesh):
        for batch in batches:
            state, metrics = program.update(state, place(batch, program.mesh))
            loss = state.sums["loss"] / state.sums["weight"]
            told.append([float(loss), float(metrics["gradient_norm"]), float(metrics["learning_rate"])])
    return first, *np.asarray(told).T


def copied(experiment: Any, params: Any) -> Gpt:
    """The PyTorch model with our parameters."""
    model, blocks = experiment.model, params["stack"]["layers"]["block_0"]
    layers, width, hidden = blocks["ffn"]["up"]["kernel"].shape
    shape = Shape(layers, 4, width, model.context, 8, model.embed.vocabulary)
    assert hidden == 4 * width
    gpt = Gpt(shape)

    def put(parameter: Any, array: np.ndarray) -> None:
        assert parameter.shape == array.shape
        parameter.data = torch.from_numpy(np.array(array))

    put(gpt.tokens.weight, params["embed"]["table"])
    put(gpt.positions.weight, params["positions"]["table"])
    put(gpt.norm.weight, params["norm"]["scale"])
    for i, block in enumerate(gpt.blocks):
        one: Any = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
        attention = one["attention"]
        columns = [attention[name]["kernel"].reshape(width, width) for name in ("query", "key", "value")]
        theirs: Any = block
        put(theirs.attention.qkv.weight, np.concatenate(columns, axis=1).T)
        put(theirs.attention.out.weight, attention["out"]["kernel"].reshape(width, width).T)
        put(theirs.attention_norm.weight, one["attention_norm"]["scale"])
        put(theirs.feedforward[0].weight, one["ffn"]["up"]["kernel"].T)
        put(theirs.feedforward[2].weight, one["ffn"]["down"]["kernel"].T)
        put(theirs.feedforward_norm.weight, one["ffn_norm"]["scale"])
    return gpt


def rate(step: int) -> float:
    """nanoGPT's: a warmup, then half a cosine."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    fallen = (step - WARMUP) / (STEPS - WARMUP)
    return LAST * RATE + 0.5 * (1 + math.cos(math.pi * fallen)) * (RATE - LAST * RATE)


def theirs(
    gpt: Gpt, batches: list[dict[str, np.ndarray]], decay: float, vector_decay: float, clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each step the loss and the gradient's norm."""
    matrices = [p for p in gpt.parameters() if p.ndim >= 2]
    vectors = [p for p in gpt.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": vector_decay}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), eps=1e-8)
    told = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        scores_BTV = gpt(torch.from_numpy(batch["tokens_BT"]).long())
        loss = functional.cross_entropy(
            scores_BTV.flatten(0, 1), torch.from_numpy(batch["targets_BT"]).long().flatten()
        )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(gpt.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        told.append([loss.item(), norm.item()])
    losses, norms = np.asarray(told).T
    return losses, norms


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest relative difference of any step."""
    return float(np.abs(a / b - 1).max())


def test_fifty_losses_are_pytorchs(given):
    experiment, batches = given
    assert all((b["weight_BT"] == 1).all() and (b["segment_BT"] == 0).all() for b in batches)
    params, losses, norms, rates = ours(experiment, batches)

    def beside(decay: float = DECAY, vector_decay: float = 0.0, clip: float = CLIP) -> tuple[np.ndarray, np.ndarray]:
        return theirs(copied(experiment, params), batches, decay, vector_decay, clip)

    expected, their_norms = beside()
    assert apart(losses, expected) < 1e-4 and apart(norms, their_norms) < 1e-3
    assert np.allclose(rates, [rate(step) for step in range(STEPS)], rtol=1e-5, atol=0)
    assert losses[-5:].mean() < losses[:5].mean() - 0.3
    assert (norms > CLIP).any() and (norms < CLIP).any(), "it clips, and not always"
    without = beside(decay=0.0)
    for other in (without, beside(vector_decay=DECAY), beside(clip=1e9)):
        assert apart(other[0], losses) > 1e-3, "the comparison would notice"

    still, undecayed, *_ = ours(experiment.override({"optimizer.weight_decay": 0.0}), batches)
    jax.tree.map(np.testing.assert_array_equal, still, params)
    assert apart(undecayed, without[0]) < 1e-4
