"""SIGTERM and Ctrl-C: the first asks the training to save and leave, the second stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ASKED = b"\nfinishing this step and saving; once more stops at once, losing what came after the last checkpoint\n"


class Interrupt:
    """While entered, `requested` tells whether a signal came. The handlers of before are put back at the end.

    Python delivers signals to the main thread only: in any other thread this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, ASKED)  # a print could come in the middle of another one, which Python refuses
