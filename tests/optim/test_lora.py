"""LoRA and DoRA: equal to the base at first, to the sum of the kernels ever after, and to what `peft` computes."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.core.quantized import Int8, Nf4, is_quantized, plain
from llm_jax.inference.generate import prepare
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Transformed, Untied
from llm_jax.layers.feedforward import FeedForward, SwiGLU
from llm_jax.layers.masks import Full
from llm_jax.layers.moe import Capacity, MoE
from llm_jax.layers.norms import LayerNorm, NoNorm, RMSNorm
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.optim.precision import Precision
from llm_jax.optim.trainable import Dora, Lora, leaves, tree

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
V, T = 23, 6
ROOM = "stack.layers.block_0.attention"
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, T)))
ATTENTION, READING = Attention(2, 2, 4), Attention(2, 1, 4, Full(), bias=True, out_bias=True)


def decoder(ffn: Any = None, run: Any = "loop", remat: Any = "none") -> Decoder:
    block = Block(ATTENTION, ffn or SwiGLU(10))
    return Decoder(Embed(8, V), Stack((block,), 2, run, remat), Rope(), head=Untied())


def translator() -> EncoderDecoder:
    read, write = Block(READING, FeedForward(10)), Block(ATTENTION, FeedForward(10), cross=CrossAttention(2, 1, 4))
    reader, writer = (Side(Stack((block,), 1), Rope(), RMSNorm(), NoNorm()) for block in (read, write))
    return EncoderDecoder(Embed(8, V), reader, writer, Untied(), start=1)


FAMILIES = {
    "decoder, looped": decoder(),
    "decoder, scanned": decoder(run="scan"),
    "decoder, scanned, nothing kept": decoder(run="scan", remat="full"),
    "experts without drops": decoder(MoE(10, experts=4)),
    "experts with room": decoder(MoE(10, experts=4, dispatch=Capacity(4.0)), "scan"),
    "encoder": Encoder(Embed(8, V), Stack((Block(READING, FeedForward(10, bias=True), LayerNorm()),), 2), Rope(),
                       head=Transformed(), context=T),
    "encoder and decoder": translator(),
}  # fmt: skip


def scores(model: Any, params: Any) -> Any:
    match model:
        case EncoderDecoder():
            source = model.apply({"params": params}, TOKENS[:, ::-1], method="encode")
            return model.apply({"params": params}, TOKENS, source=source)[0]
        case Encoder():
            return model.apply({"params": params}, TOKENS, method="all_scores")
    return model.apply({"params": params}, TOKENS)[0]


def shaken(trained: Any) -> Any:
    """The adapters with other numbers than their first, which compute nothing."""
    rng = np.random.default_rng(1)

    def one(leaf: jax.Array) -> jax.Array:
        return leaf * (1 + 0.3 * rng.random(leaf.shape, np.float32)) + 0.2 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(one, trained)


def split(model: Any, tuning: Any, key: jax.Array) -> tuple[Any, Any]:
    return nn.meta.unbox(tuning.split(key, model.begin(key)))


def close(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, np.abs(b).max()))


def explicit(tuning: Any, trained: Any, frozen: Any) -> Any:
    """One kernel in place of each with an adapter, by the papers' formulas."""
    known = leaves(jax.tree.map(plain, frozen, is_leaf=is_quantized))
    adapters = leaves(trained)
    found = {path: leaf for path, leaf in known.items() if not path.endswith(".norm")} | leaves(tuning.kept(trained))
    for path in [path for path in adapters if path.endswith(".down")]:
        room = path.removesuffix("down")
        kernel, down, up = known[room + "kernel"], adapters[path], adapters[room + "up"]
        before = down.ndim + up.ndim - 2 - kernel.ndim  # letters that all three have
        over = tuple(range(before, down.ndim - 1))
        lead, rows = kernel.shape[:before], int(np.prod(kernel.shape[before : down.ndim - 1]))
        added = down.reshape(*lead, rows, tuning.rank) @ up.reshape(*lead, tuning.rank, -1)
        whole = kernel + tuning.alpha / tuning.rank * added.reshape(kernel.shape)
        if isinstance(tuning, Dora):
            length = jax.lax.stop_gradient(jnp.sqrt((whole**2).sum(over, keepdims=True)))
            whole = jnp.expand_dims(adapters[room + "magnitude"], over) * whole / length
        found[room + "kernel"] = whole
    return tree(found)


@pytest.mark.parametrize("tuning", [Dora(2, base=Int8(32)), Lora(2, also=("norm.scale",), base=Nf4(32))])
def test_quantised_kernels_are_read_layer_by_layer(tuning):
    model = FAMILIES["decoder, scanned"]
    compare(model, tuning)
    boxed, frozen = jax.eval_shape(lambda key: tuning.split(key, model.begin(key)), jax.random.key(0))
    kernels = [leaf for leaf in jax.tree.leaves(frozen, is_leaf=is_quantized) if is_quantized(leaf)]
    assert len(kernels) == 7 and {leaf.codes.letters for leaf in kernels} == {"LQ."}
    assert "stack.layers.block_0.ffn.down.kernel.codes" in leaves(frozen)
    assert ("norm.scale" in leaves(boxed)) == bool(tuning.also)


