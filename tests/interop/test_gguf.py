"""GGUF files, written here with the `gguf` package: settings, names and layout undone; quantisation; tokenizers."""

import json
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import MODEL_ARCH
from gguf import GGMLQuantizationType as Type

from llm_jax.core.errors import InputError
from llm_jax.interop import import_
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.configs.rope import read
from llm_jax.interop.gguf.architectures import ARCHITECTURES
from llm_jax.interop.gguf.reader import Gguf
from llm_jax.interop.import_ import import_model, load
from llm_jax.interop.tokenizers.import_ import import_tokenizer
from llm_jax.layers.positions import YarnScaling
from llm_jax.text import Message
from llm_jax.text.tokenizer import SPACE

SIZES: dict[str, Any] = dict(
    vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LLAMA: dict[str, Any] = dict(attention_bias=True, rope_theta=5e5)
GEMMA: dict[str, Any] = SIZES | dict(head_dim=32, tie_word_embeddings=True)
CONFIGS: dict[str, Any] = dict(
    llama=transformers.LlamaConfig(**(SIZES | LLAMA)),
    qwen2=transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    qwen3=transformers.Qwen3Config(**SIZES, head_dim=32),
    phi3=transformers.Phi3Config(**SIZES, sliding_window=32, pad_token_id=0),
    gemma=transformers.GemmaConfig(**GEMMA),
    gemma2=transformers.Gemma2Config(**GEMMA, sliding_window=32, query_pre_attn_scalar=32),
    gemma3=transformers.Gemma3TextConfig(**GEMMA, sliding_window=32, query_pre_attn_scalar=32),
    gpt2=transformers.GPT2Config(
        vocab_size=48, n_embd=64, n_inner=96, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
)
# What every one has, and what some have.
READ = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
)
SOME = (
    "intermediate_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_epsilon", "attention_bias",
    "mlp_bias", "sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "hidden_activation", "n_inner", "activation_function", "rope_parameters", "layer_types", "tie_word_embeddings",
)  # fmt: skip


def settings(writer: gguf.GGUFWriter, config, bos: int = 1, eos: int = 2) -> None:
    """The metadata, as llama.cpp's conversion writes it."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or config.n_inner)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def converted(arch: str, config, name: str, tensor: np.ndarray) -> np.ndarray:
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        apart = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return apart.swapaxes(1, 2).reshape(tensor.shape)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return tensor.T
    return tensor


def write(path, arch: str, config, tensors: dict[str, np.ndarray]) -> None:
    """A file with these tensors by their names in GGUF, which the package's own table gives."""
    writer = gguf.GGUFWriter(path, arch)
    settings(writer, config)
    names = gguf.get_tensor_name_map(getattr(MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    for name, tensor in tensors.items():
        their = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert their is not None, name
        writer.add_tensor(their, np.ascontiguousarray(converted(arch, config, name, tensor)))
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("arch", CONFIGS)
def test_settings_names_and_tensors_are_those_before_the_conversion(arch, tmp_path):
    torch.manual_seed(0)
    config = CONFIGS[arch]
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    tied = config.tie_word_embeddings
    state = {n: t.numpy() for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    write(tmp_path / "a.gguf", arch, config, state)

    found = Gguf(tmp_path / "a.gguf")
    assert sorted(found.tensors.names()) == sorted(state)
    for name, tensor in state.items():
        assert found.tensors.shape(name) == tensor.shape
        np.testing.assert_allclose(found.tensors.read(name), tensor, atol=3e-7, rtol=0)
    again = transformers.AutoConfig.for_model(**found.config)
    assert found.config["architectures"] == [type(model).__name__] and type(again) is type(config)
    for name in (*READ, *SOME):
        if hasattr(config, name) and (name in READ or getattr(config, name) is not None):
            assert getattr(again, name) == getattr(config, name), name


def test_every_architecture_is_tried():
    assert CONFIGS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("F32", 0), ("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 0.02), ("Q4_0", 0.3), ("Q4_1", 0.2), ("Q5_0", 0.2)],
)
def test_quantised_tensors_are_read(kind, tolerance, tmp_path):
    config = CONFIGS["qwen2"]
    values = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    settings(writer, config)
    packed = gguf.quants.quantize(values, Type[kind])
    writer.add_tensor("token_embd.weight", packed, raw_dtype=Type[kind])
    finish(writer)
    tensors = Gguf(tmp_path / "a.gguf").tensors
    read = tensors.read("model.embed_tokens.weight")
    assert read.dtype == np.float32 and read.shape == tensors.shape("model.embed_tokens.weight") == (48, 64)
    np.testing.assert_allclose(read, values, atol=tolerance)
    np.testing.assert_array_equal(read, gguf.quants.dequantize(packed, Type[kind]))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_K"])
def test_a_scale_that_is_no_number_is_named(kind, tmp_path):
    """As other numbers of a model whose conversion overflowed."""
    torch.manual_seed(0)
    wide: dict[str, Any] = SIZES | dict(hidden_size=256, intermediate_size=256)
    config = transformers.LlamaConfig(**wide, tie_word_embeddings=True)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    settings(writer, config)
    names = gguf.get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items():
        their = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if their is None or name == "lm_head.weight":
            continue
        array = np.ascontiguousarray(converted("llama", config, name, tensor.numpy()))
        if name != "model.layers.1.mlp.up_proj.weight":
            writer.add_tensor(their, array)
        elif kind == "Q4_K":
            blocks = np.zeros((256, 144), np.uint8)
            blocks[7, :2] = np.array([np.inf], np.float16).view(np.uint8)
            writer.add_tensor(their, blocks, raw_dtype=Type[kind])
        else:
            packed = gguf.quants.quantize(array, Type[kind])
            infinity = np.array([np.inf], np.float32 if kind == "F32" else np.float16).view(np.uint8)
            packed.view(np.uint8)[3, : infinity.size] = infinity
            writer.add_tensor(their, packed, raw_dtype=Type[kind])
    finish(writer)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"):
        import_.read(open_source(tmp_path / "a.gguf"))


def q4_k(block: np.ndarray) -> np.ndarray:
    """256 values of 144 bytes, from the description of the format: eight groups, each with a scale and a minimum."""
    scale, minimum = block[:4].view(np.float16).astype(np.float64)
    packed, quants = block[4:16].astype(int), block[16:]
    values = []
    for group in range(8):
        if group < 4:
            s, m = packed[group] & 63, packed[group + 4] & 63
        else:
            s = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4)
            m = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4)
        four_bits = (quants[group // 2 * 32 :][:32] >> (4 * (group % 2))) & 15
        values.append(scale * s * four_bits - minimum * m)
    return np.concatenate(values)


def q6_k(block: np.ndarray) -> np.ndarray:
    """256 values of 210 bytes: four low bits, two high bits, sixteen 8-bit scales and one for all."""
    low, high, scales = block[:128].astype(int), block[128:192].astype(int), block[192:208].view(np.int8)
    values = np.empty(256)
    for half in range(2):
        for part in range(4):
            ql = low[64 * half + 32 * (part % 2) :][:32] >> (4 * (part // 2)) & 15
            qh = high[32 * half :][:32] >> (2 * part) & 3
            values[128 * half + 32 * part :][:32] = (ql | qh << 4) - 32
    return float(block[208:].view(np.float16)[0]) * values * np.repeat(scales.astype(float), 16)


@pytest.mark.parametrize(
    ("kind", "size", "reference", "halves"), [("Q4_K", 144, q4_k, (0, 2)), ("Q6_K", 210, q6_k, (208,))]
)
def test_blocks_of_256_are_read(kind, size, reference, halves, tmp_path):
    wide: dict[str, Any] = SIZES | dict(hidden_size=256)
    config = transformers.Qwen2Config(**wide)
    blocks = np.random.default_rng(1).integers(0, 256, (48, size), np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = np.full((48, 1), 0.01, np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    settings(writer, config)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=Type[kind])
    finish(writer)
    read = Gguf(tmp_path / "a.gguf").tensors.read("model.embed_tokens.weight")
    np.testing.assert_allclose(read, [reference(block) for block in blocks], rtol=1e-5, atol=1e-5)


def rope(tmp_path, add) -> dict:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    settings(writer, CONFIGS["llama"])
    writer.add_tensor("token_embd.weight", np.zeros((48, 64), np.float32))
    add(writer)
    finish(writer)
    return dict(Gguf(tmp_path / "a.gguf").config)


def test_scaled_rotary_positions_are_recognised(tmp_path):
    published = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
    published |= dict(original_max_position_embeddings=8192)
    asked: dict[str, Any] = dict(max_position_embeddings=9000, rope_theta=5e5, rope_scaling=dict(published))
    config = transformers.LlamaConfig(**(SIZES | asked))
    scaled = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
    factors = (5e5 ** (-np.arange(0, 16, 2) / 16) / scaled).astype(np.float32)
    assert rope(tmp_path, lambda w: w.add_tensor("rope_freqs.weight", factors))["rope_scaling"] == published
    with pytest.raises(InputError, match=r"rope_freqs that are not Llama 3\.1's"):
        rope(tmp_path, lambda w: w.add_tensor("rope_freqs.weight", factors * 2))

    def linear(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    assert rope(tmp_path, linear)["rope_scaling"] == dict(rope_type="linear", factor=8.0)


def yarn(**more: float) -> Callable[[Any], None]:
    """Writes YaRN's settings; `more` are methods of the writer and what each is given."""

    def add(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(8.0)
        writer.add_rope_scaling_orig_ctx_len(64)
        for name, value in more.items():
            getattr(writer, f"add_rope_scaling_{name}")(value)

    return add


@pytest.mark.parametrize("betas", [{}, dict(yarn_beta_fast=8.0, yarn_beta_slow=2.0)])
def test_yarns_waves_are_the_files(tmp_path, betas):
    found = read(rope(tmp_path, yarn(**betas, yarn_ext_factor=1.0))["rope_scaling"] | dict(rope_theta=1e4), {}).scaling
    assert found == YarnScaling(8.0, 64, *betas.values())


def test_an_old_files_linear_scaling_is_read(tmp_path):
    def old(writer: Any) -> None:
        writer.add_float32("llama.rope.scale_linear", 4.0)

    assert rope(tmp_path, old)["rope_scaling"] == dict(rope_type="linear", factor=4.0)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda w: w.add_expert_count(8), "a mixture of experts, which is not covered"),
        (
            lambda w: w.add_tensor("blk.0.ssm_in.weight", np.zeros((2, 2), np.float32)),
            "blk.0.ssm_in.weight, which is not",
        ),
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
            "rope.scaling.type='longrope', which is not",
        ),
        (yarn(attn_factors=1.5), r"llama\.rope\.scaling\.attn_factor=1\.5, which is not covered: it must be 1"),
        (yarn(yarn_attn_factor=1.5), "yarn_attn_factor=1.5, which is not covered: it must be 1"),
        (yarn(yarn_ext_factor=0.5), "yarn_ext_factor=0.5, which is not covered: it must be 1"),
        (yarn(yarn_log_mul=0.1), "yarn_log_multiplier=0.1, which is not covered: it must be 0"),
    ],
)
def test_what_is_not_covered_is_refused(tmp_path, add, message):
    with pytest.raises(InputError, match=message):
        rope(tmp_path, add)


@pytest.mark.parametrize("role", ["bos", "eos", "pad", "unk", "mask", "eot"])
def test_a_token_that_is_none_of_the_file_s_is_refused(tmp_path, role):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    settings(writer, CONFIGS["llama"], *(dict(bos=99).get(role, 1), dict(eos=99).get(role, 2)))
    if role not in ("bos", "eos"):
        getattr(writer, f"add_{role}_token_id")(99)
    writer.add_tensor("token_embd.weight", np.zeros((48, 64), np.float32))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(48)])
    writer.add_token_scores([0.0] * 48)
    finish(writer)
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.\w+_token_id=99, and 48 tokens"):
        Gguf(tmp_path / "a.gguf").tokenizer()


def test_what_is_no_gguf_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        Gguf(tmp_path / "absent.gguf")
    (tmp_path / "a.gguf").write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(InputError, match="is no GGUF file, or damaged"):
        Gguf(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "mamba")
    finish(writer)
    with pytest.raises(InputError, match="no GGUF architecture named 'mamba': did you mean 'llama'"):
        Gguf(tmp_path / "b.gguf")


@pytest.mark.parametrize("untied", [False, True])
def test_a_file_of_a_split_model_is_refused(tmp_path, untied):
    """Without the output matrix, which lies in the last file, the first one is a whole model with a tied head."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=not untied)
    state = {n: t.numpy() for n, t in transformers.LlamaForCausalLM(config).state_dict().items()}
    if not untied:
        del state["lm_head.weight"]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=len(state) - 1)
    settings(writer, config)
    names = gguf.get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        their = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert their is not None, name
        writer.add_tensor(their, np.ascontiguousarray(converted("llama", config, name, tensor)))
    finish(writer)
    files = sorted(tmp_path.glob("*.gguf"))
    assert [file.name for file in files] == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]
    for number, file in enumerate(files, 1):
        for attempt in (Gguf, load, lambda file: import_model(file, tmp_path / "run")):
            with pytest.raises(InputError, match=f"is file {number} of 2 of a split model, .*: join them") as said:
                attempt(file)
            assert "\n" not in str(said.value)


# ---------------------------------------------------------------------------------------------------------- tokenizers

TEMPLATE = "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}{% endfor %}"
PRE = dict(smollm="smollm", llama3="llama-bpe")


def vocabulary(path, folder, pre: str | None) -> None:
    """The tokenizer of a folder as it is stored in a GGUF file."""
    rust = json.loads((folder / "tokenizer.json").read_text())
    named = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["id"]: token for token in rust["added_tokens"]}
    pieces = {i: token for token, i in rust["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    tokens = [pieces[i] for i in range(1 + max(pieces))]
    kinds = gguf.TokenType

    def kind(i: int, token: str) -> gguf.TokenType:
        if token == named.get("unk_token") and pre is None:
            return kinds.UNKNOWN
        if i in added:
            return kinds.CONTROL if added[i]["special"] else kinds.USER_DEFINED
        return kinds.BYTE if token.startswith("<0x") else kinds.NORMAL

    writer = gguf.GGUFWriter(path, "llama")
    settings(writer, CONFIGS["llama"], *(tokens.index(named[f"{role}_token"]) for role in ("bos", "eos")))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 64), np.float32))
    writer.add_tokenizer_model("llama" if pre is None else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([kind(i, token) for i, token in enumerate(tokens)])
    merges = [tuple(merge) for merge in rust["model"]["merges"]]
    if pre is None:  # a piece's score is the better, the sooner it is made
        rank = {left + right: -float(at) for at, (left, right) in reversed([*enumerate(merges)])}
        writer.add_token_scores([rank.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(SPACE in str(rust["normalizer"]) and "Prepend" in str(rust["normalizer"]))
    else:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_chat_template(TEMPLATE)
    finish(writer)


@pytest.mark.parametrize("kind", ["smollm", "llama3", "llama2", "gemma"])
def test_the_vocabulary_in_a_file_encodes_as_the_folder_does(published, kind, tmp_path):
    vocabulary(tmp_path / "a.gguf", published[kind], PRE.get(kind))
    found = Gguf(tmp_path / "a.gguf")
    ours, template = found.tokenizer()
    theirs, _ = import_tokenizer(published[kind])
    assert ours.vocabulary == theirs.vocabulary and ours.beside == theirs.beside and ours.marks == theirs.marks
    for text in (
        "The values, e.g.\n\n  def f(x):\n\n\n return 1234 ",
        "café ½ 🙂日本",
        "  two",
        "",
        "<0x41>",
        "assistants",
        "a <table>b",
    ):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    ids, learn = template.render(ours, [Message("user", "a"), Message("assistant", "b")])
    end = theirs.special["eos"]
    assert ids[0] == ours.special["bos"] == theirs.special["bos"]
    assert ours.special["eos"] == ours.special["end_of_turn"] == end and ours.ends == {end}
    assert [i for i, yes in zip(ids, learn, strict=True) if yes][-1] == end
    assert found.adds_bos == (kind in ("llama3", "llama2", "gemma"))
