"""Every family of decoders against transformers: randomly initialised models, in and out again.

Each configuration has random weights, biases and norm scales, or a mistake in one that begins at 0 or 1 would not show.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from llm_jax.core.tables import InputError
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampler
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.exports import write
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.imports import read
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.parallel.layout import Layout

VOCABULARY, LENGTH, NEW = 61, 14, 6
BASE: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=30, intermediate_size=22, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2 = dict(vocab_size=VOCABULARY, n_embd=30, n_layer=2, n_head=3, n_positions=64, bos_token_id=1, eos_token_id=2)


def rope(kind: str = "default", theta: float = 5000.0, **more: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0)
EXPERTS = dict(  # sizes that torch can group
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, hidden_size=32, num_attention_heads=4
)
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"]
TWO_BASES = dict(
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e5),
        sliding_attention=dict(rope_type="default", rope_theta=50.0),
    )
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1": ("llama", BASE | dict(head_dim=12, num_hidden_layers=3) | rope("llama3", **LLAMA3)),
    "llama-linear-biases": ("llama", BASE | dict(attention_bias=True, mlp_bias=True) | rope("linear", factor=3.0)),
    "llama-yarn-tied": ("llama", BASE | dict(tie_word_embeddings=True, num_key_value_heads=3) | rope("yarn", **YARN)),
    "mistral-window": ("mistral", BASE | dict(head_dim=8, sliding_window=4, num_attention_heads=6, hidden_size=40)),
    "mistral-whole": ("mistral", BASE | dict(sliding_window=None, hidden_act="gelu")),
    "mistral-tied-odd": (
        "mistral", BASE | dict(hidden_size=35, num_attention_heads=5, num_key_value_heads=5, head_dim=14,
                               sliding_window=6, tie_word_embeddings=True)),
    "qwen2": ("qwen2", BASE | dict(tie_word_embeddings=True)),
    "qwen2-upper-windows": (
        "qwen2", BASE | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, rms_norm_eps=1e-5)
    ),
    "qwen2-linear-odd": ("qwen2", BASE | dict(hidden_size=42, num_attention_heads=7) | rope("linear", factor=2.0)),
    "qwen3": ("qwen3", BASE | dict(head_dim=12, attention_bias=True)),
    "qwen3-tied-mix": (
        "qwen3", BASE | dict(head_dim=8, num_hidden_layers=3, layer_types=PATTERN, use_sliding_window=True,
                             sliding_window=5, tie_word_embeddings=True)),
    "qwen3-odd": ("qwen3", BASE | dict(num_attention_heads=5, num_key_value_heads=5, head_dim=6)),
    "qwen3-experts": ("qwen3_moe", BASE | EXPERTS | dict(norm_topk_prob=True, num_hidden_layers=3)),
    "qwen3-experts-window": (
        "qwen3_moe", BASE | EXPERTS | dict(attention_bias=True, use_sliding_window=True, sliding_window=5)),
    "qwen3-experts-tied": (
        "qwen3_moe", BASE | EXPERTS | dict(num_experts=5, num_experts_per_tok=3, num_key_value_heads=2, head_dim=6,
                                           norm_topk_prob=False, tie_word_embeddings=True)),
    "phi3": ("phi3", BASE | dict(sliding_window=5)),
    "phi3-partial": (
        "phi3", BASE | dict(hidden_size=48, num_key_value_heads=3) | rope(partial_rotary_factor=0.5)
    ),
    "phi3-tied-odd": (
        "phi3", BASE | dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=5, tie_word_embeddings=True)),
    "gemma": ("gemma", BASE | dict(head_dim=12)),
    "gemma-untied-biases": ("gemma", BASE | dict(head_dim=8, attention_bias=True, tie_word_embeddings=False)),
    "gemma-odd": ("gemma", BASE | dict(num_attention_heads=5, num_key_value_heads=5, head_dim=6)),
    "gemma2": (
        "gemma2", BASE | dict(head_dim=12, sliding_window=4, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
                              final_logit_softcapping=3.0)),
    "gemma2-plain": (
        "gemma2", BASE | dict(head_dim=8, num_hidden_layers=3, sliding_window=5, query_pre_attn_scalar=8,
                              attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True)),
    "gemma2-untied-odd": (
        "gemma2", BASE | dict(num_attention_heads=5, head_dim=10, query_pre_attn_scalar=7, sliding_window=6,
                              tie_word_embeddings=False)),
    "gemma3": (
        "gemma3_text", BASE | dict(head_dim=12, num_hidden_layers=6, sliding_window=4, query_pre_attn_scalar=20)),
    "gemma3-two-bases": (
        "gemma3_text", BASE | dict(head_dim=8, num_hidden_layers=3, sliding_window=5, layer_types=PATTERN,
                                   query_pre_attn_scalar=8, final_logit_softcapping=5.0) | TWO_BASES),
    "gemma3-untied-odd": (
        "gemma3_text", BASE | dict(num_key_value_heads=3, head_dim=6, num_hidden_layers=7, sliding_window=6,
                                   query_pre_attn_scalar=6, attention_bias=True, tie_word_embeddings=False)),
    "olmo2": ("olmo2", BASE | dict(num_key_value_heads=3, attention_bias=True)),
    "olmo2-grouped": ("olmo2", BASE | dict(hidden_size=48) | rope("llama3", **LLAMA3)),
    "olmo2-tied-odd": ("olmo2", BASE | dict(num_attention_heads=5, tie_word_embeddings=True)),
    "gpt2": ("gpt2", GPT2),
    "gpt2-odd": ("gpt2", GPT2 | dict(n_embd=35, n_head=5, n_layer=3, n_inner=17, activation_function="gelu")),
    "gpt2-unscaled": (
        "gpt2", GPT2 | dict(n_inner=22, scale_attn_weights=False, activation_function="relu",
                            tie_word_embeddings=False)),
}  # fmt: skip
VOLATILE = {"_name_or_path", "dtype", "architectures", "transformers_version"}
UNUSED = {  # settings that are only there to make others by default, or are another name of the same function
    "qwen2": {"max_window_layers"}, "qwen3": {"max_window_layers"}, "qwen3_moe": {"intermediate_size"},
    "phi3": {"original_max_position_embeddings"},
    "gpt2": {"activation_function"},
}  # fmt: skip


@dataclasses.dataclass
class Case:
    theirs: Any
    config: Any
    model: Any
    params: Any
    folder: Path
    family: str


@functools.cache
def made(name: str, root: Path) -> Case:
    kind, settings = CASES[name]
    config = transformers.AutoConfig.for_model(kind, **settings)
    torch.manual_seed(len(name))
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1) * 0.4)
    folder = root / name
    theirs.save_pretrained(folder)
    model, params = read(open_source(folder), Layout(1))
    return Case(theirs, config, model, params, folder, kind)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(params=CASES)
def case(request, root) -> Case:
    return made(request.param, root)


@functools.partial(jax.jit, static_argnums=0)
def scores(model: Any, params: Any, tokens_BT: jax.Array, at: Tokens) -> jax.Array:
    return model.apply({"params": params}, tokens_BT, at)[0]


def theirs_alone(case: Case, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return case.theirs(torch.tensor(ids[None])).logits[0].numpy()


def test_scores_alone_padded_and_packed(case):
    """Rows: one text; padding on the right; on the left; three texts. Each text is as transformers has it alone."""
    random = np.random.default_rng(0)
    tokens_BT = random.integers(3, VOCABULARY, (4, LENGTH))
    texts = [(0, 0, 14), (1, 0, 9), (2, 5, 14), (3, 0, 5), (3, 5, 6), (3, 6, 14)]
    position_BT, segment_BT = np.zeros((4, LENGTH), np.int32), np.full((4, LENGTH), PADDING, np.int32)
    for number, (row, start, stop) in enumerate(texts):
        position_BT[row, start:stop], segment_BT[row, start:stop] = np.arange(stop - start), number
    at = Tokens(jnp.asarray(position_BT), jnp.asarray(segment_BT))
    ours = np.asarray(scores(case.model, case.params, jnp.asarray(tokens_BT, jnp.int32), at))
    for row, start, stop in texts:
        wanted = theirs_alone(case, tokens_BT[row, start:stop])
        np.testing.assert_allclose(ours[row, start:stop], wanted, atol=2e-4, rtol=0)
    assert np.abs(wanted).max() > 0.1 and np.isfinite(ours).all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best(Sampler):
    """The best token and nothing else, which is quicker to compile."""

    def draw(self, key_B, logits_BV, seen_BV):
        return logits_BV.argmax(-1).astype(jnp.int32)


GENERATED = (
    "llama-3.1", "mistral-window", "qwen2-upper-windows", "qwen3", "qwen3-experts", "phi3", "gemma", "gemma2",
    "gemma3-two-bases", "olmo2", "gpt2",
)  # fmt: skip  # one of each family


@pytest.mark.parametrize("name", GENERATED)
def test_greedy_text_with_a_cache_is_theirs(name, root):
    case = made(name, root)
    prompts = [np.random.default_rng(1).integers(3, VOCABULARY, n).tolist() for n in (9, 4)]
    generation = Generation(
        case.model, prepare(case.model, case.params, np.float32), prompts, max_tokens=NEW, sampler=Best(),
        key_B=row_keys(0, range(2)), stops=(), vocabulary=VOCABULARY, dtype=np.dtype("float32"),
    )  # fmt: skip
    said: list[list[int]] = [[], []]
    while not generation.finished:
        for row, new in enumerate(generation.advance()):
            said[row] += new
    for prompt, ours in zip(prompts, said, strict=True):
        with torch.no_grad():
            wanted = case.theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        assert ours == wanted[0, len(prompt) :].tolist()


def test_an_export_is_the_checkpoint_again(case, tmp_path):
    special = {name: getattr(case.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write(case.model, case.params, tmp_path, special, likely=case.family, shard=20_000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(case.theirs)
    before, after = case.theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    was, now = case.config.to_dict(), again.config.to_dict()
    differing = {name for name in was if was[name] != now.get(name)}
    assert differing <= VOLATILE | UNUSED.get(case.family, set())
    jax.tree.map(np.testing.assert_array_equal, read(open_source(tmp_path), Layout(1))[1], case.params)


def test_a_checkpoint_in_several_files_is_read_as_one(root, tmp_path):
    """As transformers parts it; a fused tensor, and one of each expert."""
    for name in ("phi3", "qwen3-experts"):
        case = made(name, root)
        case.theirs.save_pretrained(tmp_path / name, max_shard_size="9KB")
        index = json.loads((tmp_path / name / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 3 and not (tmp_path / name / "model.safetensors").exists()
        model, params = read(open_source(tmp_path / name), Layout(1))
        assert model == case.model
        jax.tree.map(np.testing.assert_array_equal, params, case.params)


def test_every_decoder_is_tried():
    assert {kind for kind, _ in CASES.values()} <= FAMILIES.keys()
    written = {FAMILIES[kind].architectures[0] for kind, _ in CASES.values()}
    assert {
        f.architectures[0] for f in FAMILIES.values() if f.architectures[0].endswith(("CausalLM", "LMHeadModel"))
    } == written


def test_shards_hold_what_one_device_does(root):
    case = made("qwen2", root)
    _, params = read(open_source(case.folder), Layout(1, fsdp=2, tensor=2))
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 5
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("qwen2", "model.")])
def test_a_checkpoint_without_its_head(name, prefix, root, tmp_path):
    """As `save_pretrained` of the bare model writes it, and OpenAI's GPT-2 is published."""
    case = made(name, root)
    getattr(case.theirs, prefix[:-1]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(tie_word_embeddings=True)))
    _, params = read(open_source(tmp_path), Layout(1))
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


