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

from llm_jax.core.errors import InputError
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampler
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.export import write
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.import_ import read
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.parallel.layout import Layout

from .decoder_cases import CASES, VOCABULARY

LENGTH, NEW = 14, 6
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
    write(case.model, case.params, tmp_path, special, likely=case.family, shard=4_000)
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
