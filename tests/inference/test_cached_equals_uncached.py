"""With a cache, the same text token for token as without: for every position encoding, grouping, mask and kernel."""

import itertools
from typing import Any

import jax
import pytest

from llm_jax.layers.kernels import KERNELS, Chunked
from llm_jax.layers.masks import Causal, Prefix, SlidingWindow
from llm_jax.layers.positions import POSITIONS, LinearScaling, Rope
from llm_jax.layers.scoring import FEATURES

HEADS = dict(MHA=(4, 1), GQA=(2, 2), MQA=(1, 4))
# those that take everything on every machine; tests/contracts/test_kernels.py has what the others refuse
WHOLE = {name: kernel for name, kernel in KERNELS.items() if kernel.takes == frozenset(FEATURES)}
SETTINGS: dict[str, Any] = dict(Chunked=dict(queries=16, keys=16))  # two blocks of keys
WINDOW = SlidingWindow(3)  # shorter than the prompts: their caches roll


@pytest.fixture(autouse=True)
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_encoding_grouping_mask_and_kernel(tiny, positions, heads):
    key_heads, group = HEADS[heads]
    prompts = tiny.prompts(4, 9)  # padded on the left, and by different numbers
    params, texts = None, {}
    for mask, kernel in itertools.product((Causal(), WINDOW), WHOLE):
        attention = tiny.attention(key_heads, group, mask=mask, kernel=KERNELS[kernel](**SETTINGS.get(kernel, {})))
        model = tiny.decoder(attention, positions=POSITIONS[positions]())
        params = params or tiny.initial(model)
        texts[mask, kernel] = tiny.cached(model, params, prompts, sampler=tiny.Best())
        assert texts[mask, kernel] == tiny.uncached(model, params, prompts)
    assert texts[Causal(), "Dense"] == texts[Causal(), "Chunked"] != texts[WINDOW, "Dense"] == texts[WINDOW, "Chunked"]


@pytest.mark.parametrize("run", ["loop", "scan"])
def test_a_pattern_of_local_and_global_layers(tiny, run):
    local = tiny.attention(mask=WINDOW, kernel=Chunked(8, 8))
    model = tiny.decoder(local, tiny.attention(), repeats=2, run=run, positions=Rope(scaling=LinearScaling(2.0)))
    params, prompts = tiny.initial(model), tiny.prompts(1, 17, 30)
    assert tiny.cached(model, params, prompts, 20) == tiny.uncached(model, params, prompts, 20)


def test_masks_combined(tiny):
    model = tiny.decoder(tiny.attention(mask=WINDOW & Causal()))
    params, prompts = tiny.initial(model), tiny.prompts(2, 5)
    assert tiny.cached(model, params, prompts) == tiny.uncached(model, params, prompts)


def test_a_prefix_that_sees_itself_whole(tiny):
    model = tiny.decoder(tiny.attention(mask=Prefix(2)))
    params, prompts = tiny.initial(model), tiny.prompts(2, 5)
    assert tiny.cached(model, params, prompts) == tiny.uncached(model, params, prompts)


def test_bfloat16(tiny):
    model = tiny.decoder(tiny.attention(mask=WINDOW), tiny.attention())
    params, prompts = tiny.initial(model), tiny.prompts(4, 9)
    narrow = tiny.cached(model, params, prompts, dtype="bfloat16")
    assert [len(text) for text in narrow] == [8, 8]
    wide = tiny.uncached(model, params, prompts)
    assert [text[0] for text in narrow] == [text[0] for text in wide]  # these scores are far apart
