"""A library's own denoising loop, one step at a time.

The call runs in a thread of its own that waits after every step, inside the library's callback, until it is let on; so
nothing runs between two steps, and never two calls at once. The thread ends with the call, when the call fails, when
`Stepwise.close` is called, and when the `Stepwise` is no longer used by anybody.

Not here: what is called (`library.py`).
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable
from typing import Any

OnStep = Callable[[Any], None]  # to be called by the loop after every step, with what the step made


class _Closed(BaseException):
    """Raised inside the library's loop to leave it. Not an `Exception`, so that nothing takes it for a failure."""


class _Handover:
    """State shared by the two threads, of which one runs at a time."""

    def __init__(self) -> None:
        self.on = threading.Semaphore(0)  # the call may run
        self.off = threading.Semaphore(0)  # the call waits, or has ended
        self.closed = False
        self.num_steps = 0
        self.made: Any = None  # by the last step
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False

    def run(self, call: Callable[[OnStep], Any]) -> None:
        try:
            self._wait()
            self.result = call(self.after_step)
        except _Closed:
            pass
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            self.error = error
        finally:
            self.ended = True
            self.off.release()

    def after_step(self, made: Any) -> None:
        self.num_steps += 1
        self.made = made
        self.off.release()
        self._wait()

    def _wait(self) -> None:
        self.on.acquire()
        if self.closed:
            raise _Closed

    def close(self) -> None:
        self.closed = True
        self.on.release()


class Stepwise:
    """A call that is let on step by step. call: gets the function that its loop calls after every step; starts with
    the first `step`. It must not refer to this object, which could then never be garbage-collected."""

    def __init__(self, call: Callable[[OnStep], Any]) -> None:
        self._handover = _Handover()
        self._call: Callable[[OnStep], Any] | None = call
        self._finalizer = weakref.finalize(self, self._handover.close)
        self._finalizer.atexit = False  # the thread is a daemon: it ends with the process

    @property
    def num_steps(self) -> int:
        """Steps done."""
        return self._handover.num_steps

    @property
    def made(self) -> Any:
        """What the last step made; None before the first."""
        return self._handover.made

    @property
    def ended(self) -> bool:
        """Whether the call has returned or failed."""
        return self._handover.ended

    def step(self) -> None:
        """Let the call on to the end of its next step, or to its end. Raises what the call raises."""
        handover = self._handover
        assert not (handover.ended or handover.closed), "a call that has ended cannot go on"
        if self._call is not None:
            context = contextvars.copy_context()
            threading.Thread(
                target=context.run, args=(handover.run, self._call), name="ace-stepwise", daemon=True
            ).start()
            self._call = None
        handover.on.release()
        handover.off.acquire()
        if handover.error is not None:
            error, handover.error = handover.error, None
            raise error

    def result(self) -> Any:
        """Let the call on to its end. Returns what it returns, raises what it raises."""
        while not self.ended:
            self.step()
        return self._handover.result

    def close(self) -> None:
        """Leave the call where it is and end its thread."""
        self._finalizer()
