"""The files of charging records: written whole, closed by a rename, each record in exactly one of them.

A thread beside the responder takes committed records from the store. A file goes through four steps, and the store
knows the last that was done: claimed (its records and its name are chosen), written (whole and flushed under a hidden
name), renamed, closed. Killed anywhere, the next writer goes on from there: it never writes a claimed record into
another file, and a file that somebody has fetched since its rename is not written again. A disk that is full or away
is logged, counted and tried again; mail waits for none of this.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from ..gateway.config import Config
from ..gateway.host import Cdr
from ..gateway.logline import logline
from ..protocol.charging import written
from ..store.charges import CdrFile, Charges
from ..store.store import Store
from .metrics import Counters
from .synced import sync_folder

__all__ = ["CdrWriter", "start_cdr_writer"]

log = logging.getLogger("mm4.cdr")

POLL_SECONDS = 2.0
LONGEST_PAUSE = 60.0
"""Between two looks at the store; doubled after each failure, up to the longest."""
STORE_SECONDS = 15.0
STOP_SECONDS = 2.0
_LOCK = ".mm4-cdr.lock"
_BUFFER = 1 << 20


class _Observer(Protocol):
    """What counts files."""

    def cdr_file(self, result: str, records: int) -> None: ...


class CdrWriter:
    """Writes what waits into files below `folder`. `now` is the clock (aware, UTC).

    Any number may run, on one host or several: a folder is worked in by one at a time, and no two get one record.
    """

    def __init__(
        self,
        charges: Charges,
        cdr: Cdr,
        folder: Path,
        host: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        counters: _Observer | None = None,
    ) -> None:
        self._charges = charges
        self._cdr = cdr
        self._folder = folder
        self._host = host
        self._now = now
        self._counters = counters
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mm4-cdr", daemon=True)

    def start(self) -> None:
        """Begin to look for records, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End after the file under way, or in the middle of it where that takes long: the next writer goes on."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        pause = POLL_SECONDS
        while not self._stopping.wait(pause):
            try:
                self.write()
                pause = POLL_SECONDS
            except Exception as error:
                # Whatever it is, a later try may find it mended, and mail goes on meanwhile.
                pause = min(LONGEST_PAUSE, pause * 2)
                log.error(logline(cdr="failed", fault=f"{type(error).__name__}: {error}", again_in=pause))
                if self._counters is not None:
                    self._counters.cdr_file("failed", 0)

    def write(self) -> int:
        """Finish what was begun, then close a file of each full batch that waits; gives the files closed.

        Raises OSError and StoreError; what was begun then is finished the next time.
        """
        number, fault = 0, None
        left = {file.folder for file in self._charges.unclosed(self._host)} - {str(self._folder)}
        for folder in sorted(left):  # the configuration named it once
            try:
                number += self._work(Path(folder), claim=False)
            except OSError as error:
                fault = error
        # Where the parent is missing, a disk is probably not there.
        self._folder.mkdir(mode=0o750, exist_ok=True)
        number += self._work(self._folder, claim=True)
        if fault is not None:
            raise fault
        return number

    def _work(self, folder: Path, *, claim: bool) -> int:
        number = 0
        with _alone(folder) as alone:
            if not alone:
                return 0
            for file in self._charges.unclosed(self._host, str(folder)):
                self._finish(file)
                number += 1
            rotate = self._cdr.rotate
            after = timedelta(seconds=rotate.after)
            while claim and not self._stopping.is_set():
                claimed = self._charges.claim(
                    self._host, str(folder), self._cdr.format, rotate.records, after, self._now()
                ).result(STORE_SECONDS)
                if claimed is None:
                    break
                self._finish(claimed)
                number += 1
        return number

    def _finish(self, file: CdrFile) -> None:
        folder = Path(file.folder)
        final, part = folder / file.name, folder / f".{file.name}.part"
        if file.written_at is None or not self._is_written(file, final, part):
            self._write_part(file, part)
            self._charges.written(file, _identity(folder), self._now()).result(STORE_SECONDS)
        with contextlib.suppress(FileNotFoundError):  # renamed before
            part.rename(final)
        sync_folder(folder)
        self._charges.closed(file, self._now()).result(STORE_SECONDS)
        log.info(logline(cdr="closed", file=str(final), records=file.records))
        if self._counters is not None:
            self._counters.cdr_file("closed", file.records)

    def _is_written(self, file: CdrFile, final: Path, part: Path) -> bool:
        """Whether a file that was noted as written is there, under one name or the other, or was and has been fetched.

        A hidden file goes away only by its rename. In another folder of the same name, such as the empty place of a
        disk that is not mounted, nothing of it can be told.
        """
        return part.exists() or final.exists() or file.folder_identity == _identity(part.parent)

    def _write_part(self, file: CdrFile, part: Path) -> None:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "wb", _BUFFER) as output:
            output.writelines(written(self._charges.of_file(file), file.format))
            output.flush()
            os.fsync(output.fileno())
        sync_folder(part.parent)


def start_cdr_writer(config: Config, store: Store, host: str) -> CdrWriter | None:
    """Start the writer where the configuration wants records; None where it does not."""
    if config.cdr is None:
        return None
    writer = CdrWriter(store.charges, config.cdr, Path(config.cdr_folder), host, counters=Counters())
    writer.start()
    return writer


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Be the only writer in a folder; False where another process is. The kernel frees what a killed one held."""
    descriptor = os.open(folder / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _identity(folder: Path) -> str:
    status = folder.stat()
    return f"{status.st_dev}:{status.st_ino}"
