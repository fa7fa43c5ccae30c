"""Ctrl-C, SIGTERM and SIGHUP: the first asks the training to save and leave, the second stops it at once."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from llm_jax.core.workers import SIGNALS

ASKED = b"\nfinishing this step and saving; once more stops at once, losing what came after the last checkpoint\n"
ECHO = 1.0  # seconds in which a signal that comes again is the same: a shell, `timeout` and schedulers send some twice


class GivenUp(BaseException):
    """A wait was given up for a signal. Not an Exception, which a user's code might catch."""


class Interrupt:
    """While entered, `requested` tells whether a signal came. The handlers of before are put back at the end.

    What was ignored before stays so: SIGHUP under nohup, SIGINT of a shell's background job. Python delivers signals to
    the main thread only: in any other thread this does nothing.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._came = 0.0
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self._number is not None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for what changes nothing until it is there: for a signal it is given up.

        Raises:
          GivenUp: a signal came, before or meanwhile.
        """
        self._waits = True
        try:
            if self.requested:
                raise GivenUp
            yield
        finally:
            self._waits = False

    def leave(self, said: str) -> NoReturn:
        """Ends the program as it ends where nobody handles the signal that came: with the status 128 + its number.

        Raises:
          KeyboardInterrupt: it was Ctrl-C; with what is `said` of it.
          SystemExit: it was another.
        """
        assert self._number is not None, "a signal came"
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt(said)
        raise SystemExit(128 + self._number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            forget_closed_streams()
        if self._number is None:
            self._number, self._came = number, time.monotonic()
            with contextlib.suppress(OSError):  # nobody is there to read it
                os.write(2, ASKED)  # a print could come in the middle of another one, which Python refuses
            if self._waits:
                raise GivenUp
        elif number != signal.SIGHUP and time.monotonic() - self._came > ECHO:
            self._number = number
            self.leave("stopped")


def forget_closed_streams() -> None:
    """What is written to a terminal that was closed, or a pipe without a reader, goes nowhere from now on: no error."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, select.POLLERR | select.POLLHUP)
    for stream, _ in poll.poll(0):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
