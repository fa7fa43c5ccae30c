"""Processes that work for another one: deaf to the signals that are meant for their parent, and ended with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a process: Ctrl-C, a scheduler, a closed terminal. All three reach a whole process group."""

UNGUARDED = 78  # the exit status of a worker that would run its parent's script again


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Around the start of worker processes: no signal reaches one before it has called `end_with_parent`.

    A process inherits the signals that the thread which starts it has blocked. What comes meanwhile is not lost: it
    goes to another thread, or waits.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # a process too, which multiprocessing spares SIGHUP no more than it did us
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # once more: it unblocks two of them
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a worker, first of all: ignores `SIGNALS`, on which the parent decides, and ends when the parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def not_in_worker() -> None:
    """Before what only the parent may do: ends a worker that is still importing its parent's script.

    A script without `if __name__ == "__main__":` does all its work again in each of its workers. The status tells the
    parent, which reports it; nothing of the script is cleaned up here, since it is the parent's.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # multiprocessing's own test of the same
        os._exit(UNGUARDED)
