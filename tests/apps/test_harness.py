"""The evaluation harness on our models beside its own wrapper of transformers: the same checkpoints, local tasks."""

import json
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import flax.linen as nn
import jax
import lm_eval
import lm_eval.tasks
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import llm_jax
from llm_jax.apps.conversation_text import BEGIN
from llm_jax.apps.harness import Harness, main
from llm_jax.core.errors import InputError
from llm_jax.inference.language_model import LanguageModel
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.text import Llama3, Message
from llm_jax.text.recipes import Bytes

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the harness and what it imports
LINES = [line.strip() for _, text in sorted(pydoc_data.topics.topics.items())[:9] for line in text.splitlines()]
PROSE = [line for line in LINES if len(line) > 30]
NAMED = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
LONG = 48  # tokens in view

TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
fewshot_split: test
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "written": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e", "\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Three tasks on local data; some of their texts are longer than the models' view."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    documents = []
    for i in range(14):
        first, *choices = (PROSE[j] for j in rng.integers(len(PROSE), size=5))
        question = "" if i == 3 else first[: rng.integers(1, 60)] + " " * (i % 3) + "\n" * (i % 2)
        text = " ".join(PROSE[i : i + 1 + i % 6])
        choices = [" " + choice[: rng.integers(1, 50)] for choice in choices] + [" a", " the"]
        documents.append(dict(question=question, choices=choices, gold=i % 6, text=text, answer=choices[0]))
    (folder / "data.json").write_text("\n".join(map(json.dumps, documents)))
    for name, task in TASKS.items():
        data = f"{{data_files: {{test: {folder / 'data.json'}}}}}"
        (folder / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\ndataset_kwargs: {data}\ntest_split: test\n{task}"
        )
    return folder


def saved(folder: Path, first: list[str], bos: str | None, kind: str, **shape: Any) -> Path:
    """A tiny checkpoint with its tokenizer, drawn at random."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=first, show_progress=False, initial_alphabet=alphabet)
    rust.train_from_iterator(PROSE, trainer)
    if bos:
        rust.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, rust.token_to_id(bos))])
    named = dict(bos_token=bos, eos_token=first[1]) if bos else dict(eos_token=first[0], bos_token=first[0])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, **named)
    fast.chat_template = Llama3().source if bos else None
    fast.save_pretrained(folder)
    cls: Any = getattr(transformers, kind)
    torch.manual_seed(1)
    config = cls.config_class(
        vocab_size=len(fast), eos_token_id=fast.eos_token_id, bos_token_id=fast.bos_token_id, initializer_range=0.4,
        **shape,
    )  # fmt: skip
    model = cls(config)
    end: Any = fast.eos_token_id
    forbidden = sorted({*range(len(first))} - {end})
    model.generation_config.suppress_tokens = forbidden or None  # as ours: they structure texts, and are not written
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    shape = dict(
        hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=LONG,
    )  # fmt: skip
    return saved(tmp_path_factory.mktemp("llama"), NAMED, NAMED[0], "LlamaForCausalLM", **shape)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    shape = dict(n_embd=16, n_layer=1, n_head=2, n_positions=LONG)
    return saved(tmp_path_factory.mktemp("gpt2"), ["<|endoftext|>"], None, "GPT2LMHeadModel", **shape)


def measured(tasks: Path, model: Any, **given: Any) -> dict[str, Any]:
    manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    names = [f"local_{name}" for name in TASKS]
    evaluate: Any = lm_eval.simple_evaluate
    found = evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0, batch_size=5, verbosity="ERROR", **given
    )
    assert found is not None
    return found


def theirs(folder: Path, **given: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    wrapper: Any = HFLM
    return wrapper(pretrained=str(folder), device="cpu", batch_size=5, dtype="float32", **given)


def same(ours: dict[str, Any], wanted: dict[str, Any], rolling: bool = True) -> None:
    """Not `rolling`: whole texts are compared elsewhere, as the wrapper reads a tokenizer's bos twice."""
    for name, task in wanted["results"].items():
        if name == "local_rolling" and not rolling:
            continue
        for metric, value in task.items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-3, abs=1e-3), (name, metric)
    for name, samples in wanted["samples"].items():
        for mine, their in zip(ours["samples"][name], samples, strict=True):
            assert mine["doc_id"] == their["doc_id"]
            if name == "local_written":
                assert mine["filtered_resps"] == their["filtered_resps"]
            for (mine_said,), (their_said,) in zip(mine["resps"], their["resps"], strict=True):
                if name == "local_choice":
                    assert float(mine_said[0]) == pytest.approx(float(their_said[0]), abs=1e-3)
                    assert mine_said[1] == their_said[1]
                elif name == "local_rolling" and rolling:
                    assert float(mine_said) == pytest.approx(float(their_said), abs=1e-3)


