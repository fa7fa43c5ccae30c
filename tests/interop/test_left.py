"""What an import leaves unread, and says so: settings of writing, images, the far end of a long context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from llm_jax.core.errors import InputError
from llm_jax.interop import import_
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.configs.multimodal import text_config
from llm_jax.interop.export import write
from llm_jax.interop.import_ import read, tell
from llm_jax.parallel.layout import Layout

from . import torch_tensors  # noqa: F401  which keeps transformers quiet and offline

IDS = np.random.default_rng(0).integers(3, 61, (2, 12))
SIZES: dict[str, Any] = dict(
    vocab_size=61, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """The lines of warning."""
    lines: list[str] = []
    monkeypatch.setattr(import_.logging, "warning", lambda form, *values: lines.append(form % values))
    return lines


def drawn(model: Any) -> Any:
    """With every parameter drawn anew, and buffers (waves, scales) as they are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1) * 0.4)
    return model.eval()


def scores(folder: Path) -> np.ndarray:
    model, params = read(open_source(folder), Layout(1))
    return np.asarray(jax.jit(lambda params, ids: model.apply({"params": params}, ids)[0])(params, jnp.asarray(IDS)))


def theirs_scores(model: Any, **more: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(IDS), **more).logits.numpy()


def test_settings_of_writing_are_named_in_one_line(tmp_path, told):
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    theirs.save_pretrained(tmp_path)
    tell(open_source(tmp_path))
    assert told == []
    said = dict(num_beams=4, no_repeat_ngram_size=3, length_penalty=1.0, do_sample=False, eos_token_id=2)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(min_length=5, num_beams=9)))
    tell(open_source(tmp_path))
    (line,) = told
    assert line.startswith("settings of writing are not kept: num_beams=4, no_repeat_ngram_size=3, min_length=5; ask")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> tuple[Any, Path]:
    """Gemma 3 with images, and its folder."""
    text = SIZES | dict(head_dim=8, num_hidden_layers=3, sliding_window=5, query_pre_attn_scalar=9,
                        layer_types=["sliding_attention", "full_attention", "sliding_attention"])  # fmt: skip
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=60
    )
    folder = tmp_path_factory.mktemp("gemma")
    theirs = drawn(transformers.Gemma3ForConditionalGeneration(config))
    theirs.save_pretrained(folder)
    return theirs, folder


def test_of_a_model_with_images_the_text_model_is_read(gemma, tmp_path, told):
    theirs, folder = gemma
    wanted = theirs_scores(theirs, token_type_ids=torch.zeros(IDS.shape, dtype=torch.long))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(scores(folder), wanted, atol=2e-4)
    source = open_source(folder)
    tell(source)
    (line,) = told
    images = [name for name in theirs.state_dict() if "vision_tower" in name or "multi_modal" in name]
    assert line.startswith(f"the text model alone is read, without {len(images)} tensors of images: ")
    write(*read(source, Layout(1)), tmp_path / "out", likely="gemma3_text")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(theirs_scores(again), wanted, atol=1e-5)


def test_names_of_any_year_are_read_and_strangers_refused(gemma, tmp_path):
    """As Google published it, as transformers 5 has it in memory, and with a tensor of nobody's."""
    _, folder = gemma
    wanted, tensors = scores(folder), safetensors.numpy.load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= dict(tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    core = {
        name.split("language_model.")[1].removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if "language_model." in name
    }
    for prefix in ("language_model.model.", "model.language_model."):
        named = {prefix + name: tensor for name, tensor in core.items()}
        safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
        np.testing.assert_array_equal(scores(tmp_path), wanted)
    safetensors.numpy.save_file(named | {"audio_tower.weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no place for: audio_tower\.weight"):
        read(open_source(tmp_path))


def test_a_published_text_config_is_completed():
    """4B's, as published; transformers has the same defaults."""
    said: dict[str, Any] = dict(
        hidden_size=2560, intermediate_size=10240, model_type="gemma3_text", num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024,
    )  # fmt: skip
    found = import_.model_of(text_config(dict(model_type="gemma3", text_config=said)))
    theirs = transformers.Gemma3TextConfig(**said)
    attention = found.stack.pattern[0].attention
    assert (found.embed.vocabulary, found.context) == (theirs.vocab_size, theirs.max_position_embeddings)
    assert (attention.key_heads, attention.head) == (theirs.num_key_value_heads, theirs.head_dim)
    assert attention.key_heads * attention.group == theirs.num_attention_heads


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_longrope_within_the_original_context(share, tmp_path, told):
    """As Phi-4-mini has it: a part of the head turns, by waves of its own up to a length."""
    waves = int(8 * share) // 2
    rope = dict(rope_type="longrope", rope_theta=5000.0, partial_rotary_factor=share,
                short_factor=[1.0 + 0.3 * wave for wave in range(waves)], long_factor=[7.0] * waves)  # fmt: skip
    sizes: dict[str, Any] = SIZES | dict(hidden_size=32, original_max_position_embeddings=16, rope_parameters=rope)
    config = transformers.Phi3Config(**sizes)
    theirs = drawn(transformers.Phi3ForCausalLM(config))
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = theirs_scores(theirs)
    np.testing.assert_allclose(scores(tmp_path / "theirs"), wanted, atol=2e-4)
    source = open_source(tmp_path / "theirs")
    tell(source)
    assert told == ["of 64 tokens of context the first 16 are covered: longrope changes beyond"]
    write(*read(source, Layout(1)), tmp_path / "out", likely="phi3")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(theirs_scores(again), wanted, atol=1e-5)
