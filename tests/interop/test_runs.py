"""Published checkpoints as runs, and back: what is read, what is refused, what is in the folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import llm_jax
from llm_jax import __main__ as command_line
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering
from llm_jax.data.noising import Masked
from llm_jax.engine.step import fill
from llm_jax.experiment import Experiment
from llm_jax.interop import checkpoint, export
from llm_jax.interop.checkpoint import Folder, open_source
from llm_jax.interop.import_ import experiment_of, make_run, read
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.stack import Stack
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.text import Bytes, ChatTemplate
from llm_jax.text.kept import Kept

VOCABULARY = 270
IDS = np.random.default_rng(0).integers(0, 256, (2, 12))


def config(**more: Any) -> Any:
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaConfig(**settings | more)


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config()).eval()


@pytest.fixture
def folder(theirs, tmp_path, monkeypatch) -> Path:
    """A Hugging Face folder, whose tokenizer is the 256 bytes."""
    monkeypatch.setattr(Folder, "tokenizer", lambda self: (Bytes().train(["a"]), ChatTemplate()))
    monkeypatch.setattr(Folder, "_framed", [[256, 97], [97], [256, 97, 97]])
    theirs.save_pretrained(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def tokenizer_written(monkeypatch) -> list[Any]:
    """What is asked of the export of the tokenizer."""
    asked: list[Any] = []
    monkeypatch.setattr(export, "export_tokenizer", lambda *args, **named: asked.append((args, named)))
    return asked


def test_an_imported_checkpoint_is_a_run(folder, theirs, tmp_path, capsys, tokenizer_written):
    workdir = tmp_path / "run"
    assert command_line.main(["", "import", str(folder), f"--workdir={workdir}"]) == 0
    said = capsys.readouterr()
    assert f"chat --workdir={workdir}" in said.out and "GB/s" in said.err
    manifest = Experiment.of(json.loads((workdir / "manifest.json").read_text()))
    assert manifest.name == "llama" and manifest.tokenizer == Kept()
    with Checkpoints(workdir / "checkpoints", {}) as checkpoints:
        assert checkpoints.steps() == [0]
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS)).logits.numpy()
    lm, direct = llm_jax.load(workdir), llm_jax.load(folder)
    for each in (lm, direct):
        np.testing.assert_allclose(each.logits(IDS), wanted, atol=2e-4)
        assert each.context == 64 and each.bos
    assert lm.generate(["ab"], 4, temperature=0.0) == direct.generate(["ab"], 4, temperature=0.0)

    (tmp_path / "text.txt").write_text("a held-out text " * 300)
    source = f"data.source=TextFiles('{tmp_path / 'text.txt'}')"
    settings = [f"--set={source}", "--set=data.length=16", "--set=data.evaluation_batches=1", "--set=layout.data=1"]
    assert command_line.main(["", "eval", f"--workdir={workdir}", *settings]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    assert command_line.main(["", "sample", f"--workdir={workdir}", "--prompt=ab", "--max_tokens=2"]) == 0

    assert command_line.main(["", "export", f"--workdir={workdir}", f"--to={tmp_path / 'out'}"]) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before, after = theirs.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    special = lm.tokenizer.special
    assert again.config.eos_token_id == [special["eos"], special["end_of_turn"]]
    assert (again.config.bos_token_id, again.config.pad_token_id) == (special["bos"], special["pad"])
    ((tokenizer, template, _), _), *_ = tokenizer_written
    assert tokenizer.identity == lm.tokenizer.identity and template == ChatTemplate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published", "run", "text.txt"]

    capsys.readouterr()
    for words, message in (
        (["import", str(folder), f"--workdir={workdir}"], f"there is a model in {workdir} already"),
        (["export", f"--workdir={workdir}", f"--to={tmp_path / 'out'}"], "is not empty: name a new folder"),
        (["export", f"--workdir={workdir}"], "say where to write: --to=FOLDER"),
        (["import", str(tmp_path / "nowhere"), "--workdir=a"], "nowhere: name a Hugging Face folder, or a .gguf file"),
        (["import", f"--workdir={workdir}"], "write: python -m llm_jax import SOURCE [flags]"),
    ):
        assert command_line.main(["", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_an_imported_encoder_is_measured_on_masked_tokens(published, tmp_path, capsys):
    folder = tmp_path / "bert"
    shutil.copytree(published["bert"], folder)
    sizes: Any = dict(vocab_size=700, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    transformers.BertForMaskedLM(transformers.BertConfig(**sizes, max_position_embeddings=64)).save_pretrained(folder)
    assert command_line.main(["", "import", str(folder), f"--workdir={tmp_path / 'run'}"]) == 0
    manifest: Any = Experiment.of(json.loads((tmp_path / "run" / "manifest.json").read_text()))
    assert (manifest.objective, manifest.data.presentation) == (MaskedTokens(), Masked())
    settings = ["--set=data.evaluation_batches=1", "--set=layout.data=1"]
    capsys.readouterr()
    assert command_line.main(["", "eval", f"--workdir={tmp_path / 'run'}", *settings]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "bits_per_byte" not in said


def test_only_a_run_has_settings_and_checkpoints_to_choose(folder, tmp_path):
    with pytest.raises(InputError, match="is no run, so it has no settings and checkpoints to choose"):
        llm_jax.load(folder, checkpoint="best")
    with pytest.raises(InputError, match="is not the folder of a run: it has no manifest"):
        llm_jax.load(tmp_path)


def rewritten(folder: Path, change: Any) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


FIRST = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST), f"the checkpoint lacks 1 tensors: {FIRST}"),
        (lambda t: t.update(extra=t[FIRST]), "1 tensors that the model has no place for: extra"),
        (
            lambda t: t.update({FIRST: t[FIRST][:-1].copy()}),
            rf"{FIRST} has shape \(23, 24\), but .* ask for \(24, 24\)",
        ),
        (lambda t: t.update({FIRST: t[FIRST].astype(np.int8)}), f"{FIRST} is of type I8, which is not covered"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(InputError, match=message):
        read(open_source(folder))


def test_half_precision_is_widened_and_buffers_are_ignored(folder):
    _, full = read(open_source(folder))
    rewritten(folder, lambda t: t.update({n: torch.tensor(a).half().numpy() for n, a in t.items()} | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}))  # fmt: skip
    _, half = read(open_source(folder))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.float16(a).astype(np.float32), b), full, half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"float32"}


def test_brain_floats_are_read(folder, theirs):
    _, full = read(open_source(folder))
    theirs.to(torch.bfloat16).save_pretrained(folder)
    theirs.to(torch.float32)
    _, brain = read(open_source(folder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-7), full, brain)


def test_what_is_no_whole_checkpoint_is_refused(folder, tmp_path):
    weights = folder / "model.safetensors"
    os.replace(weights, apart := folder / "apart")  # beside it an index would not be read
    index = folder / checkpoint.INDEX
    index.write_text(json.dumps(dict(weight_map={FIRST: "model-00001-of-00001.safetensors"})))
    with pytest.raises(InputError, match=r"lacks model-00001-of-00001\.safetensors, which .* names"):
        open_source(folder)
    index.write_text(json.dumps(dict(weight_map={FIRST: "../published/apart"})))
    with pytest.raises(InputError, match=r"lacks apart"):
        open_source(folder)
    index.write_text("{}")
    with pytest.raises(InputError, match="is damaged: it has no weight_map"):
        open_source(folder)
    index.unlink()
    os.replace(apart, weights)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        open_source(folder)
    os.replace(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pytorch_model.bin, a pickle, .*: convert it to safetensors first"):
        open_source(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors and no"):
        open_source(folder)
    (folder / "config.json").write_text(json.dumps(dict(quantization_config=dict(bits=4))))
    with pytest.raises(InputError, match="has a quantization_config"):
        open_source(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        open_source(folder)
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        open_source(tmp_path)


MEASURE = """
import json, sys, threading, time
from pathlib import Path
import jax, numpy as np
from llm_jax.core.dims import is_lettered
from llm_jax.interop.checkpoint import Folder, open_source
from llm_jax.interop.export import write
from llm_jax.interop.import_ import experiment_of, make_run, model_of, read
from llm_jax.text import Bytes, ChatTemplate