@pytest.mark.parametrize(("name", "few"), [("llama", 0), ("llama", 2), ("gpt2", 1)])
def test_results_are_those_of_the_harness_own_wrapper(name, few, tasks, request, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = request.getfixturevalue(name)
    wanted = measured(tasks, theirs(folder), num_fewshot=few)
    found = measured(tasks, Harness(str(folder), 5), num_fewshot=few)
    same(found, wanted, rolling=name == "gpt2")
    accuracy = wanted["results"]["local_choice"]["acc,none"]
    said = {s["filtered_resps"][0] for s in wanted["samples"]["local_written"]}
    assert 0 < accuracy < 1 and len(said) > 5


def test_conversations_are_theirs(tasks, llama, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    given = dict(apply_chat_template=True, num_fewshot=1, fewshot_as_multiturn=True, system_instruction="Be brief.")
    same(measured(tasks, Harness(str(llama), 5), **given), measured(tasks, theirs(llama), **given), rolling=False)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_of_a_whole_text_each_token_is_scored_once_after_one_bos(name, request):
    folder: Path = request.getfixturevalue(name)
    model, tokenizer = their_parts(folder)
    texts = ["The value", "a", *(" ".join(PROSE[i : i + 1 + i]) for i in (0, 2, 4))]
    found = Harness(str(folder), 3).loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in texts], True)
    wanted, lengths = [], []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        wanted.append(sum(window_logp(model, *window) for window in windows([tokenizer.bos_token_id, *ids])))
        lengths.append(len(ids))
    assert min(lengths) == 1 and max(lengths) > 2 * LONG
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def their_parts(folder: Path) -> tuple[Any, Any]:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def windows(ids: list[int]) -> list[tuple[list[int], int]]:
    """Of `LONG` tokens to read and one more: full ones wherever the text is as long, and how many tokens are new."""
    ends = [*range(LONG + 1, len(ids), LONG), len(ids)]
    new = np.diff(ends, prepend=1)
    return [(ids[max(0, end - LONG - 1) : end], int(count)) for end, count in zip(ends, new, strict=True)]


def window_logp(model: Any, ids: list[int], new: int) -> float:
    """How likely the last `new` of the tokens are after those before, in float64."""
    with torch.no_grad():
        logp_TV = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    return float(logp_TV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][-new:].sum())


def test_a_text_begins_as_theirs(llama, gpt2):
    for folder in (llama, gpt2):
        ours = Harness(str(folder))
        for bos in (None, True, False):
            if folder == gpt2 and bos:
                continue  # transformers puts none there, though it is asked to
            wrapped, mine = theirs(folder, add_bos_token=bos), Harness(ours.lm, add_bos_token=bos)
            spelt = wrapped.tokenizer.decode(wrapped.prefix_token_id)
            for text in ("The value", "", " \n", f"{spelt}The value", "é ½"):
                assert mine.tok_encode(text) == wrapped.tok_encode(text)
                plain = wrapped.tok_encode(text, add_special_tokens=False)
                assert mine.tok_encode(text, add_special_tokens=False) == plain
            assert (mine.prefix_token_id, mine.eot_token_id) == (wrapped.prefix_token_id, wrapped.eot_token_id)
            assert mine.max_length == wrapped.max_length


