"""Ctrl-C, SIGTERM and a time limit stop a job alike: what is finished is kept, and the process soon gone."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from jaxmargin import checks

__all__ = ["SAID", "Stopped", "stoppable"]

SAID = "interrupted: the same command continues from here"
# A signal reaches Python between two calls of compiled code, which may take minutes; schedulers kill after ten seconds.
_GRACE_SECONDS = 8.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A job was asked to stop.

    Args:
      number: of the signal that asked.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextlib.contextmanager
def stoppable(minutes: float | None = None) -> Iterator[None]:
    """Raises Stopped in the block at SIGINT or SIGTERM, and ends the process where that does not end the block in time.

    A second signal ends it at once. Outside of the main thread, which alone is told of signals, nothing is done.

    Args:
      minutes: after which to stop as by SIGINT, also in a process that was started to ignore it; None for never.

    Raises:
      ValueError: minutes is no positive number.
      Stopped: in the block.
    """
    if minutes is not None:
        checks.positive("minutes", minutes)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN or minutes is not None]
    told, teller = socket.socketpair()
    teller.setblocking(False)
    watch = threading.Thread(target=_watch, args=(told,), daemon=True)
    with _alarm(minutes), told, teller:
        before = {number: signal.signal(number, _stop) for number in heard}
        fd = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            teller.close()
            watch.join()


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def _watch(told: socket.socket) -> None:
    """Is told of each signal when it comes, whatever the main thread is doing, and of the end of the block."""
    first: int | None = None
    while heard := _next(told):
        if heard[0] in _SIGNALS:
            if first is not None:
                _leave(heard[0])
            first = heard[0]
            told.settimeout(_GRACE_SECONDS)
    if heard is None and first is not None:
        _leave(first)


def _next(told: socket.socket) -> bytes | None:
    """The number of a signal, b"" at the end of the block, None where the time is over."""
    try:
        return told.recv(1)
    except TimeoutError:
        return None


def _leave(number: int) -> None:
    """Ends the process as it stands: all files are whole at any moment."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{SAID}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def _alarm(minutes: float | None) -> Iterator[None]:
    if minutes is None:
        yield
        return
    main_thread = threading.get_ident()

    def ring() -> None:
        if hasattr(signal, "pthread_kill"):  # wakes it where it waits for something else than compiled code
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)

    alarm = threading.Timer(60 * minutes, ring)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