def private():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024

root = Path(sys.argv[1])
if sys.argv[2] == "write":
    model = model_of(json.loads(sys.argv[3]))
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    zeros = lambda leaf: np.zeros(leaf.value.shape, np.float32)
    sys.exit(write(model, jax.tree.map(zeros, boxed, is_leaf=is_lettered), root / "published"))
Folder.adds_bos, Folder.adds_eos, tokenizer, source = True, False, Bytes().train(["a"]), open_source(root / "published")
before = peak = size = 0

def watch():
    global peak
    while True:
        peak = max(peak, private())
        time.sleep(0.002)

def params():
    global before, peak, size
    before = peak = private()
    threading.Thread(target=watch, daemon=True).start()
    found = read(source)[1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    return found

make_run(root / "run", experiment_of(source, ChatTemplate()), tokenizer, params)
print(json.dumps([(peak - before) / size, size]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_an_import_never_holds_the_model_twice(tmp_path):
    """Private memory, at its peak while a model of 410 MB is read and saved: mapped files are not counted."""
    sizes = dict(
        model_type="llama", vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    environment = os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(Path(llm_jax.__file__).parents[1]))
    for words in (["write", json.dumps(sizes)], ["import"]):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), *words]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    peak, size = json.loads(said.splitlines()[-1])
    assert size > 4e8 and 0.9 < peak < 1.5


def test_of_a_policy_with_a_critic_the_policy_is_written(tmp_path, monkeypatch):
    block = Block(Attention(2, 1, 8), SwiGLU(24))
    actor = Decoder(Embed(16, 272), Stack((block,), 1), context=16)
    model, tokenizer = ActorCritic(actor, Scorer(actor.copy())), Bytes().train([])
    params = nn.meta.unbox(jax.jit(model.begin)(jax.random.key(0)))
    data = types.SimpleNamespace(rendering=Rendering())
    program = types.SimpleNamespace(experiment=types.SimpleNamespace(name="ppo", model=model, data=data))
    monkeypatch.setattr(export, "restore", lambda *_: (program, tokenizer, params))
    export.export_model("run", tmp_path / "policy")
    export.write(actor, params["actor"], tmp_path / "actor")
    found, wanted = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("policy", "actor"))
    assert found.keys() == wanted.keys() and all((found[name] == wanted[name]).all() for name in wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tensor_with_numbers_that_are_none_is_named(folder, tmp_path, value, dtype):
    name = "model.layers.1.mlp.down_proj.weight"

    def damage(tensors: Any) -> None:
        tensors |= {each: array.astype(dtype) for each, array in tensors.items()}
        tensors[name][3, 5] = value

    rewritten(folder, damage)
    for attempt in (llm_jax.load, lambda folder: llm_jax.import_model(folder, tmp_path / "run")):
        with pytest.raises(InputError, match=f"{re.escape(name)} holds numbers that are not finite") as said:
            attempt(folder)
        assert "\n" not in str(said.value)


def test_a_run_with_parameters_that_are_no_numbers_is_refused_by_name(folder, tmp_path, capsys):
    """However they came there: `load`, `sample`, `export` and `init_from` name the parameter."""
    source = open_source(folder)
    tokenizer, template = source.tokenizer()
    _, params = read(source)
    params["stack"] = jax.tree.map(lambda x: x.at[1, 0].set(np.nan) if x.ndim == 3 else x, params["stack"])
    make_run(tmp_path / "run", fill(experiment_of(source, template), tokenizer), tokenizer, lambda: params)
    said = [json.dumps(dict(prompt=f"{i}?", completion=f"{i}!")) for i in range(60)]
    (tmp_path / "said.jsonl").write_text("\n".join(said))
    tuned = ["train", "finetune", f"--workdir={tmp_path / 'tuned'}", f"--set=init_from={tmp_path / 'run'}"]
    tuned += [f"--set=data.source=JsonLines('{tmp_path / 'said.jsonl'}')", "--set=report=()", "--set=steps=1"]
    for words in (
        ["sample", f"--workdir={tmp_path / 'run'}", "--prompt=ab", "--max_tokens=2"],
        ["export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"],
        [*tuned, "--set=data.length=16", "--set=layout=Layout(1)"],
    ):  # fmt: skip
        capsys.readouterr()
        assert command_line.main(["", *words]) == 2
        said = capsys.readouterr().err
        assert re.search(r"the parameter stack\.layers\.\S+ in \S+run holds numbers that are not finite", said), said