def untied(case: Case, folder: Path) -> Any:
    """Their model with a head that is not its embedding, saved as one that is tied."""
    theirs = copy.deepcopy(case.theirs)
    theirs.config.tie_word_embeddings = False
    theirs.lm_head.weight = torch.nn.Parameter(theirs.get_input_embeddings().weight.detach() + 0.5)
    theirs.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(tie_word_embeddings=True)))
    return theirs


@pytest.mark.parametrize("name", GENERATED)
def test_a_head_that_is_no_copy_of_the_embedding_is_not_dropped(name, root, tmp_path):
    """transformers reads both, whatever config.json says, and warns."""
    case = made(name, root)
    theirs = untied(case, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, theirs.lm_head.weight)
    table = "transformer.wte.weight" if case.family == "gpt2" else "model.embed_tokens.weight"
    told = rf"lm_head\.weight is no copy of {re.escape(table)}, .*: set tie_word_embeddings=false in config\.json"
    with pytest.raises(InputError, match=told):
        read(open_source(tmp_path), Layout(1))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(tie_word_embeddings=False)))
    _, params = read(open_source(tmp_path), Layout(1))
    np.testing.assert_array_equal(params["head"]["kernel"].T, theirs.lm_head.weight.detach().numpy())


def test_a_head_that_is_a_copy_is_read_once(root, tmp_path):
    case = made("qwen2", root)
    shutil.copytree(case.folder, tmp_path / "copied")
    tensors = safetensors.numpy.load_file(tmp_path / "copied/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "copied/model.safetensors")
    _, params = read(open_source(tmp_path / "copied"), Layout(1))
    jax.tree.map(np.testing.assert_array_equal, params, case.params)