@pytest.mark.parametrize("tuning", [Dora(2), Dora(2, base=Nf4(32))], ids=["whole", "quantised"])
def test_it_is_the_base_at_first_in_bfloat16(tuning):
    model, cast = FAMILIES["decoder, scanned"], Precision("bfloat16").cast

    @jit
    def both(trained: Any, frozen: Any) -> Any:
        trained, frozen = cast(trained), cast(frozen)
        return scores(model, tuning.join(trained, frozen)), scores(model, tuning.original({}, frozen))

    np.testing.assert_array_equal(*both(*jit(functools.partial(split, model, tuning))(jax.random.key(0))))


@pytest.mark.parametrize("run", ["loop", "scan"])
def test_what_writes_reads_quantised_kernels_as_training_does(run):
    """Scales stay in float32: rounded, they would make another policy of it than the one that is trained."""
    model, tuning = decoder(run=run), Lora(2, base=Int8(32))
    params = tuning.join(*split(model, tuning, jax.random.key(0)))
    written = scores(model, prepare(model, params, "bfloat16"))
    np.testing.assert_array_equal(written, scores(model, Precision("bfloat16").cast(params)))


@pytest.mark.parametrize("kind", [Lora, Dora])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_base_at_first_and_the_explicit_sum_after(family, kind):
    model: Any = FAMILIES[family]
    tuning = kind(2, 3.0)
    if kind is Dora and family == "experts without drops":
        with pytest.raises(InputError, match=r"Dora cannot scale EBTF,EFD->BTD, which sums over experts: set dispatch"):
            jax.eval_shape(lambda key: scores(model, tuning.join(*split(model, tuning, key))), jax.random.key(0))
        return
    compare(model, tuning)


def compare(model: Any, tuning: Any) -> None:
    """Scores at first are the base's, to the bit; then scores, gradients and merged weights are `explicit`'s."""

    def loss(make: Any, trained: Any) -> tuple[jax.Array, jax.Array]:
        found = scores(model, make(trained))
        return (found * jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)).sum(), found

    @jit
    def all_of_it(begun: Any, moved: Any, frozen: Any) -> Any:
        begin = (tuning.join(begun, frozen), tuning.original(tuning.kept(begun), frozen))
        first = [scores(model, params) for params in begin]
        ways = (lambda t: tuning.join(t, frozen), lambda t: explicit(tuning, t, frozen))
        after = [jax.grad(functools.partial(loss, way), has_aux=True)(moved) for way in ways]
        return first, after, [tuning.merged(moved, frozen), explicit(tuning, moved, frozen)]

    trained, frozen = jit(functools.partial(split, model, tuning))(jax.random.key(0))
    first, after, merged = all_of_it(trained, shaken(trained), frozen)
    np.testing.assert_array_equal(*first)
    assert np.abs(after[0][1] - first[0]).max() > 0.05
    close(*after)
    close(*merged)


def test_no_gradient_of_a_frozen_kernel_is_computed():
    """Six products for an adapter, one less for each kernel and the head; none for what enters the first layer."""
    model, tuning = decoder(), Lora(2)

    def products(tuned: bool) -> int:
        def loss(trained: Any, frozen: Any) -> jax.Array:
            return scores(model, tuning.join(trained, frozen) if tuned else trained).sum()

        trained, frozen = jax.eval_shape(functools.partial(split, model, tuning), jax.random.key(0))
        given = (trained, frozen) if tuned else (tuning.original({}, frozen), {})
        text: Any = jax.jit(jax.grad(loss)).lower(*given).compile().as_text()
        return text.count(" dot(")

    kernels = 2 * 7
    whole, tuned = products(False), products(True)
    assert tuned == whole - (kernels + 1) + 6 * kernels - 6


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (
            Lora(paths=(f"{ROOM}.qury.kernel",)),
            f"no parameter is called '{ROOM}.qury.kernel': did you mean '{ROOM}.query",
        ),
        (Dora(paths=("*norm.scale",)), r"norm.scale is no Einsum's kernel, so it has no adapter: choose from stack"),
        (Lora(paths=("head.kernel",)), r"head.kernel is no Einsum's kernel"),
        (Lora(also=("nrm.scale",)), r"tuning.also: no parameter is called 'nrm.scale': did you mean 'norm.scale'"),
        (Lora(paths=("*.ffn.*",), also=("*.up.kernel",)), r"up.kernel has an adapter by tuning.paths, and is trained"),
    ],
)
def test_a_path_that_fits_no_kernel_is_told(tuning, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(functools.partial(split, decoder(), tuning), jax.random.key(0))
