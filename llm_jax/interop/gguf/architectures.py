"""What conversion to GGUF does to each architecture, and how it is undone: settings, names, and layout.

The other direction is llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llm_jax.core.errors import InputError, nearest

Config = Mapping[str, Any]
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # settings, to transformers
YARN = dict(attn_factor=1.0, yarn_attn_factor=1.0, yarn_ext_factor=1.0, yarn_log_multiplier=0.0)  # as in the paper


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The settings in a file: `field` gives one by its whole name (None if absent), a call one of the architecture."""

    architecture: str
    field: Callable[[str], Any]
    tensors: Mapping[str, Any]

    def __call__(self, name: str, default: Any = None) -> Any:
        """A number as it was before it was stored in 32 bits.

        Raises:
          InputError: it is absent and has no default, or has a value for each layer.
        """
        value = self.field(f"{self.architecture}.{name}")
        value = default if value is None else value
        if value is None:
            raise InputError(f"the GGUF file lacks {self.architecture}.{name}")
        if isinstance(value, list):
            raise InputError(f"the GGUF file has a {self.architecture}.{name} for each layer, which is not covered")
        return float(f"{value:.6g}") if isinstance(value, float) else value

    def has(self, tensor: str) -> bool:
        return tensor in self.tensors


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
      config: the config.json.
      names: transformers' name of each kind of tensor, without "weight" or "bias"; `{}` is the number of the layer.
      shift: what was added to the weights of norms (Gemma's are stored as they are multiplied with).
      turned: names' ends of matrices that were transposed.
      permuted: whether the rows of queries and keys were put in the order of interleaved rotary positions.
    """

    config: Callable[[Metadata], dict[str, Any]]
    names: Mapping[str, str]
    shift: float = 0.0
    turned: tuple[str, ...] = ()
    permuted: bool = False

    def transposed(self, name: str) -> bool:
        return name.endswith(self.turned) if self.turned else False

    def undo(self, name: str, values: np.ndarray, config: Config) -> np.ndarray:
        """The tensor `name` as it was before the conversion."""
        if self.shift and name.endswith("norm.weight"):
            return values - np.float32(self.shift)
        if self.permuted and (found := re.search(r"\.([qk])_proj\.\w+$", name)):
            heads = config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
            halves = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
            return halves.swapaxes(1, 2).reshape(values.shape)
        return values


def huggingface_name(architecture: Architecture, name: str) -> str | None:
    """transformers' name of a tensor; None for one that is a setting there.

    Raises:
      InputError: the architecture has no such tensor.
    """
    if name in _ROPE:
        return None
    found = _TENSOR.fullmatch(name)
    stem = ("blk.{}." if found[1] else "") + found[2] if found else name
    if found is None or stem not in architecture.names:
        raise InputError(
            f"the GGUF file has a tensor {name}, which is not covered: {nearest(name, architecture.names)}"
        )
    return f"{architecture.names[stem].format(found[1])}.{found[3]}"


# ------------------------------------------------------------------------------------------------------------ settings


def _common(meta: Metadata) -> dict[str, Any]:
    """What all but GPT-2 share."""
    if meta("expert_count", 0):
        raise InputError("the GGUF file is of a mixture of experts, which is not covered: use the safetensors")
    width, heads = meta("embedding_length"), meta("attention.head_count")
    head = meta("attention.key_length", width // heads)
    config = dict(
        hidden_size=width,
        intermediate_size=meta("feed_forward_length"),
        num_hidden_layers=meta("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=meta("attention.head_count_kv", heads),
        head_dim=head,
        max_position_embeddings=meta("context_length"),
        rms_norm_eps=meta("attention.layer_norm_rms_epsilon"),
        rope_theta=meta("rope.freq_base", 10000.0),
        rope_scaling=_scaling(meta, head),
        hidden_act="silu",
    )
    if (turned := meta("rope.dimension_count", head)) != head:
        config["partial_rotary_factor"] = turned / head
    return config | _vocabulary(meta)


def _vocabulary(meta: Metadata) -> dict[str, Any]:
    if not meta.has("token_embd.weight"):
        raise InputError("the GGUF file lacks the tensor token_embd.weight")
    ids = {f"{name}_token_id": meta.field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    return ids | dict(
        vocab_size=int(meta.tensors["token_embd.weight"].shape[1]),
        tie_word_embeddings=not meta.has("output.weight"),
    )


def _scaling(meta: Metadata, head: int) -> dict[str, Any] | None:
    """config.json's `rope_scaling`."""
    if (old := meta("rope.scale_linear", 1.0)) != 1.0:  # how files of before 2023's autumn have it
        return dict(rope_type="linear", factor=old)
    kind = meta("rope.scaling.type", "none")
    factor = meta("rope.scaling.factor", 0.0)
    if meta.has("rope_freqs.weight"):
        return _llama3(np.asarray(meta.tensors["rope_freqs.weight"].data), meta("rope.freq_base", 10000.0), head)
    if meta.has("rope_factors_long.weight"):
        factors = {f"{n}_factor": meta.tensors[f"rope_factors_{n}.weight"].data.tolist() for n in ("long", "short")}
        return dict(rope_type="longrope", attention_factor=meta("rope.scaling.attn_factor", 0.0) or None) | factors
    if kind == "linear":
        return dict(rope_type="linear", factor=factor)
    if kind == "yarn":
        for name, usual in YARN.items():
            if (given := meta(f"rope.scaling.{name}", usual)) != usual:
                name = f"{meta.architecture}.rope.scaling.{name}"
                raise InputError(f"the GGUF file has {name}={given}, which is not covered: it must be {usual:g}")
        fast, slow = meta("rope.scaling.yarn_beta_fast", 32.0), meta("rope.scaling.yarn_beta_slow", 1.0)
        original = meta("rope.scaling.original_context_length")
        return dict(
            rope_type="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=fast, beta_slow=slow
        )
    if kind != "none":
        raise InputError(f"the GGUF file has {meta.architecture}.rope.scaling.type={kind!r}, which is not covered")
    return None


def _llama3(factors: np.ndarray, theta: float, head: int) -> dict[str, Any]:
    """Llama 3.1's scaling (Dubey et al. 2024), of which the file keeps only the factor of each wave.

    Raises:
      InputError: it is not that with the published settings.
    """
    low, high, original, factor = 1.0, 4.0, 8192, float(f"{factors.max():.6g}")
    waves = 2 * np.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    if factors.shape != waves.shape or not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise InputError("the GGUF file has rope_freqs that are not Llama 3.1's, which is not covered")
    return dict(
        rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip


def _named(model_type: str, name: str) -> dict[str, Any]:
    return dict(architectures=[name], model_type=model_type)


def _llama_config(meta: Metadata) -> dict[str, Any]:
    biases = dict(attention_bias=meta.has("blk.0.attn_q.bias"), mlp_bias=meta.has("blk.0.ffn_down.bias"))
    return _named("llama", "LlamaForCausalLM") | _common(meta) | biases


def _qwen2_config(meta: Metadata) -> dict[str, Any]:
    return _named("qwen2", "Qwen2ForCausalLM") | _common(meta) | dict(use_sliding_window=False)


def _qwen3_config(meta: Metadata) -> dict[str, Any]:
    return _named("qwen3", "Qwen3ForCausalLM") | _common(meta) | dict(use_sliding_window=False, attention_bias=False)


def _phi3_config(meta: Metadata) -> dict[str, Any]:
    context = meta("context_length")
    window = dict(
        sliding_window=meta("attention.sliding_window", 0) or None,
        original_max_position_embeddings=meta("rope.scaling.original_context_length", context),
    )
    return _named("phi3", "Phi3ForCausalLM") | _common(meta) | window


def _gemma_config(meta: Metadata) -> dict[str, Any]:
    gelu = dict(hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh")
    return _named("gemma", "GemmaForCausalLM") | _common(meta) | gelu


def _query_scale(meta: Metadata, layers_27b: int) -> int:
    """The file does not say it: 27B scales by width / heads, all others by the head's width, as in llama.cpp."""
    width, heads = meta("embedding_length"), meta("attention.head_count")
    return width // heads if meta("block_count") == layers_27b else meta("attention.key_length", width // heads)


def _gemma2_config(meta: Metadata) -> dict[str, Any]:
    return _gemma_config(meta) | _named("gemma2", "Gemma2ForCausalLM") | dict(
        sliding_window=meta("attention.sliding_window", 4096),
        attn_logit_softcapping=meta("attn_logit_softcapping", 50.0),
        final_logit_softcapping=meta("final_logit_softcapping", 30.0),
        query_pre_attn_scalar=_query_scale(meta, layers_27b=46),
    )  # fmt: skip


def _gemma3_config(meta: Metadata) -> dict[str, Any]:
    return _gemma_config(meta) | _named("gemma3_text", "Gemma3ForCausalLM") | dict(
        rope_theta=meta("rope.freq_base", 1e6),
        rope_local_base_freq=meta("rope.freq_base_swa", 10000.0),
        sliding_window=meta("attention.sliding_window"),
        sliding_window_pattern=6,
        query_pre_attn_scalar=_query_scale(meta, layers_27b=62),
    )  # fmt: skip


def _gpt2_config(meta: Metadata) -> dict[str, Any]:
    return _named("gpt2", "GPT2LMHeadModel") | _vocabulary(meta) | dict(
        n_embd=meta("embedding_length"), n_layer=meta("block_count"), n_head=meta("attention.head_count"),
        n_positions=meta("context_length"), n_inner=meta("feed_forward_length"),
        layer_norm_epsilon=meta("attention.layer_norm_epsilon"), activation_function="gelu_new",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- names


def _block(prefix: str, **names: str) -> dict[str, str]:
    return {f"blk.{{}}.{theirs}": f"{prefix}.{{}}.{name}" for theirs, name in names.items()}


_LLAMA = dict(token_embd="model.embed_tokens", output_norm="model.norm", output="lm_head") | _block(
    "model.layers", attn_norm="input_layernorm", attn_q="self_attn.q_proj", attn_k="self_attn.k_proj",
    attn_v="self_attn.v_proj", attn_output="self_attn.o_proj", ffn_norm="post_attention_layernorm",
    ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj",
)  # fmt: skip
_HEAD_NORMS = _block("model.layers", attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
_SANDWICH = _block(
    "model.layers", post_attention_norm="post_attention_layernorm", ffn_norm="pre_feedforward_layernorm",
    post_ffw_norm="post_feedforward_layernorm",
)  # fmt: skip
_FUSED = _block("model.layers", attn_qkv="self_attn.qkv_proj", ffn_up="mlp.gate_up_proj")
_GPT2 = dict(
    token_embd="transformer.wte", position_embd="transformer.wpe", output_norm="transformer.ln_f", output="lm_head"
) | _block(
    "transformer.h", attn_norm="ln_1", attn_qkv="attn.c_attn", attn_output="attn.c_proj", ffn_norm="ln_2",
    ffn_up="mlp.c_fc", ffn_down="mlp.c_proj",
)  # fmt: skip
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")

ARCHITECTURES = dict(
    llama=Architecture(_llama_config, _LLAMA, permuted=True),
    qwen2=Architecture(_qwen2_config, _LLAMA),
    qwen3=Architecture(_qwen3_config, _LLAMA | _HEAD_NORMS),
    phi3=Architecture(_phi3_config, _LLAMA | _FUSED),
    gemma=Architecture(_gemma_config, _LLAMA, shift=1.0),
    gemma2=Architecture(_gemma2_config, _LLAMA | _SANDWICH, shift=1.0),
    gemma3=Architecture(_gemma3_config, _LLAMA | _SANDWICH | _HEAD_NORMS, shift=1.0),
    gpt2=Architecture(_gpt2_config, _GPT2, turned=_CONV1D),
)