def test_the_command_line(tasks, llama, tmp_path):
    """A run's folder, in a process of its own; the results go where the harness puts them."""
    llm_jax.import_model(llama, tmp_path / "run")
    command = [
        sys.executable, "-W", "ignore", "-m", "llm_jax.apps.harness", "--model", "llm_jax", "--model_args",
        f"workdir={tmp_path / 'run'}", "--tasks", "local_choice", "--include_path", str(tasks), "--batch_size", "auto",
        "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    home = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "|local_choice|" in done.stdout and "acc_norm" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["config"]["model"] == "llm_jax" and found["config"]["model_num_parameters"] > 10_000


def test_bad_input_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: Harness("runs/nothing"))
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: no folder runs/nothing")
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: None)
    assert main() == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_context_of_white_space_belongs_to_what_follows_it(name, request):
    folder: Path = request.getfixturevalue(name)
    model, tokenizer = their_parts(folder)
    harness = Harness(str(folder), 4)
    for before in ("", " ", "\n", " \t\n "):
        ids = tokenizer(before + "the cat", add_special_tokens=False).input_ids
        wanted = window_logp(model, [tokenizer.bos_token_id, *ids], len(ids))
        ((logp, best),) = harness.loglikelihood([SimpleNamespace(args=(before, "the cat"))], True)
        assert logp == pytest.approx(wanted, abs=1e-3) and logp < -1 and not best


def test_where_a_token_would_reach_over_the_border_each_side_is_encoded_by_itself(gpt2):
    model, tokenizer = their_parts(gpt2)
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    word = max((token[1:] for token in tokens if token[0] == "\u0120" and token[1:].isalpha()), key=len)
    pairs = [(f"and {word[:cut]}", word[cut:] + rest) for cut in (1, len(word) - 1) for rest in ("", " is", "s of")]
    apart = [[tokenizer(text).input_ids for text in pair] for pair in pairs]
    assert all(tokenizer(a + b).input_ids != x + y for (a, b), (x, y) in zip(pairs, apart, strict=True))
    found = Harness(str(gpt2), 4).loglikelihood([SimpleNamespace(args=pair) for pair in pairs], True)
    for (logp, _), (before, after) in zip(found, apart, strict=True):
        assert logp == pytest.approx(window_logp(model, before + after, len(after)), abs=1e-3)


@pytest.fixture(scope="module")
def own() -> LanguageModel:
    """A model whose special tokens have no spelling: they are our own."""
    tokenizer = Bytes().train([])
    block = Block(Attention(2, 1, 8), SwiGLU(24))
    model = Decoder(Embed(16, tokenizer.vocabulary), Stack((block,), 1), Rope(), context=LONG)
    return LanguageModel(model, begun(model), tokenizer)


def begun(model: Any) -> Any:
    drawn = jax.jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(0))
    return jax.tree.map(lambda x: 4 * x, drawn)  # so that some tokens are likelier than others


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_a_conversation_of_ours_is_its_templates_tokens(own):
    harness = Harness(own)
    said = [dict(role="user", content="Why? \ue000eos\ue001"), dict(role="assistant", content="No.  ")]
    text = harness.apply_chat_template([*said, dict(role="user", content="What")])
    messages = [Message("user", "Why? \ufffdeos\ufffd"), Message("assistant", "No.  "), Message("user", "What")]
    wanted, _ = own.template.render(own.tokenizer, messages, reply=True)
    assert text.startswith(BEGIN) and harness.tok_encode(text) == wanted
    begun = harness.apply_chat_template([*said, dict(role="assistant", content="It is")], add_generation_prompt=False)
    again, _ = own.template.render(own.tokenizer, messages[:2], reply=True)
    assert harness.tok_encode(begun) == again + own.tokenizer.encode("It is")
    assert harness.tok_encode("a\ue000eos\ue001")[-1] != own.tokenizer.special["eos"]
    assert harness.tokenizer_name == own.tokenizer.identity and harness.chat_template(True) == "ChatTemplate()"
    with pytest.raises(InputError, match="no chat template named 'chatml'"):
        harness.chat_template("chatml")


