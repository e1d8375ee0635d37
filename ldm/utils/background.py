"""Work in a thread beside the program: one piece at a time, and its errors reach whoever waits for it."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread


class Background:
    """Does one piece of work at a time; used as a context, nothing is at work after it.

    Only an interrupt does not wait: what is at work then ends with the program.
    """

    def __init__(self) -> None:
        self._at_work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin with `work`, once what is at work is done. Raises: as `wait`."""
        self.wait()
        future: Future[None] = Future()

        def run() -> None:
            try:
                work()
                future.set_result(None)
            except BaseException as error:
                future.set_exception(error)

        self._at_work = future
        Thread(target=run, name="background", daemon=True).start()

    def check(self) -> None:
        """Raises: what the work raised, if it has ended by an error; does not wait."""
        if self._at_work is not None and self._at_work.done():
            self.wait()

    def wait(self) -> None:
        """Return once the work is done. Raises: what it raised, once."""
        future, self._at_work = self._at_work, None
        if future is not None:
            future.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # which is what the program ends with
            try:
                self.wait()
            except Exception as error:
                print(f"warning: {error}", flush=True)
