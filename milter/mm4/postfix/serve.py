"""`mm4 serve`: the supervisor. It owns the listening sockets and the signals; its children do the work.

TERM: workers accept nobody any more, finish what has begun and leave, the responder last. HUP: the file is read and
checked, then handed to every child, or the old configuration stays. A child that dies is started again; its sockets
never close, so a client sees a pause and no refusal; where systemd holds them, not at a restart either. No message is
cut; an idle session may be closed with 421.

The first children are forked, while there is no thread, event loop or open store that they could inherit. What comes
in the place of one that died is a new program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..gateway.config import Config
from ..gateway.configfile import place
from ..gateway.logline import logline
from ..protocol.errors import ConfigError, InternalError, Mm4Error, NoStoreError, PostfixError, StoreError
from ..store.store import Store
from .forked import Forked, fork
from .hostname import keep_host
from .instance import tool
from .listening import held_by_systemd, listeners
from .logs import set_up
from .lookups import check_files
from .notify import notify
from .owner import own
from .settings import read_config
from .sockets import FINGERPRINTS_SOCKET, MAILDIR_SOCKET, MILTER_SOCKET, RESPONDER_SOCKET

__all__ = ["serve"]

log = logging.getLogger("mm4.serve")

START_SECONDS = 30.0
STOP_SECONDS = 45.0
"""Longest time a child may take to leave: a running eom, and a reserve. Below the unit's TimeoutStopSec."""
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a child that keeps dying is started again."""
_SOCKETS = (MILTER_SOCKET, RESPONDER_SOCKET, MAILDIR_SOCKET, FINGERPRINTS_SOCKET)
_FIXED = ("store", "folders", "cdr")
"""Keys that a running daemon cannot change."""


def serve(path: str) -> int:
    """Run the daemon with the configuration in `path` until TERM. Raises ConfigError, StoreError."""
    set_up()
    held = held_by_systemd()
    config, text = read_config(path)
    supervisor = _Supervisor(str(Path(path).absolute()), config, text, held)
    supervisor.prepare()
    return asyncio.run(supervisor.run())


class _Child:
    """One child process, started again whenever it ends without being told to; at first it is what was `forked`."""

    def __init__(
        self, supervisor: _Supervisor, name: str, module: str, sockets: list[socket.socket], forked: Forked | None
    ) -> None:
        self.supervisor = supervisor
        self.name = name
        self.module = module
        self.sockets = sockets
        self.forked = forked
        self.process: asyncio.subprocess.Process | Forked | None = None
        self.leaving = False
        self.ready = asyncio.Event()
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        failures = 0
        while not self.leaving:
            started = time.monotonic()
            code = await self._once()
            self.ready.clear()
            if self.leaving:
                break
            failures = 0 if time.monotonic() - started > 30 else failures + 1
            pause = _PAUSES[min(failures, len(_PAUSES)) - 1] if failures else 0.0
            log.error(logline(child=self.name, ended=code, again_in=pause))
            await asyncio.sleep(pause)

    async def _once(self) -> int:
        process = self.process = await self._started()
        self.say(**self.supervisor.configuration())
        if self.leaving:  # said to none, as it was being started
            self.say(drain=0.0)
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):
                message = json.loads(line)
                if message.get("ready"):
                    self.ready.set()
                    log.info(logline(child=self.name, pid=process.pid, ready="yes"))
                else:
                    self.answers.put_nowait(message)
        return await process.wait()

    async def _started(self) -> asyncio.subprocess.Process | Forked:
        forked, self.forked = self.forked, None
        if forked is not None:
            await forked.connect()
            return forked
        descriptors = [s.fileno() for s in self.sockets]
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", self.module, *map(str, descriptors),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            pass_fds=descriptors, start_new_session=True,
        )  # fmt: skip

    def say(self, **message: Any) -> None:
        """One command to the child; one that has just died gets it at its next start."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self.process.stdin.write((json.dumps(message) + "\n").encode())

    async def leave(self, seconds: float) -> None:
        """Drain and end; killed by its process id when it does not."""
        self.leaving = True
        self.say(drain=seconds)
        done, _ = await asyncio.wait([self.task], timeout=seconds + STOP_SECONDS)
        if not done:
            log.error(logline(child=self.name, killed="did not leave in time"))
            if self.process is not None and self.process.returncode is None:
                self.process.kill()
            await asyncio.wait([self.task], timeout=5)