def test_a_likelihood_is_the_scores_and_a_batch_changes_nothing(own):
    harness, alone = Harness(own, 3), Harness(own, 1)
    texts = [("ab", "c"), ("", "def"), ("hello", " you"), ("x" * 60, "yz"), ("a", "b" * 20)]
    asked = [request(*text) for text in texts]
    found, each = harness.loglikelihood(asked, True), alone.loglikelihood(asked, True)
    for text, (logp, best), one in zip(texts, found, each, strict=True):
        ids = [own.tokenizer.special["bos"], *own.tokenizer.encode("".join(text))][-LONG - 1 :]
        logits_TV = own.logits([ids[:-1]])[0].astype(np.float64)
        targets, last_TV = ids[-len(text[1]) :], logits_TV[-len(text[1]) :]
        logp_T = [row_V[target] - np.log(np.exp(row_V).sum()) for row_V, target in zip(last_TV, targets, strict=True)]
        assert logp == pytest.approx(sum(logp_T), abs=1e-4) and one == (pytest.approx(logp, abs=1e-4), best)
        assert best == (last_TV.argmax(-1) == targets).all()


def test_what_is_written_greedily_is_what_the_model_alone_writes(own):
    harness = Harness(own, 2)
    prompts = ["hello", "ab", "", "many words", "zz"]
    asked = [request(prompt, dict(until=[], max_gen_toks=3)) for prompt in prompts]
    said = harness.generate_until(asked, disable_tqdm=True)
    assert said == [own.generate([prompt], max_tokens=3, temperature=0.0)[0] for prompt in prompts]


def test_sampling_and_stop_strings(own):
    harness = Harness(own, 2)

    def said(**given: Any) -> str:
        settings = dict(max_gen_toks=12, do_sample=True, temperature=1.5) | given
        return harness.generate_until([request("hello", settings)], True)[0]

    assert said() == said() != said(do_sample=False) and len(said()) > 4
    assert said(until=said()[3:5]) == said().split(said()[3:5])[0]


def test_token_ids_are_texts_too(own):
    harness = Harness(own, 2)
    for context, continuation in (("ab", "c"), ("hello", " you")):
        ids, after = harness.tok_encode(context), own.tokenizer.encode(continuation)
        asked = [request(a, b) for a, b in ((context, continuation), (ids, after), (tuple(ids), continuation))]
        found = harness.loglikelihood(asked, True)
        assert found == [found[0]] * 3
        settings = dict(until=[], max_gen_toks=3)
        said = harness.generate_until([request(context, settings), request(ids, settings)], True)
        assert said == [said[0]] * 2
        rolling = harness.loglikelihood_rolling([request(context), request(ids)], True)
        assert rolling == [rolling[0]] * 2
    with pytest.raises(InputError, match="token id 999 is not in the vocabulary"):
        harness.generate_until([request([999], settings)], True)


