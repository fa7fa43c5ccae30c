import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from llm_jax.__main__ import main
from llm_jax.core.workers import SIGNALS
from llm_jax.training import interrupt as interrupts
from llm_jax.training.interrupt import GivenUp, Interrupt


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass between two signals."""
    now = [0.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    return now


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_a_later_one_stops(number, clock, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        send(number)
        assert interrupt.requested
        clock[0] = 0.9  # `timeout` and shells send some twice
        send(number)
        clock[0] = 1.1
        ends = pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit)
        with contextlib.nullcontext() if number == signal.SIGHUP else ends as ended:
            send(number)  # nobody is at a terminal that was closed, to ask once more
    assert signal.getsignal(number) is before
    if number == signal.SIGTERM:
        assert isinstance(ended, pytest.ExceptionInfo) and ended.value.args == (143,)
    assert capfd.readouterr().err.strip().startswith("finishing this step and saving")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_status_is_that_of_the_signal(number, status):
    with Interrupt() as interrupt, pytest.raises(SystemExit) as ended:
        send(number)
        interrupt.leave("saved")
    assert ended.value.code == status
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt, match="saved at step 3"):
        send(signal.SIGINT)
        interrupt.leave("saved at step 3")


def test_a_wait_is_given_up_and_nothing_else_is():
    with Interrupt() as interrupt:
        with interrupt.waiting():
            pass
        send(signal.SIGTERM)  # no wait: no exception
        with pytest.raises(GivenUp), interrupt.waiting():
            raise AssertionError("there is nothing to wait for any more")
    with Interrupt() as interrupt, pytest.raises(GivenUp), interrupt.waiting():
        send(signal.SIGTERM)
        time.sleep(10)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            send(number)
            assert not interrupt.requested
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


HANGUP = """
import fcntl, sys, termios, time
from llm_jax.training.interrupt import Interrupt

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal is this session's
with Interrupt() as interrupt:
    print("running", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
    print("what is shown while it saves", flush=True)
    print("and of errors", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("saved")
    interrupt.leave("saved")
"""


def test_a_closed_terminal_takes_the_output_and_not_the_work(tmp_path):
    saved = tmp_path / "saved"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGUP, str(saved)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert b"running" in os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 129
    assert saved.read_text() == "saved"


STOPPED = '''
"""Does a training that is stopped say so?"""

import dataclasses
import os
import pathlib
import signal

import llm_jax
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import AsIs
from llm_jax.data.sources import TextFiles
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.text.recipes import Bytes

PLAN = pathlib.Path(PLAN_FILE)


@dataclasses.dataclass(frozen=True)
class Sends(AsIs):
    """A signal in the middle of the batch that begins with a certain row."""

    def __call__(self, batch, length, special, seed_B):
        row, _, name = PLAN.read_text().partition(" ")
        if seed_B[0][2:] == (int(row),):
            os.kill(os.getpid(), getattr(signal, name))
        return super().__call__(batch, length, special, seed_B)


def experiment():
    return llm_jax.get("small_gpt").override({
        "model": Decoder(Embed(16), Stack((Block(Attention(1, 1, 8), SwiGLU(16)),), 1)),
        "tokenizer": Bytes(),
        "data": Data(TextFiles(TEXTS, separator="\\n"), length=24, batch=8, presentation=Sends()),
        "steps": 8, "log_every": 1, "eval_every": 100, "save_every": 100, "report": (),
    })
'''


def test_a_stopped_training_is_no_success_and_goes_on_where_it_stopped(tmp_path, capsys):
    texts, plan, file, run = (tmp_path / name for name in ("texts.txt", "plan", "sends.py", "run"))
    texts.write_text("\n".join(f"line {i} of the text" for i in range(300)))
    file.write_text(STOPPED.replace("PLAN_FILE", repr(str(plan))).replace("TEXTS", repr(str(texts))))
    command = ["llm_jax", "train", str(file), f"--workdir={run}"]
    saved = run / "checkpoints"

    for name, status, step in (("SIGTERM", 143, 2), ("SIGHUP", 129, 4), ("SIGINT", 130, 6)):
        plan.write_text(f"{8 * step} {name}")
        if name == "SIGINT":
            assert main(command) == status
        else:
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code == status
        said = capsys.readouterr()
        assert f"stopped and saved at step {step}: the same command goes on" in said.out
        assert "what next" not in said.out
        # what was being made when the signal came was not seen: the next session begins with it
        assert json.loads((saved / f"{step:08d}" / "data.json").read_text())["batches"] == step
    plan.write_text("-1 ")
    assert main(command) == 0
    assert "what next" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), Interrupt():
        raise RuntimeError
    assert before == [signal.getsignal(number) for number in SIGNALS]


def test_does_nothing_outside_the_main_thread():
    seen = []

    def body():
        with Interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGINT), interrupt.requested))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGINT), False)]
