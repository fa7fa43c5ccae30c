"""What a training shows while it runs: a live bar on a terminal, and elsewhere one plain line each time it logs."""

from __future__ import annotations

import collections
import errno
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from llm_jax.training.interrupt import forget_closed_streams

HEADLINES: dict[str, Callable[[float], str]] = {  # what is shown, in this order; metrics.jsonl has the rest
    "loss": lambda v: f"loss {v:.4f}",
    "perplexity": lambda v: f"perplexity {v:.4g}",
    "bits_per_byte": lambda v: f"{v:.3f} bits/byte",
    "accuracy": lambda v: f"accuracy {v:.1%}",
    "reward": lambda v: f"reward {v:.4g}",
    "reward_margin": lambda v: f"reward margin {v:.4g}",
    "kl": lambda v: f"KL {v:.4g}",
    "tokens_per_second": lambda v: f"{_thousands(v)} tokens/s",
    "mfu": lambda v: f"MFU {v:.1%}",
    "skipped_steps": lambda v: f"{v:.0f} steps skipped" if v else "",
}
BRIEF = frozenset({"perplexity", "accuracy"})  # said of evaluations only, to keep the line of a training step short
RECENT = 20  # the time left is judged by this many of the latest logs: the first ones hold the compilation


class Display:
    """Shows progress towards step `steps`. A context manager."""

    def __init__(self, steps: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.steps = steps
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._begun = clock()
        self._seen: collections.deque[tuple[int, float]] = collections.deque(maxlen=RECENT)
        self._progress: Any = None
        self.unread = False  # whether it was found that nobody reads the stream any more

    def __enter__(self) -> Display:
        self._begun = self._clock()
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._progress = self._bar()
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def log(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Shows what was measured at `step` on `split`; with "train", the bar moves."""
        words = headline(metrics, HEADLINES.keys() - (BRIEF if split == "train" else frozenset()))
        if split == "train":
            self._seen.append((step, self._clock()))
            if self._progress is not None:
                return self._progress.update(0, completed=step, words=words, left=self._left())
            words = f"{words}  {_duration(self._clock() - self._begun)} elapsed  {self._left()}".rstrip()
        else:
            words = f"{split} {words}"
        self.note(f"step {step:>{len(str(self.steps))}}/{self.steps}  {words}")

    def note(self, text: str) -> None:
        """Shows a line of text, above the bar if there is one. A training is worth more than what is said of it."""
        try:
            if self._progress is not None:
                self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            forget_closed_streams()
            self.unread |= error.errno == errno.EPIPE  # not where a terminal was closed on a run that is to outlive it

    def seconds_left(self) -> float | None:
        """By the pace of the latest logs; None until there are two."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        (first, begun), (last, now) = self._seen[0], self._seen[-1]
        return (now - begun) / (last - first) * (self.steps - last)

    def _left(self) -> str:
        return "" if (left := self.seconds_left()) is None else f"{_duration(left)} left"

    def _bar(self) -> Any:
        from rich.console import Console  # imported late: only terminals need it
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            MofNCompleteColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        progress = Progress(*columns, console=Console(file=self._stream), refresh_per_second=2)
        progress.add_task("", total=self.steps, words="compiling", left="")
        return progress


def headline(metrics: Mapping[str, Any], names: Any) -> str:
    """The metrics among `names`, as a person reads them."""
    shown = [say(float(metrics[n])) for n, say in HEADLINES.items() if n in names and metrics.get(n) is not None]
    return "  ".join(word for word in shown if word)


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
