"""The rival of the benchmark: a GPT in plain PyTorch, as nanoGPT writes it, on the GPU if there is one. Needs torch."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.contender import PROMPT, Precision, Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Cache = tuple[Tensor, Tensor]  # keys and values, each [B, N, S, H]


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None, start: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1))
        if cache is not None:
            end = start + x_BTD.shape[1]
            cache[0][:, :, start:end], cache[1][:, :, start:end] = k, v
            k, v = cache[0][:, :, :end], cache[1][:, :, :end]
        # is_causal aligns queries with the first keys: right for a prompt, and one token sees every key anyway
        o_BNTH = functional.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        return self.out(o_BNTH.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width, bias=False)
        self.attention = Attention(shape)
        self.feedforward_norm = nn.LayerNorm(shape.width, bias=False)
        self.feedforward = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width, bias=False),
            nn.GELU(),
            nn.Linear(4 * shape.width, shape.width, bias=False),
        )

    def forward(self, x_BTD: Tensor, cache: Cache | None, start: int) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cache, start)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))


class Gpt(nn.Module):
    """Token ids [B, T] -> scores [B, T, V], or with `last` those of the last token only [B, 1, V]."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        for matrix in (p for p in self.parameters() if p.ndim == 2):
            nn.init.normal_(matrix, std=0.02)

    def forward(self, ids_BT: Tensor, caches: list[Cache] | None = None, start: int = 0, last: bool = False) -> Tensor:
        position_T = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.tokens(ids_BT) + self.positions(position_T)
        for block, cache in zip(self.blocks, caches or itertools.repeat(None), strict=False):
            x_BTD = block(x_BTD, cache, start)
        x_BTD = self.norm(x_BTD[:, -1:] if last else x_BTD)
        return functional.linear(x_BTD, self.tokens.weight)

    def empty_caches(self, batch: int, length: int) -> list[Cache]:
        size = (batch, self.shape.heads, length, self.shape.width // self.shape.heads)
        like = self.tokens.weight
        return [(like.new_zeros(size), like.new_zeros(size)) for _ in self.blocks]


class TorchContender:
    """See `Contender`. Training in bfloat16 is autocast; decoding in bfloat16 converts the weights, once."""

    def __init__(self, shape: Shape, precision: Precision):
        torch.manual_seed(0)
        self.platform = "gpu" if DEVICE == "cuda" else DEVICE
        self.dtype = getattr(torch, precision)
        self.model = Gpt(shape).to(DEVICE)
        ids = torch.randint(shape.vocabulary, (shape.batch, shape.context + 1), device=DEVICE)
        self.inputs_BT, self.targets_BT = ids[:, :-1], ids[:, 1:]
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
        self.decoder: Gpt | None = None
        self.factors: tuple[Tensor, Tensor] | None = None

    def train_step(self) -> float:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            scores_BTV = self.model(self.inputs_BT)
            loss = functional.cross_entropy(scores_BTV.flatten(0, 1), self.targets_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @torch.inference_mode()
    def decode(self, batch: int, tokens: int) -> list[list[int]]:
        if self.decoder is None:
            self.decoder = copy.deepcopy(self.model).to(self.dtype)
        caches = self.decoder.empty_caches(batch, PROMPT + tokens)
        new_B1 = torch.arange(PROMPT, device=DEVICE).expand(batch, -1)
        written, start = [], 0
        for _ in range(tokens):
            scores_B1V = self.decoder(new_B1, caches, start, last=True)
            start += new_B1.shape[1]
            new_B1 = scores_B1V.argmax(-1)
            written.append(new_B1)
        return torch.cat(written, dim=1).tolist()

    def matmul(self, size: int) -> None:
        if self.factors is None or len(self.factors[0]) != size:
            factor = torch.ones(size, size, dtype=self.dtype, device=DEVICE)
            self.factors = (factor, factor.clone())
        torch.matmul(*self.factors)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
