"""Trainings on a Dask cluster (the extra ``dask``), as an executor that ``search`` takes.

Rows leave this machine, and Dask's wire is pickle: who can speak to the scheduler can run code on its workers, and they in
the training process. So the address is an administrator's setting, and ``dask+tls://`` is for any network that others share;
certificates are named in Dask's own configuration (``/etc/dask``).
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from pg_distill import __version__
from pg_distill.errors import InvalidState

__all__ = ["DaskExecutor"]

CONNECT_SECONDS = 10.0
SEND_SECONDS = (
    60.0  # for rows to reach all workers: one that dies meanwhile can leave the scheduler waiting for good
)
KEPT_ROWS = 8  # sets of rows that the workers keep for tasks to come; those under way keep theirs
ATTEMPTS = (
    3  # at a task whose rows went with the workers that had them, and at sending rows while workers die
)


class DaskExecutor(Executor):
    """Runs ``submit(function, task, *rows)`` on the workers; each set of rows is sent once, not with every task.

    A task of a worker that dies is run again by another. ``slots`` is how many the workers run at once.

    Raises
    ------
    InvalidState
        Dask is not installed, the scheduler cannot be reached or has no workers, or they have another release of this module.
    """

    def __init__(self, address: str) -> None:
        scheme, _, where = address.partition("://")
        try:
            dask: Any = importlib.import_module("distributed")  # it has types in part
        except ImportError as error:
            raise InvalidState(
                "Dask is not installed where training runs", hint="Install pg_distill's extra dask there."
            ) from error
        try:
            self._client: Any = dask.Client(
                f"{'tls' if scheme == 'dask+tls' else 'tcp'}://{where}",
                timeout=CONNECT_SECONDS,
                set_as_default=False,
            )
        except (OSError, TypeError, ValueError, RuntimeError) as error:  # TypeError: no certificates
            raise InvalidState(f"the Dask scheduler at {where} cannot be reached: {error}") from error
        self._where = where
        self._rows: OrderedDict[str, Any] = OrderedDict()
        self._broadcast = True
        self._under_way: set[Any] = set()
        self._lock = threading.Lock()
        try:
            self.slots = sum(self._client.nthreads().values())
            if not self.slots:
                raise InvalidState(f"the Dask scheduler at {where} has no workers")
            found = set(self._client.run(_version).values())
        except InvalidState:
            self._client.close()
            raise
        except Exception as error:  # the workers' own words: where they have no pg_distill, an ImportError
            self._client.close()
            raise InvalidState(
                f"the workers of the Dask scheduler at {where} cannot run pg_distill {__version__}",
                detail=f"{type(error).__name__}: {error}",
                hint="Install it on each of them.",
            ) from error
        if found != {__version__}:
            self._client.close()
            raise InvalidState(
                f"the workers of the Dask scheduler at {where} have other releases than {__version__}",
                detail=f"They have {', '.join(sorted(found))}.",
            )

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        """Run ``fn(task, *rows)`` on a worker."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._start(future, fn, arguments, 1)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the scheduler, which drops what is still to be run for us."""
        self._client.close()

    def _start(
        self, future: Future[Any], fn: Callable[..., Any], arguments: tuple[Any, ...], attempt: int
    ) -> None:
        task, *rows = arguments
        remote = self._client.submit(fn, task, *map(self._sent, rows), pure=False)
        self._under_way.add(remote)

        def finish(remote: Any) -> None:
            self._under_way.discard(remote)
            try:
                if remote.status in ("cancelled", "lost") and attempt < ATTEMPTS and self._is_connected():
                    with self._lock:
                        self._rows.clear()
                    self._start(future, fn, arguments, attempt + 1)
                    return
                future.set_result(remote.result())
            except BaseException as error:
                if self._is_connected():
                    future.set_exception(error)
                else:
                    future.set_exception(InvalidState(f"the Dask scheduler at {self._where} was lost"))

        remote.add_done_callback(finish)

    def _is_connected(self) -> bool:
        return bool(self._client.status == "running")

    def _sent(self, rows: Any) -> Any:
        """Return rows as the workers have them; on each, if it can be, so that a worker's death does not lose them."""
        from dask.base import tokenize

        token = tokenize(rows)
        with self._lock:
            if token not in self._rows:
                self._rows[token] = self._scattered(rows)
            self._rows.move_to_end(token)
            while len(self._rows) > KEPT_ROWS:
                self._rows.popitem(last=False)
            return self._rows[token]

    def _scattered(self, rows: Any) -> Any:
        attempt = 1
        while True:
            try:
                # In a list: a list is sent item by item, whatever the items are.
                send = partial(
                    self._client.scatter, [rows], broadcast=self._broadcast, hash=False, asynchronous=True
                )
                return self._client.sync(send, callback_timeout=SEND_SECONDS)[0]
            # A worker died over it, which the scheduler knows by now, or soon (TimeoutError, too, is an OSError); a KeyError is
            # the scheduler's own, of a worker that was gone when its turn came.
            except (OSError, KeyError) as error:
                # The scheduler goes on copying to a worker that died meanwhile, under a lock that all copying needs: from now on
                # one worker has the rows, and others ask it for them.
                self._broadcast = self._broadcast and not isinstance(error, TimeoutError)
                if attempt == ATTEMPTS or not self._is_connected():
                    raise InvalidState(
                        f"rows cannot be sent to the workers of the Dask scheduler at {self._where}: {error}"
                    ) from error
                attempt += 1


def _version() -> str:
    """Return the release of this module on a worker."""
    return __version__
