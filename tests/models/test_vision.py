"""Images: patches beside PyTorch's convolution, ViT beside transformers', and what a captioner sees of its image."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm_jax.core.errors import InputError
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.kernels import Chunked, Dense
from llm_jax.layers.masks import Causal, Full, Mask, Prefix, SlidingWindow
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.pooling import First, Mean
from llm_jax.layers.positions import Learned, Positions, Rope
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.models.vision import Captioner, ImageClassifier, ImageEncoder, Patches
from llm_jax.text.recipes import Bytes

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
Y, X, A, PATCH = 12, 8, 3, 4
COUNT = (Y // PATCH) * (X // PATCH)
V = 30


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, Y, X, A)).astype(np.float32)


def encoder(leading: int = 1, width: int = 16, repeats: int = 2) -> ImageEncoder:
    attention = Attention(2, 1, width // 2, mask=Full(), bias=True, out_bias=True)
    block = Block(attention, FeedForward(3 * width, bias=True), LayerNorm(1e-12))
    patches = Patches(width, (Y, X), PATCH, A)
    return ImageEncoder(patches, Stack((block,), repeats), Learned(COUNT + leading), leading=leading)


def drawn(model: Any, seed: int = 0) -> Any:
    """Parameters of the size of 1, by NumPy."""
    random, shapes = np.random.default_rng(seed), jax.eval_shape(model.begin, jax.random.key(0))

    def draw(path: Any, leaf: Any) -> jax.Array:
        return jnp.asarray((path[-1].key == "scale") + 0.4 * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))


def test_patches_are_a_convolution():
    patches, image_BYXA = Patches(width=7, image=(Y, X), patch=PATCH, channels=A), images(2)
    boxed = nn.init(lambda m, image: m(image), patches)(jax.random.key(0), image_BYXA)["params"]
    params = jax.tree.map(lambda p: p + 0.1, nn.meta.unbox(boxed))
    ours_BTD: Any = patches.apply({"params": params}, image_BYXA)
    weight = torch.tensor(np.asarray(params["kernel"]).transpose(3, 2, 0, 1))
    pixels, bias = torch.tensor(image_BYXA.transpose(0, 3, 1, 2)), torch.tensor(np.asarray(params["bias"]))
    theirs = torch.nn.functional.conv2d(pixels, weight, bias, stride=PATCH)
    np.testing.assert_allclose(ours_BTD, theirs.flatten(2).transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("patches", "image", "said"),
    [
        (Patches(4, (9, 8), 4, 1), (9, 8, 1), "patches of 4 pixels a side do not divide images of 9 x 8"),
        (Patches(4, (8, 8), 4, 1), (8, 8, 3), r"images have \(8, 8, 3\) rows, .* but the model reads \(8, 8, 1\)"),
    ],
)
def test_images_that_do_not_fit(patches, image, said):
    with pytest.raises(InputError, match=said):
        nn.init(lambda m, image: m(image), patches)(jax.random.key(0), jnp.zeros((1, *image)))


def test_vit_is_that_of_transformers():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=[Y, X],
        patch_size=PATCH, num_channels=A,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3 + ("norm" in name))
    image_BYXA = images(3)
    with torch.no_grad():
        expected = theirs(torch.tensor(image_BYXA.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    found_BTD = jit(encoder().apply)({"params": copied(theirs)}, image_BYXA)
    assert found_BTD.shape == (3, COUNT + 1, 16)
    np.testing.assert_allclose(found_BTD, expected, atol=2e-4)


def copied(theirs: Any) -> Any:
    """The parameters of a ViTModel of two heads, as ours."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}

    def both(name: str, *shape: int) -> dict[str, np.ndarray]:
        """Of the linear layer in each block, its kernel as [layers, *shape]."""
        kernel = np.stack([state[f"layers.{i}.{name}.weight"].T for i in range(2)]).reshape(-1, *shape)
        bias = np.stack([state[f"layers.{i}.{name}.bias"] for i in range(2)])
        return dict(kernel=kernel, bias=bias if shape[-1] == bias.shape[-1] else bias.reshape(-1, *shape[1:]))

    def norm(name: str) -> dict[str, np.ndarray]:
        return {
            ours: np.stack([state[f"layers.{i}.{name}.{its}"] for i in range(2)])
            for ours, its in (("scale", "weight"), ("bias", "bias"))
        }

    attention = dict(
        query=both("attention.q_proj", 16, 2, 1, 8), key=both("attention.k_proj", 16, 2, 8),
        value=both("attention.v_proj", 16, 2, 8), out=both("attention.o_proj", 2, 1, 8, 16),
    )  # fmt: skip
    ffn = dict(up=both("mlp.fc1", 16, 48), down=both("mlp.fc2", 48, 16))
    norms = dict(attention_norm=norm("layernorm_before"), ffn_norm=norm("layernorm_after"))
    projection = "embeddings.patch_embeddings.projection"
    return dict(
        leading_vectors=state["embeddings.cls_token"][0],
        positions=dict(table=state["embeddings.position_embeddings"][0]),
        patches=dict(kernel=state[f"{projection}.weight"].transpose(2, 3, 1, 0), bias=state[f"{projection}.bias"]),
        norm=dict(scale=state["layernorm.weight"], bias=state["layernorm.bias"]),
        stack=dict(layers=dict(block_0=dict(attention=attention, ffn=ffn, **norms))),
    )


