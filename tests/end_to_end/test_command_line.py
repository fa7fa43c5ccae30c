"""What a user types, right and wrong: one clear line and exit status 2 for the wrong, and nothing is lost."""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from llm_jax.__main__ import VERBS, main
from llm_jax.core import user_modules
from llm_jax.models.presets import PRESETS
from llm_jax.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
os.umask(UMASK := os.umask(0))
FILE = '''
"""Does a model that knows parity learn better?"""

import dataclasses

import jax.numpy as jnp

import llm_jax
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import TextFiles
from llm_jax.core.dims import Normal, weigh
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.positions import Positions
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.text.recipes import Bytes
from llm_jax.reports.text import Samples

import flax.linen as nn


class Parity(Positions):
    """A learned vector for even positions and one for odd ones."""

    strength: float = 1.0

    @nn.compact
    def embed(self, x_BTD, tokens):
        table_PD = weigh(self, "table", "PD", dict(P=2, D=x_BTD.shape[-1]), Normal(), 1)
        return x_BTD + self.strength * table_PD[tokens.position_BT % 2].astype(x_BTD.dtype)


def experiment():
    return llm_jax.get("small_gpt").override({
        "model": Decoder(Embed(16), Stack((Block(Attention(1, 1, 8), SwiGLU(16)),), 1), Parity()),
        "tokenizer": Bytes(),
        "data": Data(TextFiles("TEXTS", separator="\\n"), length=24, batch=8),
        "steps": 4, "log_every": 1, "eval_every": 2, "save_every": 2,
        "report": (Samples(("a",), max_tokens=5),),
    })
'''


def files_of(workdir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(workdir)): p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with an experiment of the user's own, the text that it trains on, and a finished run of it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "texts.txt").write_text("\n".join(f"line {i} of the text" for i in range(300)))
    (folder / "parity.py").write_text(FILE.replace("TEXTS", str(folder / "texts.txt")))
    assert main(["llm_jax", "train", str(folder / "parity.py"), f"--workdir={folder / 'run'}"]) == 0
    return folder


def refused(capsys, *words) -> str:
    """The one line that bad input is answered with."""
    capsys.readouterr()
    status = main(["llm_jax", *map(str, words)])
    said = capsys.readouterr()
    assert status == 2, said
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert "Traceback" not in said.out + said.err
    return said.err


