"""How far a long import or export is: a bar on a terminal, and one line at its end anywhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Progress:
    """A context manager. `of(total)` returns what is to be called with the bytes that are through."""

    def __init__(self, doing: str):
        self.doing = doing
        self._bar: Any = None
        self._through = 0

    def of(self, total: int) -> Callable[[int], None]:
        self._begun = time.perf_counter()
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar(self.doing, total)
            self._bar.start()
        return self._note

    def _note(self, size: int) -> None:
        self._through += size
        if self._bar is not None:
            self._bar.update(0, advance=size)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and self._through:
            seconds, size = max(time.perf_counter() - self._begun, 1e-9), self._through / 1e9
            print(f"{self.doing}: {size:.2f} GB in {seconds:.1f} s, {size / seconds:.2f} GB/s", file=sys.stderr)


def _bar(doing: str, total: int) -> Any:
    from rich import progress  # imported late: only terminals need it
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    bar = progress.Progress(*columns, console=Console(file=sys.stderr), transient=True)
    bar.add_task(doing, total=total)
    return bar