def test_special_tokens_in_tasks_are_text_and_that_is_said_once_or_they_are_parsed(own, caplog):
    special = own.tokenizer.special
    tokenizer = own.tokenizer.having({"<|go|>": special["user"], "<s>": special["bos"]})
    lm, settings = LanguageModel(own.model, own.params, tokenizer), dict(until=[], max_gen_toks=3)
    harness, parsing = Harness(lm), Harness(lm, special_tokens="parse")
    asked = [request("<s><|go|>a", settings), request("<|go|>", settings)]
    for _ in range(2):
        harness.generate_until(asked, True)
        harness.loglikelihood([request("<|go|>a", "b")], True)
    told = [r.getMessage() for r in caplog.records if "spelt in text" in r.getMessage()]
    assert len(told) == 1 and told[0].startswith("2 special tokens spelt in text (<|go|>) are read as ordinary text")
    ids = [special["bos"], special["user"], *b"a"]
    assert harness.tok_encode("<s><|go|>a") == [special["bos"], *b"<|go|>a"]
    for text in ("<s><|go|>a", "<|go|>a"):
        assert parsing.tok_encode(text) == ids
        found = parsing.loglikelihood([request(text, "b<|go|>"), request(ids, [*b"b", special["user"]])], True)
        assert found[0] == found[1]
    with pytest.raises(InputError, match="special_tokens must be 'text' or 'parse'"):
        Harness(lm, special_tokens="all")  # pyright: ignore[reportArgumentType]


def named(kind: Any, *args: Any) -> Instance:
    return Instance(kind, {}, args, 0, ("quiz", 7, 1))


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("computed before all requests were checked")


@pytest.mark.parametrize(
    ("continuation", "message"),
    [("", "0 tokens: 1 to 48 can be scored"), ("b" * 49, "49 tokens: 1 to 48 can be scored"),
     ("\ud800", "half a surrogate pair"), ([300], "token id 300 is not in the vocabulary")],
)  # fmt: skip
def test_what_cannot_be_scored_is_named_before_anything_is_scored(own, continuation, message, monkeypatch):
    monkeypatch.setattr("llm_jax.apps.harness.likelihoods", never)
    asked = [request("a", "b"), named("loglikelihood", "a", continuation)]
    with pytest.raises(InputError, match=f"task quiz, document 7: .*{message}"):
        Harness(own).loglikelihood(asked, disable_tqdm=True)


def test_a_whole_text_that_cannot_be_scored_is_named(own, monkeypatch):
    monkeypatch.setattr("llm_jax.apps.harness.likelihoods", never)
    asked = [request("a"), named("loglikelihood_rolling", "a\udfff")]
    with pytest.raises(InputError, match=r"task quiz, document 7: .*half a surrogate pair"):
        Harness(own).loglikelihood_rolling(asked, disable_tqdm=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [(dict(top=1), "no setting named 'top'"), (dict(until=["x"]), "max_gen_toks=256 leaves no room for a prompt"),
     (dict(do_sample=True, temperature=-1.0, max_gen_toks=3), "temperature must be"),
     (dict(until=[3], max_gen_toks=3), "until.0 must be"), (dict(max_gen_toks="many"), "not a number")],
)  # fmt: skip
def test_what_cannot_be_written_is_named_before_anything_is_written(own, settings, message, monkeypatch):
    monkeypatch.setattr("llm_jax.apps.harness.Generation", never)
    asked = [request("a", dict(until=[], max_gen_toks=3)), named("generate_until", "b", settings)]
    with pytest.raises(InputError, match=f"task quiz, document 7: .*{message}"):
        Harness(own).generate_until(asked, disable_tqdm=True)


def test_the_advice_on_room_for_an_answer_works(own):
    with pytest.raises(InputError, match=r"in the context of 48: ask for 1 to 47, .* max_gen_toks=24") as refused:
        Harness(own).generate_until([request("a" * 60, {})], disable_tqdm=True)
    advised = int(str(refused.value).rpartition("=")[2])
    (said,) = Harness(own).generate_until([request("a" * 60, dict(max_gen_toks=advised))], disable_tqdm=True)
    assert said == own.generate([[*b"a" * 24]], max_tokens=24, temperature=0.0)[0]


def test_more_in_view_than_the_model_has_is_refused(own):
    with pytest.raises(InputError, match="max_length=99 is more than the model's context of 48"):
        Harness(own, max_length=99)