# ---------------------------------------------------------------------------------------------------------- classifier


def test_a_classifier_scores_in_float32_and_pools_as_it_is_told():
    image_BYXA = images(3)
    for pooling, leading in ((First(), 1), (Mean(), 0)):
        model = ImageClassifier(encoder(leading), classes=5, pooling=pooling)
        params = drawn(model)

        @jit
        def both(params, model=model):
            vectors = model.apply({"params": params}, image_BYXA, method=lambda m, x: m.image(x))
            return vectors, model.apply({"params": params}, dict(image_BYXA=image_BYXA), None, method="classify")

        x_BTD, score_BO = both(params)
        pooled = x_BTD[:, 0] if leading else np.asarray(x_BTD, np.float64).mean(1)
        kernel_DO, bias_O = (np.asarray(params["scores"][name], np.float64) for name in ("kernel", "bias"))
        expected = np.asarray(pooled, np.float64) @ kernel_DO + bias_O
        np.testing.assert_allclose(score_BO, expected, atol=1e-5)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert both(narrow)[0].dtype == jnp.bfloat16 and both(narrow)[1].dtype == jnp.float32


def test_flops_are_those_of_an_image():
    model = ImageClassifier(encoder(), classes=5)
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    block = 4 * 16 * 16 + 2 * 16 * 48
    tokens = COUNT + 1
    expected = tokens * (6 * (2 * block + PATCH * PATCH * A * 16) + 12 * 2 * 16 * tokens)
    assert model.flops_per_token(boxed, 4) == expected / 4


# ----------------------------------------------------------------------------------------------------------- captioner


def captioner(
    mask: Mask = Prefix(COUNT + 1), positions: Positions = Rope(), run: Literal["loop", "scan"] = "loop",
    kernel: Any = Dense(), vocabulary: int = V,
) -> Captioner:  # fmt: skip
    block = Block(Attention(2, 1, 8, mask=mask, kernel=kernel), FeedForward(24))
    text = Decoder(Embed(12, vocabulary), Stack((block,), 2, run), positions)
    return Captioner(encoder(repeats=1), text).filled(vocabulary, 20)


def scores(model: Captioner, params: Any, ids_BT: Any, image_BYXA: Any, at: Tokens | None = None) -> np.ndarray:
    def whole(params: Any):
        return model.apply({"params": params}, jnp.asarray(ids_BT), at, image_BYXA=image_BYXA)[0]

    return np.asarray(jit(whole)(params))


IDS = np.random.default_rng(1).integers(0, V, (2, 6)).astype(np.int32)


def test_the_text_sees_the_image_and_what_came_before():
    model = captioner()
    assert model.ahead() == 0 and captioner(Prefix(COUNT + 4)).ahead() == 3
    assert model.limit() == 20 and model.text.context == COUNT + 1 + 20
    params, image_BYXA = drawn(model), images(2)
    before = scores(model, params, IDS, image_BYXA)
    assert before.shape == (2, 6, V) and before.dtype == np.float32
    changed = image_BYXA.copy()
    changed[1] += 1.0
    after = scores(model, params, IDS, changed)
    assert np.array_equal(after[0], before[0]) and (np.abs(after[1] - before[1]).max(-1) > 1e-3).all()
    later = IDS.copy()
    later[:, 4] += 1
    after = scores(model, params, later % V, image_BYXA)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (np.abs(after[:, 4:] - before[:, 4:]).max(-1) > 1e-3).all()


def test_the_image_s_vectors_see_each_other_under_a_prefix():
    """With a causal mask the first of them would not see the last."""
    image_BYXA, params = images(2), drawn(captioner())

    def first_sees_last(mask: Mask) -> bool:
        model = captioner(mask)

        def first(image_BTD):
            at = Tokens.of(image_BTD.shape[:2])
            after: Any = model.apply({"params": params}, image_BTD, at, method=lambda m, x, at: m.text.follow(x, at)[0])
            return after[:, 0]

        x_BTD = jnp.asarray(np.random.default_rng(0).standard_normal((2, COUNT + 1, 12)), jnp.float32)
        return bool((jit(first)(x_BTD) != jit(first)(x_BTD.at[:, -1].add(1.0))).any())

    assert first_sees_last(Prefix(COUNT + 1)) and not first_sees_last(Causal())
    several = [scores(captioner(mask), params, IDS, image_BYXA) for mask in (Prefix(COUNT + 1), Causal())]
    assert np.abs(several[0] - several[1]).max() > 1e-3


