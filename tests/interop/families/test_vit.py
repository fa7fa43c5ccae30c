"""ViT beside `transformers`: vectors, scores of classes; and back again."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from llm_jax.core.errors import InputError
from llm_jax.data.images import Digits, Images, read_image
from llm_jax.interop.families.vit import VIT
from llm_jax.interop.import_ import import_model
from llm_jax.models.vision import ImageEncoder

from ..torch_tensors import close, comes_back, drawn, exported, imported, saved

SETTINGS = dict(num_hidden_layers=2, intermediate_size=14, attn_implementation="eager")
CASES = [
    ("ViTForImageClassification", dict(hidden_size=9, num_attention_heads=3, image_size=6, patch_size=3, num_labels=4)),
    ("ViTForImageClassification", dict(hidden_size=8, num_attention_heads=2, image_size=[4, 6], patch_size=2,
                                       num_channels=1, qkv_bias=False, hidden_act="gelu_new")),
    ("ViTModel", dict(hidden_size=8, num_attention_heads=1, image_size=8, patch_size=4)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=["classifier", "oblong", "encoder"])
def test_a_model_is_theirs_and_comes_back(kind, settings, tmp_path):
    cls = getattr(transformers, kind)
    config = transformers.ViTConfig(**SETTINGS | settings)
    more = dict(add_pooling_layer=False) if kind == "ViTModel" else {}
    theirs = drawn(cls(config, **more), len(str(settings)))
    written, tensors = saved(theirs, tmp_path / "theirs")
    model, params = imported(VIT, written, tensors)
    rows, columns = model.patches.image if isinstance(model, ImageEncoder) else model.image.patches.image
    images = np.random.default_rng(0).normal(size=(3, rows, columns, config.num_channels)).astype(np.float32)
    with torch.no_grad():
        said = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    ours = jax.jit(lambda params, images: model.apply({"params": params}, images))(params, images)
    close(ours, said[0])
    if more:  # their class would add a pooler, drawn anew
        back = exported(VIT, model, params)[1]
        assert back.keys() == tensors.keys() and all(np.array_equal(back[name], tensors[name]) for name in tensors)
        return
    again = comes_back(VIT, model, params, tensors, tmp_path / "ours")
    with torch.no_grad():
        close(again(torch.tensor(images).permute(0, 3, 1, 2))[0], said[0], within=1e-6)


def test_it_is_no_run_without_a_tokenizer(tmp_path):
    saved(transformers.ViTModel(transformers.ViTConfig(**SETTINGS | CASES[2][1])), tmp_path / "vit")
    with pytest.raises(InputError, match=r"a vit reads images and has no tokenizer, so it is no run: in Python, "):
        import_model(tmp_path / "vit", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_is_read_as_their_processor_reads_it(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (21, 33, 3)).astype(np.uint8)
    Image.fromarray(drawn).save(tmp_path / "a.png")
    mean, deviation = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    processor = ViTImageProcessorPil(size=dict(height=8, width=10), image_mean=mean, image_std=deviation)
    with Image.open(tmp_path / "a.png") as image:
        wanted = processor(image, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    data = Images(Digits(), scale=1 / 255, mean=mean, deviation=deviation)
    np.testing.assert_allclose(data.normalized(read_image(tmp_path / "a.png", 8, 10)[None]), wanted, atol=1e-6)