def test_an_encoding_of_the_users_own_trains_measures_and_writes(here, capsys):
    run, file = here / "run", here / "parity.py"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["model"]["positions"]["part"] == "user_parity:Parity"
    assert {"manifest.json", "metrics.jsonl", "tokenizer", "checkpoints", "events"} <= {p.name for p in run.iterdir()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    last = [line for line in lines if line["split"] == "validation"][-1]

    assert main(["llm_jax", "eval", f"--workdir={run}", f"--modules={file}"]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines()[:4])
    assert {name: f"{last[name]:.6f}" for name in said} == said and set(said) > {"loss", "bits_per_byte"}
    two = "--set=report=(ExactMatch(), Samples(('b',), max_tokens=2))"
    said = refused(capsys, "eval", f"--workdir={run}", f"--modules={file}", two)
    assert "the report ExactMatch cannot be made: answers can be judged of examples" in said
    assert main(["llm_jax", "sample", f"--workdir={run}", f"--modules={file}", "--prompt=line", "--max_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("line")
    tokenizer = load_tokenizer(run / "tokenizer")
    ids = ",".join(map(str, [tokenizer.special["bos"], *tokenizer.encode("line")]))
    said = []
    for prompts in (["--prompt=line"], [f"--prompt_ids={ids}"], ["--prompt=line", f"--prompt_ids={ids}"]):
        command = ["llm_jax", "sample", f"--workdir={run}", f"--modules={file}", *prompts, "--special_tokens=parse"]
        assert main([*command, "--max_tokens=5", "--temperature=0"]) == 0
        said.append(capsys.readouterr().out)
    text, alone, both = said
    assert alone == text and both == f"{text}\n{text}\n" and text.startswith("line") and len(text) > 5
    assert main(["llm_jax", "show", str(file), "--set=model.positions=Parity(strength=0.5)"]) == 0
    said = capsys.readouterr().out
    assert "Parity(strength=0.5)" in said and "parameters" in said and "FLOPs a token" in said


def test_progress_lines_where_there_is_no_terminal(here):
    command = [sys.executable, "-m", "llm_jax", "train", str(here / "parity.py"), f"--workdir={here / 'second'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "2/4", "3/4", "4/4", "4/4"]
    assert "bits/byte" in lines[0] and "elapsed" in lines[0] and "validation loss" in lines[2]
    assert "\nwhat next:\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "smal_gpt", "--workdir=W"], "no experiment named 'smal_gpt': did you mean 'small_gpt'?"),
        (["train", "nowhere.py", "--workdir=W"], "there is no experiment file nowhere.py"),
        (["trian", "small_gpt"], "no verb named 'trian': did you mean 'train'?"),
        (["--workdir=W"], "the first word must be a verb: list, show, train"),
        (["train", "FILE"], "say where the run is: --workdir=FOLDER"),
        (["train", "--workdir=W"], "train first, or name the --workdir of a run"),
        (["eval", "extra", "--workdir=W"], "write: python -m llm_jax eval [flags]"),
        (["train", "FILE", "--workdri=W"], "Unknown command line flag 'workdri'. Did you mean: workdir"),
        (["eval", "--workdir=W", "--prompt=x"], "eval has no flag --prompt: it reads workdir, checkpoint"),
        (["sample", "--workdir=W", "--max_tokens=many"], "max_tokens"),
        (["train", "FILE", "--workdir=W", "--set=steps"], "--set=steps: write --set=path=value"),
        (["train", "FILE", "--workdir=W", "--set=stpes=3"], "no setting 'stpes' (Experiment): did you mean 'steps'?"),
        (["train", "FILE", "--workdir=W", "--set=steps=many"], "steps must be a whole number, not 'many'"),
        (["train", "FILE", "--workdir=W", "--set=steps=0"], "steps must be a whole number at least 1, not 0"),
        (["train", "FILE", "--workdir=W", "--set=model.positions=Rop()"], "no part named 'Rop': did you mean 'Rope'?"),
        (["train", "FILE", "--workdir=W", "--set=model.positions=Bytes()"], "model.positions must be a Positions"),
        (["train", "FILE", "--workdir=W", "--set=model.stack.pattern.3.dropout=0.1"], "is no place in"),
        (["train", "FILE", "--workdir=W", "--set=layout.data=99"], "layout 99x1x1 (data x fsdp x tensor) does not fit"),
        (["train", "FILE", "--workdir=W", "--set=data.source=TextFiles('empty.txt')"], "the corpus is empty"),
        (["train", "FILE", "--workdir=W", "--set=data.source=TextFiles('latin.txt')"],
         "latin.txt is not UTF-8: byte 3 is 0xe9"),
        (["train", "FILE", "--workdir=W", "--set=data.source=TextFiles('text')"], "there is no text: did you mean"),
        (["train", "FILE", "--workdir=W", "--set=data.source=TextFiles('texts.txt/below')"], "texts.txt/below"),
        (["train", "FILE", "--workdir=texts.txt"], "cannot write in texts.txt: "),
        (["train", "FILE", "--workdir=run", "--set=seed=1"], "run was made by parity with seed=0, not 1: use another"),
        (["train", "small_gpt", "--workdir=run"], "run was made by parity, not by small_gpt: use another --workdir"),
        (["eval", "--workdir=nowhere"], "no folder nowhere: train first"),
        (["sample", "--workdir=run", "--modules=FILE", "--prompt_ids=1,a"], "must be token ids, as in"),
        (["sample", "--workdir=run", "--modules=FILE", "--prompt_ids=99999"], "token id 99999 is not in"),
        (["sample", "--workdir=run", "--modules=FILE", "--special_tokens=yes"], "special_tokens"),
        (["sample", "--workdir=."], "is not the folder of a run: it has no manifest.json"),
        (["sample", "--workdir=run", "--modules=nowhere.py"], "there is no file"),
        (["sample", "--workdir=run", "--modules=FILE", "--prompt=" + 30 * "x"],
         "more than the model's context of 24: shorten it to at most"),
        (["sample", "--workdir=run", "--modules=FILE", "--prompt=x", "--max_tokens=100"], "ask for at most 22 tokens"),
        (["sample", "--workdir=run", "--modules=FILE", "--repetition_penalty=-1"], "repetition_penalty"),
        (["sample", "--workdir=run", "--modules=FILE", f"--seed={2**70}"], f"--seed={2**70}"),
        (["chat", "--workdir=run", "--modules=FILE", f"--seed={2**63}"], f"--seed={2**63}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_loses_nothing(here, monkeypatch, tmp_path, capsys, words, message):
    (here / "empty.txt").write_text("\n\n")
    (here / "latin.txt").write_bytes(b"caf\xe9\n")
    monkeypatch.chdir(here)
    before = files_of(here / "run")
    words = [w.replace("=W", f"={tmp_path / 'w'}").replace("FILE", str(here / "parity.py")) for w in words]
    assert message in refused(capsys, *words)
    assert files_of(here / "run") == before


def test_a_strangers_manifest_runs_no_code(here, tmp_path):
    """In a process that has not loaded the user's file."""
    before = files_of(here / "run")
    for verb in ("eval", "sample", "chat"):
        command = [sys.executable, "-m", "llm_jax", verb, f"--workdir={here / 'run'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and "names 'user_parity:Parity', which is no part of this" in done.stderr
        assert "--modules" in done.stderr
    assert files_of(here / "run") == before


def test_an_empty_run_has_nothing_to_sample_from(here, tmp_path, capsys):
    file = here / "parity.py"
    message = refused(capsys, "train", file, f"--workdir={tmp_path}", "--set=data.source=TextFiles('nowhere.txt')")
    assert "there is no nowhere.txt" in message
    assert "error: no checkpoint in" in refused(capsys, "sample", f"--workdir={tmp_path}", f"--modules={file}")


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(here, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ["train", str(here / "parity.py"), f"--workdir={tmp_path}"]
    assert main(["llm_jax", *words]) == 0
    before = files_of(tmp_path / "checkpoints")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        message = refused(capsys, *words, "--set=steps=8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no space left on the disk: step 6 was not saved" in message and "step 4 is" in message
    assert before.items() <= files_of(tmp_path / "checkpoints").items()
    assert main(["llm_jax", *words, "--set=steps=8"]) == 0
    assert "going on from step 4" in capsys.readouterr().out


def forget(monkeypatch, tmp_path, cache):
    """As a new process would begin, of a user with that cache folder."""
    monkeypatch.setattr(user_modules, "_sources", {})
    monkeypatch.delitem(sys.modules, "user_own", raising=False)
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / cache))


def test_a_run_says_what_made_it_and_goes_on_from_its_folder_alone(here, tmp_path, monkeypatch, capsys):
    file, run = tmp_path / "own.py", tmp_path / "run"
    file.write_text(text := FILE.replace("TEXTS", str(here / "texts.txt")))
    forget(monkeypatch, tmp_path, "mine")
    assert main(["llm_jax", "train", str(file), f"--workdir={run}", "--set=steps=2"]) == 0
    file.unlink()
    forget(monkeypatch, tmp_path, "mine")
    assert main(["llm_jax", "train", f"--workdir={run}", "--set=steps=3"]) == 0

    first, second = (json.loads(line) for line in (run / "sessions.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2) and first["date"] <= second["date"]
    assert first["packages"]["jax"] == jax.__version__ and "flax" in first["packages"]
    assert first["device"] == dict(platform="cpu", kind="cpu", count=jax.device_count(), processes=1)
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    assert (first["git"] or {}).get("commit") == expected
    assert first["command"].startswith(shlex.quote(sys.executable)) and first["version"] and first["folder"]
    (copy,) = ((run / each["copy"]) for each in second["files"])
    assert copy.read_text() == text and first["files"] == second["files"]
    assert main(["llm_jax", "train", f"--workdir={run}"]) == 0  # it has ended: nothing was trained, nothing is added
    assert len((run / "sessions.jsonl").read_text().splitlines()) == 2

    forget(monkeypatch, tmp_path, "another user's")  # whose machine never ran that file
    before = files_of(run)
    said = refused(capsys, "train", f"--workdir={run}", "--set=steps=4")
    assert f"--modules={copy}" in said and files_of(run) == before and "user_own" not in sys.modules
    assert main(["llm_jax", "train", f"--workdir={run}", "--set=steps=4", f"--modules={copy}"]) == 0


def test_a_run_goes_on_in_another_folder_or_says_which_its_paths_are_of(here, tmp_path, monkeypatch, capsys):
    there, run, data = tmp_path / "there", tmp_path / "run", tmp_path / "data"
    for folder in (there, data):
        folder.mkdir()
    (there / "own.py").write_text(FILE.replace("TEXTS", "texts.txt"))
    (there / "texts.txt").write_text((here / "texts.txt").read_text())
    monkeypatch.chdir(there)
    monkeypatch.setenv("LLM_JAX_DATA", "")
    forget(monkeypatch, tmp_path, "mine")
    assert main(["llm_jax", "train", "own.py", f"--workdir={run}", "--set=steps=1", "--data_dir=../data"]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_JAX_DATA")
    forget(monkeypatch, tmp_path, "mine")
    said = refused(capsys, "train", f"--workdir={run}", "--set=steps=2")
    assert "there is no texts.txt" in said and said.endswith(f"; {run} was trained in {there}: run it there\n")
    assert os.environ["LLM_JAX_DATA"] == str(there / "../data")
    monkeypatch.chdir(there)
    assert main(["llm_jax", "train", f"--workdir={run}", "--set=steps=2"]) == 0
    assert "run it there" not in refused(capsys, "train", f"--workdir={run}", "--set=steps=2.5")


def test_a_tilde_and_a_flag_before_the_verb(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(here))
    words = ["--workdir", "~/run", "--prompt", "sample", "sample", "--modules=~/parity.py", "--max_tokens=2"]
    assert main(["llm_jax", *words]) == 0
    assert capsys.readouterr().out.startswith("sample")
    assert main(["llm_jax", "show", "~/parity.py", "--set=data.source=TextFiles('~/texts.txt')"]) == 0
    assert "show has no flag --workdir" in refused(capsys, "--workdir", "runs/x", "show", "small_gpt")
    assert "wrkdir" in refused(capsys, "--wrkdir", "runs/x", "show", "small_gpt")
    for depth in (150, 5000, 99_999):
        assert len(refused(capsys, "show", "small_gpt", "--set=steps=" + depth * "(" + depth * ")")) < 400


def test_what_comes_next_can_be_pasted_into_a_shell(here, tmp_path, capsys):
    run = tmp_path / "it's a run; of $HOME"
    assert main(["llm_jax", "train", str(here / "parity.py"), f"--workdir={run}", "--set=steps=1"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " sample " in line)
    words = shlex.split(line)
    assert words[1:4] == ["-m", "llm_jax", "sample"] and f"--workdir={run}" in words
    assert {oct(path.stat().st_mode & 0o777) for path in run.rglob("*") if path.is_file()} == {oct(0o666 & ~UMASK)}


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb, capsys):
    for words in ([verb, "--help"], ["help", verb], [verb, "-h"]):
        assert main(["llm_jax", *words]) == 0
        said = capsys.readouterr()
        assert said.err == "" and said.out.startswith(f"python -m llm_jax {verb}") and VERBS[verb].help in said.out
        assert all(f"--{name}" in said.out for name in VERBS[verb].flags)


def test_help_of_all(capsys):
    assert main(["llm_jax", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"python -m llm_jax {verb}" in said for verb in VERBS)
    assert main(["llm_jax"]) == 2


def test_list_has_every_question_and_every_preset(capsys):
    assert main(["llm_jax", "list"]) == 0
    ours, published = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [line.split()[0] for line in ours] == user_modules.list_names()
    assert all("?" in line for line in ours)
    assert published[0].startswith("published models")
    assert [line.split()[0] for line in published[1:]] == list(PRESETS)
    assert all(" parameters" in line for line in published[1:])


def test_a_reader_that_has_read_enough_is_no_error():
    command = [sys.executable, "-m", "llm_jax", "list"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 141
