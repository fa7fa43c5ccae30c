import errno
import io

import jax.numpy as jnp
import pytest

from llm_jax.training.display import Display

TRAIN = {
    "loss": jnp.float32(3.25),
    "perplexity": 25.8,
    "bits_per_byte": 1.9,
    "tokens_per_second": 12_345.0,
    "mfu": 0.31,
    "skipped_steps": 0,
    "learning_rate": 1e-3,
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal():
    stream, clock = io.StringIO(), Clock()
    with Display(1000, stream=stream, clock=clock) as display:
        for step, now in ((10, 30.0), (20, 32.0), (30, 34.0)):  # 28 of the first 30 seconds were compilation
            clock.now = now
            display.log(step, "train", TRAIN)
        display.log(30, "validation", {"loss": 3.0, "accuracy": 0.25, "perplexity": 20.09, "skipped_steps": None})
        display.note("saved")
    assert stream.getvalue().splitlines() == [
        "step   10/1000  loss 3.2500  1.900 bits/byte  12.3k tokens/s  MFU 31.0%  0:30 elapsed",
        "step   20/1000  loss 3.2500  1.900 bits/byte  12.3k tokens/s  MFU 31.0%  0:32 elapsed  3:16 left",
        "step   30/1000  loss 3.2500  1.900 bits/byte  12.3k tokens/s  MFU 31.0%  0:34 elapsed  3:14 left",
        "step   30/1000  validation loss 3.0000  perplexity 20.09  accuracy 25.0%",
        "saved",
    ]


def test_the_time_left_follows_the_recent_pace():
    clock = Clock()
    display = Display(200, stream=io.StringIO(), clock=clock)
    assert display.seconds_left() is None
    for step in range(1, 101):
        clock.now += 10.0 if step <= 50 else 1.0
        display.log(step, "train", {})
    assert display.seconds_left() == pytest.approx(100.0)


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Display(100, stream=stream) as display:
        display.log(10, "train", TRAIN)
        display.log(20, "train", TRAIN)
        display.log(20, "validation", {"loss": 3.0})
        display.note("[bold] is no markup")
    shown = stream.getvalue()
    for part in (
        "20/100",
        "loss 3.2500",
        "12.3k tokens/s",
        "left",
        "validation loss 3.0",
        "[bold] is no markup",
        "\x1b[",
    ):
        assert part in shown


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Display(100, stream=stream) as display:
        display.log(10, "train", TRAIN)
    assert stream.getvalue().startswith("step  10/100  loss 3.2500") and "\x1b" not in stream.getvalue()


def test_nobody_reads_any_more():
    class Closed(io.StringIO):
        number = errno.EPIPE

        def write(self, text):
            raise OSError(self.number, "closed")

    for number, unread in ((errno.EPIPE, True), (errno.EIO, False)):
        stream = Closed()
        stream.number = number
        display = Display(10, stream=stream)
        display.log(1, "train", TRAIN)
        display.note("saved")
        assert display.unread == unread
    stream.number = errno.ENOSPC
    with pytest.raises(OSError, match="closed"):
        display.note("a full disk is another thing")