def test_padding_on_the_left_changes_nothing():
    model = captioner()
    params, image_BYXA = drawn(model), images(2)
    alone = scores(model, params, IDS, image_BYXA)
    padded = np.concatenate([np.zeros((2, 3), np.int32), IDS], axis=1)
    place = np.broadcast_to(np.arange(-3, 6, dtype=np.int32), (2, 9))
    at = Tokens(jnp.asarray(np.maximum(place, 0)), jnp.asarray(np.where(place < 0, PADDING, 0).astype(np.int32)))
    np.testing.assert_allclose(scores(model, params, padded, image_BYXA, at)[:, 3:], alone, atol=2e-5)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(captioner(), id="rope"),
        pytest.param(captioner(Causal(), Learned(40), kernel=Chunked(16, 16)), id="learned, causal, chunked"),
        pytest.param(captioner(SlidingWindow(5), run="scan"), id="window that rolls, scanned"),
    ],
)
def test_cached_is_uncached_token_for_token(model):
    params, image_BYXA = drawn(model), images(3)
    prompts = [[3, 1, 2], [5], [4, 4, 4, 4, 9]]
    generation = Generation(
        model, prepare(model, params, "float32"), prompts, max_tokens=6, sampler=Sampling(temperature=0.0),
        key_B=row_keys(0, range(3)), stops=(), vocabulary=V, dtype="float32", beside=dict(image_BYXA=image_BYXA),
    )  # fmt: skip
    texts: list[list[int]] = [[] for _ in prompts]
    while not generation.finished:
        for text, new in zip(texts, generation.advance(), strict=True):
            text += new
    ids_BT = np.zeros((3, 11), np.int32)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = prompt
    whole = jit(lambda params, ids_BT: model.apply({"params": params}, ids_BT, image_BYXA=image_BYXA)[0].argmax(-1))
    for step in range(6):
        best_BT = np.asarray(whole(params, ids_BT))
        for row, prompt in enumerate(prompts):
            ids_BT[row, len(prompt) + step] = best_BT[row, len(prompt) + step - 1]
    assert texts == [ids_BT[row, len(p) : len(p) + 6].tolist() for row, p in enumerate(prompts)]
    assert len(set(map(tuple, texts))) == 3


def test_a_language_model_says_of_each_image_what_it_shows():
    tokenizer = Bytes().train([])
    model = captioner(vocabulary=tokenizer.vocabulary)
    lm = LanguageModel(model, drawn(model), tokenizer)
    image_BYXA = images(2)
    said = lm.generate(["a", "a"], max_tokens=4, temperature=0.0, images=image_BYXA)
    assert said[0] != said[1]
    assert lm.generate(["a", "a"], max_tokens=4, temperature=0.0, images=list(image_BYXA[::-1])) == said[::-1]
    for wrong in (image_BYXA[0], [image_BYXA[0], image_BYXA[1, 1:]], [["a"]]):
        with pytest.raises(InputError, match=r"images must be numbers \[B, rows, columns, channels\], all of one size"):
            lm.generate(["a", "a"], images=wrong)
    with pytest.raises(InputError, match="Captioner reads image_BYXA beside each prompt"):
        lm.generate(["a"])


def test_what_a_captioner_refuses():
    model = captioner()
    params = drawn(model)

    def begin(beside: dict[str, Any], of: Any = model):
        Generation(
            of, prepare(model, params, "float32"), [[1], [2]], max_tokens=2, sampler=Sampling(), stops=(), vocabulary=V,
            key_B=row_keys(0, range(2)), dtype="float32", beside=beside,
        )  # fmt: skip

    with pytest.raises(InputError, match="Captioner reads image_BYXA beside each prompt, but was given prompts alone"):
        begin({})
    with pytest.raises(InputError, match="image_BYXA has 3 rows for 2 prompts: give one each"):
        begin(dict(image_BYXA=images(3)))
    with pytest.raises(InputError, match="Decoder reads text alone, but was given image_BYXA"):
        begin(dict(image_BYXA=images(2)), model.text)
    with pytest.raises(InputError, match="a Captioner reads an image before its text"):
        model.apply({"params": params}, jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(InputError, match=r"the image's positions has 3 positions, fewer than the 7"):
        captioner().clone(image=encoder().clone(positions=Learned(3))).filled(V, 20)
