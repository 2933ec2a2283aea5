"""Ending in order when a user, a scheduler or a closed terminal asks a process to end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


STOP_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@contextlib.contextmanager
def handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Inside, `handler` answers the signals that ask a process to end, but for those that it ignores already."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread():  # no other may have handlers
        before = {}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, what is being written is finished; a signal that came meanwhile is answered at the end."""
    came: list[int] = []
    try:
        with handled(lambda number, _: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


def exit_status(stop: KeyboardInterrupt) -> int:
    """The exit status of a process that a signal ended, as shells have it."""
    return 128 + getattr(stop, 'signum', signal.SIGINT)


@contextlib.contextmanager
def stopping_signals() -> Iterator[None]:
    """Inside, Ctrl-C and the signals of schedulers and closed terminals raise `Stopped`, once, so as to end in order.

    A signal that the process was started to ignore, by nohup or in a shell's background, stays ignored. Where what is
    interrupted makes an error of its own of it, as Python does while it makes a class, it is `Stopped` all the same.
    """
    stops: list[Stopped] = []

    def stop(signum: int, _: object) -> None:
        for number in STOP_SIGNALS:  # what is then written is to be finished, however often one asks
            signal.signal(number, signal.SIG_IGN)
        stops.append(Stopped(signum))
        raise stops[0]

    with handled(stop):
        try:
            yield
        except Exception as error:
            if stops:
                raise stops[0] from error
            raise
