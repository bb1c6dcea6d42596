"""Puts mm4 into an operator's Postfix and out again: look, write, apply, probe, or put everything back.

Nothing is touched before every obstacle is known. The files as they were lie in `wired.json` beside the tables, in a
folder of root: what a run of `unwire` writes there must not be anybody else's to choose. Where an operator has edited
a file since, only what is ours is taken out of it.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..gateway.config import Config
from ..gateway.entries import domain_of
from ..gateway.names import is_private
from ..protocol.errors import PostfixError
from . import maps
from .cftext import block_of, remove_block
from .instance import Instance
from .master import Master
from .mastercf import services_of
from .obstacles import Files, Mode, obstacles
from .passwords import is_password_table, passwords
from .paused import paused_peers
from .probes import Probe, converse, deliver, listeners
from .shared import TABLES, shared_line, shared_tables
from .wiredfiles import members_of, undone, whole, wired
from .wiredstate import STATE, State, digest, read_state, write_state
from .wireprobes import link_probes, mailbox_of, ordinary_line, reachable_within

__all__ = ["Outcome", "Wiring"]

_FILES = ("main.cf", "master.cf")
_UP = 30.0
"""Seconds that the MM4 line may take to listen after a reload."""


@dataclass
class Outcome:
    """What a run did, or would do."""

    instance: str
    mode: str | None
    changed: list[str] = field(default_factory=list)
    """Files that differ from what they were."""
    applied: str | None = None
    """What made Postfix read them: reload, restart; None where nothing did."""
    probes: list[Probe] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    diff: str = ""
    ok: bool = True

    def as_json(self) -> dict[str, Any]:
        """The object that the commands print with --json."""
        return asdict(self)


class Wiring:
    """One Postfix instance and what this configuration wants in it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.instance = Instance(config.folders.postfix)
        self.master = Master(self.instance)
        self.folder = self.instance.folder
        self.tables = maps.folder_of(config)
        self.record = self.tables / STATE
        self.state = read_state(self.record)
        self.current = {name: _read(self.folder / name) for name in _FILES}
        self.places: dict[str, str] = {}
        """Both files with an empty block where ours stands."""
        self.set_aside: dict[Path, bytes] = {}
        """Edited files that --force replaces: kept under another name."""

    # -- the commands

    def wire(
        self, mode: Mode | None, *, dry: bool = False, probe: bool = True, mailbox: str | None = None,
        force: bool = False,
    ) -> Outcome:  # fmt: skip
        """Bring the files to `mode` (None: as they are wired, else `service`), apply and probe.

        An outcome that is not ok has put back what was there. Raises PostfixError where nothing was touched.
        """
        mode = mode or (self.state.mode if self.state else "service")
        outcome = Outcome(str(self.folder), mode)
        with self._locked():
            base = self._base(outcome, force=force)
            self._refuse(mode, base)
            target, state = self._target(mode, base)
            self._compare(target, outcome)
            settled = self.state is not None and self.state.settled
            if dry or (not outcome.changed and settled):
                state.settled = settled
                if not dry and self.state != state:
                    write_state(self.record, state)  # what the operator edited since is part of what unwire gives back
                return outcome
            running = self.master.pid() is not None
            at = ordinary_line(self.instance, base["master.cf"]) if mode != "all" else None
            mailbox = mailbox or mailbox_of(self.instance)
            if probe:
                self._answers()
                if running and at:
                    self._takes(at, mailbox)
            made, snapshot = not self.tables.exists(), self._snapshot(target)
            try:
                self._write(target, state)
                if running:
                    outcome.applied = self.master.restart() if "all" in (mode, self._was()) else self.master.reload()
                    if probe:
                        self._probe(mode, outcome, at, mailbox)
                else:
                    outcome.notes.append(f"{self.folder}: this Postfix does not run: nothing was probed; start it")
                outcome.ok = all(done.ok for done in outcome.probes)
                if outcome.ok:
                    state.settled = True
                    write_state(self.record, state)
            except (OSError, PostfixError) as error:
                outcome.probes.append(Probe("Postfix", False, str(error)))
                outcome.ok = False
            except BaseException:
                self._back(snapshot, outcome, made=made, running=running)
                raise
            if not outcome.ok:
                self._back(snapshot, outcome, made=made, running=running)
            return outcome

    def unwire(
        self, *, dry: bool = False, force: bool = False, probe: bool = True, mailbox: str | None = None
    ) -> Outcome:
        """Give back the files as they were. Raises PostfixError where nothing was touched."""
        outcome = Outcome(str(self.folder), None)
        with self._locked():
            was = self._was()
            if was is None:
                return outcome
            base = self._base(outcome, force=force)
            target: dict[Path, bytes | None] = {self.folder / name: _bytes(base[name]) for name in reversed(_FILES)}
            gone = self._own_tables()
            self._compare({**target, **dict.fromkeys(gone)}, outcome)
            if dry:
                return outcome
            if not force:
                self._nothing_waits()
            running = self.master.pid() is not None
            for path, data in {**self.set_aside, **target}.items():
                if data is not None:
                    maps.replace_file(path, data)
            if running:
                outcome.applied = self.master.restart() if was == "all" else self.master.reload()
            # Until then smtpd processes may still open them.
            for path in [*gone, self.record]:
                path.unlink(missing_ok=True)
            if self.state and self.state.made_folder:
                try:
                    self.tables.rmdir()
                except OSError:
                    outcome.notes.append(f"{self.tables} holds something that mm4 did not write: left there")
            at = ordinary_line(self.instance, base["master.cf"])
            if running and probe and at:
                outcome.probes.append(self._ordinary(at, mailbox or mailbox_of(self.instance)))
                outcome.ok = all(done.ok for done in outcome.probes)
            return outcome

    def status(self) -> dict[str, Any]:
        """What is wired, whether the files are as they should be, and what Postfix and the milter say now."""
        was = self._was()
        found: dict[str, Any] = {"instance": str(self.folder), "mode": was, "changed": [], "notes": [], "probes": []}
        pid = self.master.pid()
        found["running"] = pid is not None
        probes: list[Probe] = []
        for path, ask in listeners(self.config):
            try:
                ask(path)
                probes.append(Probe(str(path), True, "answers"))
            except OSError as error:
                probes.append(Probe(str(path), False, f"does not answer: {error}"))
        if was is not None:
            outcome = Outcome(str(self.folder), was)
            base = self._base(outcome, force=True)
            self._compare(self._target(was, base)[0], outcome)
            found["changed"], found["notes"] = outcome.changed, outcome.notes
            if pid is not None and all(done.ok for done in probes):
                at = ordinary_line(self.instance, base["master.cf"]) if was == "clients" else None
                probes += link_probes(self.config, self.instance, at)
        found["probes"] = [done.as_json() for done in probes]
        found["ok"] = was is not None and not found["changed"] and pid is not None and all(done.ok for done in probes)
        return found

    # -- what is there

    def _was(self) -> Mode | None:
        """How it is wired now: by the record, or by our block in master.cf where that is lost."""
        if self.state is not None:
            return self.state.mode
        return "service" if block_of(_text(self.current["master.cf"])) is not None else None

    def _base(self, outcome: Outcome, *, force: bool) -> dict[str, str]:
        """Both files without mm4: the earlier bytes, or what an operator has made of them since, less what is ours."""
        base = {}
        for name in _FILES:
            data, state = self.current[name], self.state
            self.places[name] = undone(name, _text(data), state.members if state else members_of(self.config))
            before = base64.b64decode(state.before[name]) if state else None
            if state and digest(data) == state.after[name] and before is not None:
                base[name] = _text(before)
            elif state and state.mode == "all" and before is not None and data != before:
                if not force:
                    raise PostfixError(
                        f"{self.folder / name} was edited since mm4 wrote it whole, and nothing tells what is yours in "
                        f"it; --force puts the earlier file back and keeps this one as {name}.edited"
                    )
                outcome.notes.append(f"{self.folder / name} was edited since; it is kept as {name}.edited")
                self.set_aside[self.folder / f"{name}.edited"] = data
                base[name] = _text(before)
            else:
                base[name] = remove_block(self.places[name])
                if state and data != before:
                    outcome.notes.append(f"{self.folder / name} was edited since: your edits stay, mm4's lines change")
        return base

    def _refuse(self, mode: Mode, base: Mapping[str, str]) -> None:
        ours = services_of(block_of(_text(self.current["master.cf"])) or "")
        if self.state and self.state.mode == "all":
            ours = services_of(_text(self.current["master.cf"]))
        listening = frozenset(service.name for service in ours if service.type == "inet")
        found = obstacles(self.config, mode, self.instance, Files(base["main.cf"], base["master.cf"], listening))
        if found:
            raise PostfixError("\n".join(map(str, found)) + "\nnothing was touched")

    def _target(self, mode: Mode, base: Mapping[str, str]) -> tuple[dict[Path, bytes | None], State]:
        """What every file has to hold, and the record of it; tables first, and main.cf last, which names them."""
        main, master, members = base["main.cf"], base["master.cf"], {}
        texts = {**maps.tables(self.config, paused_peers(self.config)), **passwords(self.config)}
        if mode == "all":
            written = whole(self.config, main, self.instance.raw("data_directory")["data_directory"])
        else:
            # Lines that an operator has put behind our block stay behind it.
            main, master = (
                self.places[name] if remove_block(self.places[name]) == base[name] else base[name] for name in _FILES
            )
            done = wired(self.config, mode, main, master, self.instance.defaults("smtpd_relay_restrictions"))
            written, members = (done.main, done.master), done.members
        if mode == "clients" and (line := shared_line(services_of(master))) is not None:
            texts |= shared_tables(self.config, self.instance, line)
        files = dict(zip(_FILES, map(_bytes, written), strict=True))
        target: dict[Path, bytes | None] = {self.tables / name: text.encode() for name, text in texts.items()}
        target |= {path: None for path in self._lists(TABLES) if path.name not in texts}
        target |= {self.folder / name: files[name] for name in reversed(_FILES)}
        earlier = set(self.state.new_tables) if self.state else set()
        state = State(
            mode=mode,
            made_folder=self.state.made_folder if self.state else not self.tables.exists(),
            new_tables=sorted(earlier | {name for name in texts if not (self.tables / name).exists()}),
            before={name: base64.b64encode(_bytes(base[name])).decode() for name in _FILES},
            after={name: digest(files[name]) for name in _FILES},
            members=members,
        )
        return target, state

    def _compare(self, target: Mapping[Path, bytes | None], outcome: Outcome) -> None:
        diff = []
        for path, data in target.items():
            present = _read(path) if path.exists() else None
            if present == data:
                continue
            outcome.changed.append(str(path))
            if is_password_table(path.name):
                continue  # nobody's terminal or log
            before, after = (_text(text or b"").splitlines(keepends=True) for text in (present, data))
            for line in difflib.unified_diff(before, after, str(path), str(path)):
                diff.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
        outcome.diff = "".join(diff)

    def _own_tables(self) -> list[Path]:
        if self.state is None:
            return []
        names = set(self.state.new_tables) | ({*maps.tables(self.config), *TABLES} if self.state.made_folder else set())
        return self._lists(names)

    def _lists(self, names: Collection[str]) -> list[Path]:
        """The tables of these names that are there, and those of passwords, which go with their peers."""
        there = sorted(self.tables.iterdir()) if self.tables.is_dir() else []
        return [path for path in there if path.name in names or is_password_table(path.name)]

    # -- questions before anything is touched

    def _answers(self) -> None:
        for path, ask in listeners(self.config):
            try:
                ask(path)
            except OSError as error:
                raise PostfixError(
                    f"{path} does not answer: {error.strerror or error}; start the gateway first (systemctl start "
                    "mm4), or wire without it and without any probe: --no-probe; nothing was touched"
                ) from None

    def _takes(self, at: tuple[str, int], mailbox: str) -> None:
        probe = self._ordinary(at, mailbox)
        if not probe.ok:
            raise PostfixError(
                f"{probe.probe}: {probe.said}, before anything was touched; name a mailbox that this Postfix takes "
                "mail for: --mailbox ADDRESS, or --no-probe"
            )

    def _nothing_waits(self) -> None:
        """What is under way in mm4's name space would bounce once Postfix knows no transport for it."""
        ours = {local.domain for local in self.config.local}
        ours |= {domain for local in self.config.local for domain in local.delivery_domains}
        waiting = [
            entry["queue_id"]
            for entry in self.instance.queue()
            if any(is_private(r["address"]) or domain_of(r["address"]) in ours for r in entry["recipients"])
        ]
        if waiting:
            raise PostfixError(
                f"{len(waiting)} messages of mm4 are in the queue ({', '.join(waiting[:3])}) and would bounce without "
                "it: mm4 queue shows them; let them go first, or --force; nothing was touched"
            )

    # -- doing

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PostfixError(f"{self.folder}: another mm4 postfix wire or unwire is at work there") from None
            yield
        finally:
            os.close(descriptor)

    def _snapshot(self, target: Mapping[Path, bytes | None]) -> dict[Path, bytes | None]:
        return {path: _read(path) if path.exists() else None for path in [self.record, *target]}

    def _write(self, target: Mapping[Path, bytes | None], state: State) -> None:
        self.tables.mkdir(mode=0o755, exist_ok=True)
        write_state(self.record, state)
        for path, data in {**self.set_aside, **target}.items():
            _put(path, data)

    def _ordinary(self, at: tuple[str, int], mailbox: str) -> Probe:
        helo = self.instance.values("myhostname")["myhostname"]
        what = f"ordinary mail for {mailbox} on {at[0]}:{at[1]}"
        if not reachable_within(*at, _UP):
            return Probe(what, False, f"nobody listens for {_UP:g} s")
        try:
            replies = converse(*at, source=None, helo=helo, mail_from=mailbox, rcpt=mailbox)
        except OSError as error:
            return Probe(what, False, str(error))
        return Probe(what, all(reply.startswith("250") for reply in replies), "; ".join(replies))

    def _probe(self, mode: Mode, outcome: Outcome, at: tuple[str, int] | None, mailbox: str) -> None:
        for listen in self.config.service.listen:
            reachable_within(listen.host if listen.host not in ("0.0.0.0", "::") else "localhost", listen.port, _UP)  # noqa: S104
        outcome.probes += link_probes(self.config, self.instance, at if mode == "clients" else None)
        if at is None:
            if mode != "all":
                outcome.notes.append("no line takes ordinary mail here: that was not probed")
            return
        before = self._ordinary(at, mailbox)
        outcome.probes.append(before)
        if before.ok:
            helo = self.instance.values("myhostname")["myhostname"]
            outcome.probes.append(deliver(self.instance, *at, helo=helo, mailbox=mailbox))

    def _back(self, snapshot: Mapping[Path, bytes | None], outcome: Outcome, *, made: bool, running: bool) -> None:
        """Every file as it was before this run, and a Postfix that has read it; `made`: the tables' folder is new."""
        for path, data in reversed(list(snapshot.items())):
            _put(path, data)
        if made:
            with contextlib.suppress(OSError):
                self.tables.rmdir()
        outcome.notes.append("every file is as it was before this run")
        if running:
            # A line whose smtpd has died of a setting stays throttled through a reload.
            try:
                outcome.applied = self.master.restart()
            except PostfixError as error:
                outcome.notes.append(f"Postfix did not start again: {error}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PostfixError(
            f"{path}: {error.strerror}; folders.postfix of the YAML has to be the configuration folder of a Postfix"
        ) from None


def _put(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        maps.replace_file(path, data, secret=is_password_table(path.name))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
