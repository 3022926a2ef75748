"""A compiled model, its requests, and a new one in its place after a run that failed.

OpenVINO works out shapes on the way through the graph and keeps them for the next run. A run that ends halfway, since it
failed or was stopped, leaves shapes of two runs behind: later runs of good inputs then fail, or could be wrong. So after
such a run the model is compiled anew, from the graph, before anything else runs on it.

A run is started and waited for. `infer` of 2026.4.1 does both in one call, and with one thread a stream it loses errors:
the run that failed returns as if it had not, and a later one ends the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from demi.errors import InferenceError, StoppedError
from demi.runtime.openvino.failures import is_cancelled, reason
from demi.tensors import Feeds


class Run:
    """One run that is under way; any thread may stop it."""

    __slots__ = ("request", "stopped")

    def __init__(self) -> None:
        self.request: Any = None
        self.stopped = False

    def stop(self) -> None:
        """Let it end before its next layer; nothing where it has not begun."""
        self.stopped = True
        if self.request is not None:
            self.request.cancel()


class Compiled:
    """A compiled model that is compiled anew when it must be. Owns the requests; safe to call from several threads.

    No more runs are under way than it has streams. `keeps_shapes` says that a failed run leaves something behind: models
    whose shapes are all fixed need no other in their place.
    """

    def __init__(self, compile_model: Callable[[], Any], streams: int, *, keeps_shapes: bool) -> None:
        self._compile = compile_model
        self._keeps_shapes = keeps_shapes
        self._turns = threading.Semaphore(streams)
        self._lock = threading.Lock()
        self._spoiled = False
        self._idle: list[Any] = []
        self.generation = 0
        """Number of times that it was compiled anew."""
        self.model = compile_model()

    def run(self, run: Run, send: Callable[[Any], None], read: Callable[[Any], Feeds]) -> Feeds:
        """Return what `read` finds in a request that `send` has filled and that has run.

        Raises StoppedError when the run was stopped, and InferenceError with the runtime's words when it failed.
        """
        with self._turns:
            while True:
                request, generation = self._take()
                try:
                    answer = self._infer(run, request, send, read)
                except BaseException:
                    self._spoil(generation)
                    raise
                if self._give_back(request, generation):
                    return answer  # else another run failed meanwhile, and this one may have run on what that left

    def _infer(self, run: Run, request: Any, send: Callable[[Any], None], read: Callable[[Any], Feeds]) -> Feeds:
        try:
            send(request)
            request.start_async()
            run.request = request
            if run.stopped:
                request.cancel()
            request.wait()
            return read(request)
        except RuntimeError as error:
            if run.stopped and is_cancelled(error):
                raise StoppedError("the run was stopped") from error
            raise InferenceError(f"OpenVINO failed: {reason(error)}") from error
        finally:
            run.request = None

    def _take(self) -> tuple[Any, int]:
        """A request that is idle, or a new one, and the generation that it belongs to."""
        with self._lock:
            if self._spoiled:
                self._idle.clear()
                self.model = self._compile()
                self.generation += 1
                self._spoiled = False
            return (self._idle.pop() if self._idle else self.model.create_infer_request()), self.generation

    def _give_back(self, request: Any, generation: int) -> bool:
        """Keep a request for the next run; False where its generation has been spoiled."""
        with self._lock:
            if self._spoiled or generation != self.generation:
                return False
            self._idle.append(request)
            return True

    def _spoil(self, generation: int) -> None:
        with self._lock:
            if self._keeps_shapes and generation == self.generation:
                self._spoiled = True
