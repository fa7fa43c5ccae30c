"""Adapters beside `peft`: read by it, the same scores; trained by it, the same adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from llm_jax.core.dims import is_lettered
from llm_jax.core.errors import InputError
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.peft import write
from llm_jax.models.heads import Scorer
from llm_jax.optim.trainable import Dora, Lora

from .torch_tensors import boxes, drawn, imported, saved

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
V, STEPS = 61, 4
CONFIG: dict[str, Any] = dict(
    vocab_size=V, hidden_size=32, intermediate_size=22, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
RULES = {
    "SGD": (optax.sgd(0.05), lambda weights: torch.optim.SGD(weights, 0.05)),
    "AdamW": (optax.adamw(1e-2, weight_decay=0.1), lambda weights: torch.optim.AdamW(weights, 1e-2, weight_decay=0.1)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Any, Path, Any, Any]:
    """Their model, its folder, ours and its parameters."""
    folder = tmp_path_factory.mktemp("llama")
    theirs = drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)), 0)
    return theirs, folder, *imported(FAMILIES["llama"], *saved(theirs, folder))


def adapters(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tuning", [Lora(4, 6.0), Dora(4, 6.0, ("*.attention.*.kernel", "*.down.kernel"))])
def test_scores_and_steps_are_pefts(base, tuning, rule, tmp_path):
    _, folder, model, params = base
    key = jax.random.key(3)
    boxed = jax.tree.map(lambda box, value: box.replace_boxed(value), boxes(model), params, is_leaf=is_lettered)
    trained, frozen = nn.meta.unbox(tuning.split(key, boxed))
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), trained)
    write(model, tuning, trained, tmp_path / "first")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "first", is_trainable=True)
    ids = rng.integers(0, V, (STEPS, 2, 9))

    def loss(trained: Any, ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores_BTV = model.apply({"params": tuning.join(trained, frozen)}, ids_BT)[0]
        logp_BTV = jax.nn.log_softmax(scores_BTV[:, :-1])
        return -jnp.take_along_axis(logp_BTV, ids_BT[:, 1:, None], -1).mean(), scores_BTV

    ours_rule, their_rule = RULES[rule]
    their_rule = their_rule([p for p in theirs.parameters() if p.requires_grad])

    @jax.jit
    def step(trained: Any, state: Any, ids_BT: jax.Array):
        (_, scores_BTV), gradients = jax.value_and_grad(loss, has_aux=True)(trained, ids_BT)
        change, state = ours_rule.update(gradients, state, trained)
        return optax.apply_updates(trained, change), state, scores_BTV

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # Optax is written for these
        state = ours_rule.init(trained)
        for ids_BT in ids:
            trained, state, ours_BTV = step(trained, state, jnp.asarray(ids_BT))
            scored = theirs(torch.tensor(ids_BT))
            np.testing.assert_allclose(
                ours_BTV, scored.logits.detach().numpy(), atol=1e-5 * float(np.abs(ours_BTV).max())
            )
            flat = scored.logits[:, :-1].reshape(-1, V)
            their_rule.zero_grad()
            torch.nn.functional.cross_entropy(flat, torch.tensor(ids_BT)[:, 1:].reshape(-1)).backward()
            their_rule.step()
    write(model, tuning, trained, tmp_path / "last")
    theirs.save_pretrained(tmp_path / "theirs")
    found, wanted, first = (adapters(tmp_path / name) for name in ("last", "theirs", "first"))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert np.abs(tensor - first[name]).max() > 1e-3
        np.testing.assert_allclose(found[name], tensor, atol=2e-5, err_msg=name)


TASKS = [
    ("bert", "BertModel", "FeatureExtraction"), ("bert", "BertForMaskedLM", ""),
    ("t5", "T5ForConditionalGeneration", "Seq2SeqLM"), ("llama", "LlamaForCausalLM", "CausalLM"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "task"), TASKS, ids=[kind for _, kind, _ in TASKS])
def test_what_a_model_is_for_is_told_in_pefts_word(family, kind, task, tmp_path):
    """peft then opens it as what it is, with every adapter in its place."""
    cls: Any = getattr(transformers, kind)
    small = dict(vocab_size=V, d_model=8, d_ff=6, d_kv=4, num_heads=2, num_layers=1, decoder_start_token_id=0)
    theirs = drawn(cls(cls.config_class(**(small if family == "t5" else CONFIG))), 0)
    model, params = imported(FAMILIES[family], *saved(theirs, tmp_path / "base"))
    boxed = jax.tree.map(lambda box, value: box.replace_boxed(value), boxes(model), params, is_leaf=is_lettered)
    write(model, Lora(2), nn.meta.unbox(Lora(2).split(jax.random.key(0), boxed)[0]), tmp_path / "adapter")
    opened = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert type(opened).__name__ == "PeftModel" + (f"For{task}" if task else "")
    there = {name.replace(".default", ""): tensor for name, tensor in opened.state_dict().items() if "lora_" in name}
    ours = adapters(tmp_path / "adapter")
    assert there.keys() == ours.keys()
    assert all(np.array_equal(there[name].numpy(), ours[name]) for name in ours)


def test_what_peft_has_no_place_for_is_told(base, tmp_path):
    _, _, model, _ = base
    with pytest.raises(InputError, match=r"norm\.scale is trained whole, and is no adapter: export the merged model"):
        write(model, Lora(also=("norm.scale",)), {}, tmp_path / "a")
    with pytest.raises(InputError, match=r"head\.kernel is trained whole, and is no adapter"):
        write(Scorer(model, bias=False), Lora(), {}, tmp_path / "a")