class _Supervisor:
    """Sockets, signals, children."""

    def __init__(self, path: str, config: Config, text: str, held: Sequence[socket.socket] = ()) -> None:
        self.path = path
        self.config = config
        self.text = text
        self.held = held
        self.host = ""
        self.lock = -1
        self.listening: dict[str, socket.socket] = {}
        self.started: list[tuple[str, str, list[socket.socket], Forked | None]] = []
        """Name, module, sockets of each child to be, and what was forked for it."""
        self.children: list[_Child] = []
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self.failed: int | None = None

    def prepare(self) -> None:
        """All that can fail before the daemon serves, and the first children. Raises ConfigError, PostfixError,
        StoreError.
        """
        config = self.config
        state, sockets = Path(config.folders.state), Path(config.folders.sockets)
        self._need_postfix()
        self._need_lists(config, self.text)
        here = self._place("folders.sockets")
        if not sockets.is_dir():
            raise ConfigError(f"{here}: there is no folder {sockets}; make it: install -d -o mm4 {sockets}")
        self.lock = own(sockets, here)
        self._prepare_state(state)
        try:
            # Migrated here, once: the children only open it.
            Store.open(config.store).close()
        except StoreError as error:
            said = f"{self._place('store')}: {error}"
            if isinstance(error, NoStoreError):
                raise ConfigError(said) from None
            raise StoreError(said) from None  # may pass: a full disk, a lock
        self.listening = listeners(sockets, _SOCKETS, self.held, here)
        self._fork()

    def _fork(self) -> None:
        answering = [self.listening[name] for name in _SOCKETS if name != MILTER_SOCKET]
        children = [("responder", "mm4.postfix.answerer", answering)]
        children += [
            (f"worker-{i + 1}", "mm4.postfix.worker", [self.listening[MILTER_SOCKET]])
            for i in range(self.config.service.workers)
        ]
        forked = fork([child[1:] for child in children], [*self.listening.values()], self.lock)
        self.started = [(*child, process) for child, process in zip(children, forked, strict=True)]

    async def run(self) -> int:
        """Serve until told to stop, with what `prepare` has made. Returns the exit code."""
        config, sockets = self.config, Path(self.config.folders.sockets)
        self._expose(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)
        self.children = responder, *workers = [_Child(self, *child) for child in self.started]
        try:
            await self._all_ready()
            notify("READY=1")
            log.info(logline(serving=str(sockets), workers=len(workers), config=self.path))
            alive = asyncio.create_task(self._say_alive())
            await self._until_stopped()
            alive.cancel()
        finally:
            notify("STOPPING=1")
            drain = float(self.config.service.drain)
            await asyncio.gather(*(worker.leave(drain) for worker in workers))
            # Last: what the workers let in is acknowledged before we go.
            await responder.leave(0.0)
            for name, listener in self.listening.items():
                listener.close()
                if not self.held:
                    (sockets / name).unlink(missing_ok=True)
            os.close(self.lock)
            log.info(logline(stopped="yes"))
        return self.failed or 0

    def configuration(self) -> dict[str, Any]:
        """What a child is told first and at every reload: the texts that were checked, not the names of files."""
        return {
            "config": self.text,
            "name": self.path,
            "dialects": dict(self.config.dialects),
            "host": self.host,
        }

    def _place(self, key: str) -> str:
        return place(self.text, self.path, key)

    def _need_postfix(self) -> None:
        """Without Postfix's commands no ack would ever leave: better said now than found out by a peer."""
        try:
            tool("postqueue")
            if self.config.submit == "sendmail":
                tool("sendmail")
        except PostfixError as error:
            raise PostfixError(f"{self._place('submit')}: {error}") from None

    def _need_lists(self, config: Config, text: str) -> None:
        """Every file that routes name can be used, or where it stands and what is wrong with it."""
        problems = [f"{place(text, self.path, key)}: {problem}" for key, problem in check_files(config)]
        if problems:
            raise ConfigError(problems)

    def _prepare_state(self, state: Path) -> None:
        try:
            state.mkdir(parents=True, exist_ok=True)
            metrics = state / "metrics"
            shutil.rmtree(metrics, ignore_errors=True)
            metrics.mkdir()
            self.host = keep_host(state)
        except OSError as error:
            raise ConfigError(f"{self._place('folders.state')}: {state} cannot be used: {error.strerror}") from None
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)

    def _expose(self, config: Config) -> None:
        endpoint = config.service.metrics
        if endpoint is None:
            return
        from .metrics import expose  # noqa: PLC0415 - reads the environment when it is imported

        try:
            expose(endpoint, os.environ["PROMETHEUS_MULTIPROC_DIR"])
        except OSError as error:
            raise ConfigError(
                f"{self._place('service.metrics')}: cannot listen on {endpoint}: {error.strerror}; choose a free port"
            ) from None

    async def _all_ready(self) -> None:
        """Wait for every child's first `ready`. One that cannot start says why, and the daemon goes down with it."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.gather(*(self._ready(child) for child in self.children))
        except TimeoutError:
            late = ", ".join(child.name for child in self.children if not child.ready.is_set())
            raise InternalError(f"{late} did not start within {START_SECONDS:.0f} s") from None

    @staticmethod
    async def _ready(child: _Child) -> None:
        ready = asyncio.create_task(child.ready.wait())
        answer = asyncio.create_task(child.answers.get())
        done, _ = await asyncio.wait([ready, answer], return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, answer):
            task.cancel()
        if answer in done and not child.ready.is_set():
            raise InternalError(f"{child.name}: {answer.result().get('error', 'ended')}")

    async def _say_alive(self) -> None:
        """Feed systemd's watchdog while every child serves. Four times as often as asked for: one that is being started
        again just then must not be the end of all.
        """
        pause = int(os.environ.get("WATCHDOG_USEC", "0")) / 4e6
        while pause:
            if all(child.ready.is_set() for child in self.children):
                notify("WATCHDOG=1")
            await asyncio.sleep(pause)

    async def _until_stopped(self) -> None:
        while not self.stop.is_set():
            waits = [asyncio.create_task(self.stop.wait()), asyncio.create_task(self.reload.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()
            if self.reload.is_set():
                self.reload.clear()
                await self._reload()

    async def _reload(self) -> None:
        """HUP: the new configuration everywhere, or the old one everywhere."""
        notify("RELOADING=1")
        try:
            config, text = read_config(self.path)
            self._need_lists(config, text)
        except Mm4Error as error:
            for problem in str(error).splitlines():
                log.error(logline(reload="refused, the old configuration stays", problem=problem))
            notify("READY=1")
            return
        fixed = [key for key in _FIXED if getattr(config, key) != getattr(self.config, key)]
        if config.service.workers != self.config.service.workers:
            fixed.append("service.workers")
        if config.service.metrics != self.config.service.metrics:
            fixed.append("service.metrics")
        for key in fixed:
            log.warning(logline(reload=f"{key} changes with the next restart"))
        self.config, self.text = config, text
        for child in self.children:
            while not child.answers.empty():
                child.answers.get_nowait()
            child.say(**self.configuration())
        for child in self.children:
            await self._configured(child)
        log.info(logline(reload="done", config=self.path))
        notify("READY=1")

    async def _configured(self, child: _Child) -> None:
        try:
            answer = await asyncio.wait_for(child.answers.get(), START_SECONDS)
        except TimeoutError:
            answer = {"error": "no answer"}
        if "error" in answer:
            # It starts again with the new text, which this process has checked.
            log.error(logline(child=child.name, reload="failed, restarting it", problem=answer["error"]))
            if child.process is not None and child.process.returncode is None:
                child.process.kill()
