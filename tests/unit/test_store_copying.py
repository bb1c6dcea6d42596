"""`mm4 store copy`: from one kind of database to the other, beside a store in use, interrupted, and to its end."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cluster import Cluster, execute
from fake import CONFIG
from mm4.postfix.owner import own
from mm4.protocol.errors import NoStoreError
from mm4.protocol.limits import Quota
from mm4.protocol.transaction import Answer, Direction, Message, Transaction
from mm4.store import Store, copying
from mm4.store.schema import REVISION, metadata
from recorder import Done, called

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 22, 10, 0, 0, 123456, UTC)
ANSWER = Answer("a@mms.north.example", "b@mms.gw.example", "MM4_forward.RES", "Ok", bytes(range(256)))

Call = Callable[..., Done]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`mm4 store copy ...` from this store."""
    for name in ("run", "state"):
        (tmp_path / name).mkdir()

    def run(source: str, target: str, *arguments: object) -> Done:
        yaml = tmp_path / "mm4.yaml"
        yaml.write_text(CONFIG + f'store: "{source}"\nfolders: {{state: state, sockets: run, postfix: postfix}}\n')
        return called(monkeypatch, capsys, "store", "copy", "--to", target, *arguments, "--config", yaml)

    return run


@pytest.fixture(params=["to-postgresql", "to-sqlite"])
def places(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Source and target; the target is not there yet."""
    sqlite, postgresql = f"sqlite:///{tmp_path}/mm4.db", cluster.database(empty=True)
    yield (sqlite, postgresql) if request.param == "to-postgresql" else (postgresql, sqlite)
    cluster.drop(postgresql)


class Life:
    """Messages with all that may hang on them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.count = 0
        self.tokens: list[str] = []

    def record(self, number: int = 1, direction: Direction = Direction.IN) -> list[str]:
        made = []
        for _ in range(number):
            self.count += 1
            token = f"{self.count * 7919 % 65521:032x}"
            one = Transaction(f"t-{token}", f"m-{token}", "+447700900101", "+491511000001", due_at=NOW)
            other = replace(one, recipient="kürzel \N{GRINNING FACE}", due_at=None)
            at = NOW + timedelta(seconds=self.count)
            message = Message(token, direction, "north", "MM4_forward.REQ", "4Q", "mx1", at, (one, other), ANSWER)
            self.store.record(message).result(30)
            made.append(token)
        self.tokens += made
        return made

    def go_on(self, token: str) -> None:
        self.store.accepted(token, NOW).result(30)
        self.store.answered(token, NOW, "4R").result(30)
        self.store.event(token, NOW, "something", None, "detail").result(30)


def rows(url: str) -> dict[str, list[Any]]:
    """All that a store holds; what its own notes say is left out."""
    from mm4.store.database import Database

    with Database.parse(url, 5, read_only=False).engine("migrator").connect() as connection:
        found = {
            table.name: sorted(map(tuple, connection.execute(table.select())), key=repr)
            for table in metadata.sorted_tables
        }
    found["events"] = [row for row in found["events"] if row[2] != "store"]
    return found


def test_a_copy_begun_while_serving_is_ended_when_it_does_not(places: tuple[str, str], call: Call) -> None:
    source, target = places
    with Store.open(source, charging=True) as store:
        life = Life(store)
        first = life.record(30)
        for token in first[:10]:
            life.go_on(token)
        store.take([Quota("rate.day north", "rate.day", 5, NOW + timedelta(days=1))], NOW).result(30)
        done = call(source, target, "--json")
        assert done.code == 0, done.err
        assert (done.json["finished"], done.json["verified"]) == (False, None)
        assert {t["table"]: t["written"] for t in done.json["tables"]}["transactions"] == 60
        with pytest.raises(NoStoreError, match="is a copy that is not finished"):
            Store.open(target)
        # What happens meanwhile: new ones, changed ones, one that is forgotten.
        life.record(5)
        for token in first[10:20]:
            life.go_on(token)
        assert store.forget(first[25], force=True).result(30) is None
        assert call(source, target).code == 0
        life.record(2)
        assert store.forget(life.tokens[-1], force=True).result(30) is None
    before = rows(source)
    done = call(source, target, "--finish", "--json")
    assert done.code == 0, done.err
    assert done.json["verified"] is True
    tables = {table["table"]: table for table in done.json["tables"]}
    assert (tables["messages"]["rows"], tables["messages"]["written"], tables["messages"]["removed"]) == (35, 1, 1)
    assert all(table["same"] for table in tables.values())
    assert rows(target) == before == rows(source)
    with Store.open(target, charging=True) as store:
        known = store.message(first[0])
        assert known is not None
        assert known.answer == ANSWER
        life = Life(store)
        life.count = 500
        life.go_on(life.record()[0])  # row ids go on
    with Store.open(source) as store:
        (noted,) = store.notes(NOW)
    assert noted["what"] == "store copied"
    done = call(source, target, "--finish")
    assert done.code == 1
    assert "is no copy that this command began" in done.err


def test_row_ids_go_on_where_the_last_rows_are_gone(places: tuple[str, str], call: Call) -> None:
    source, target = places
    with Store.open(source, charging=True) as store:
        life = Life(store)
        for token in life.record(3):
            life.go_on(token)
    used = execute(source, "SELECT max(id) FROM charges")[0][0]
    execute(source, "DELETE FROM charges WHERE id > 1")
    assert call(source, target, "--finish").code == 0
    with Store.open(target, charging=True) as store:
        life = Life(store)
        life.count = 500
        life.go_on(life.record()[0])
    assert execute(target, "SELECT min(id) FROM charges WHERE id > 1")[0][0] > used


def test_a_copy_that_is_broken_off_goes_on(places: tuple[str, str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = places
    with Store.open(source) as store:
        life = Life(store)
        life.record(40)
    monkeypatch.setattr(copying, "_BATCH", 10)
    write, calls = copying._Pass._write, []

    def broken(self: copying._Pass, *arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(copying._Pass, "_write", broken)
    done = call(source, target, "--finish")
    assert (done.code, done.err) == (1, "\nmm4: interrupted\n")
    assert execute(target, "SELECT count(*) FROM transactions") == [(10,)]
    with pytest.raises(NoStoreError, match="is a copy that is not finished"):
        Store.open(target)
    done = call(source, target, "--finish", "--json")
    assert {t["table"]: t["written"] for t in done.json["tables"]}["transactions"] == 70
    assert rows(target) == rows(source)


def test_a_first_pass_beside_traffic_needs_no_quiet(places: tuple[str, str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are small, and a store that never stands still: what has no parent yet is left for the next pass."""
    source, target = places
    monkeypatch.setattr(copying, "_BATCH", 7)
    with Store.open(source) as store:
        life = Life(store)
        life.record(30)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                life.go_on(life.record()[0])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            codes = [call(source, target).code for _ in range(2)]
        finally:
            stop.set()
            thread.join()
    assert codes == [0, 0]
    assert len(life.tokens) > 35
    assert call(source, target, "--finish", "--json").json["verified"] is True
    assert rows(target) == rows(source)


def test_a_difference_is_seen_and_the_copy_stays_shut(places: tuple[str, str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = places
    with Store.open(source) as store:
        Life(store).record(3)
    monkeypatch.setattr(copying._Pass, "_remove", lambda *_: 0)
    assert call(source, target).code == 0
    execute(target, "INSERT INTO messages (token, direction, peer, type, queue_id, host, recorded_at) "
            "VALUES ('f', 'in', 'north', 'x', '4Q', 'mx1', '2026-11-22 10:00:00')")  # fmt: skip
    done = call(source, target, "--finish", "--json")
    assert done.code == 1
    assert (done.json["finished"], done.json["verified"]) == (False, False)
    assert [t["table"] for t in done.json["tables"] if not t["same"]] == ["messages"]
    with pytest.raises(NoStoreError, match="is a copy that is not finished"):
        Store.open(target)


def test_a_target_that_holds_anything_else_is_left_alone(places: tuple[str, str], call: Call) -> None:
    source, target = places
    with Store.open(source) as store:
        Life(store).record()
    with Store.open(target) as store:
        Life(store).record(2)
    held = rows(target)
    for more in ((), ("--finish",)):
        done = call(source, target, *more)
        assert done.code == 1
        assert "has rows in messages and is no copy that this command began; give an empty database" in done.err
    assert rows(target) == held


def test_an_empty_store_that_a_daemon_made_is_a_target(places: tuple[str, str], call: Call) -> None:
    source, target = places
    for place in places:
        Store.open(place).close()
    with Store.open(source) as store:
        Life(store).record()
    assert call(source, target, "--finish").code == 0


def test_the_last_pass_needs_a_stopped_gateway(places: tuple[str, str], call: Call, tmp_path: Path) -> None:
    source, target = places
    Store.open(source).close()
    lock = own(tmp_path / "run", "")
    try:
        done = call(source, target, "--finish")
        assert done.code == 1
        assert "systemctl stop mm4" in done.err
        assert call(source, target).code == 0
    finally:
        os.close(lock)
    if source.startswith("postgresql"):  # another host, whose lock nobody here sees
        with Store.open(source) as other:
            other.ping()
            done = call(source, target, "--finish")
            assert done.code == 1
            assert "others are connected; stop mm4 on every host" in done.err
    assert call(source, target, "--finish").code == 0


def test_what_cannot_be_copied_is_named(places: tuple[str, str], call: Call, tmp_path: Path) -> None:
    source, target = places
    assert call(source, "mysql://a:secret@b/c").code == 2
    Store.open(source).close()
    same = f"sqlite:///{tmp_path}/other.db" if source.startswith("sqlite") else source + "x"
    assert "is of the same kind" in call(source, same).err
    execute(source, "UPDATE alembic_version SET version_num = '0009'")
    assert "mm4 store migrate first" in call(source, target).err
    execute(source, "UPDATE alembic_version SET version_num = '0099'")
    assert "is of a newer mm4; copy with that one" in call(source, target).err
    execute(source, "UPDATE alembic_version SET version_num = :r", r=REVISION)
    assert call(source, target).code == 0
    execute(target, "UPDATE alembic_version SET version_num = 'copying 0001'")
    assert "another version of mm4 began this copy" in call(source, target).err


def test_one_copy_at_a_time_writes_a_postgresql(cluster: Cluster, call: Call, tmp_path: Path) -> None:
    from mm4.store.database import Database

    source, target = f"sqlite:///{tmp_path}/mm4.db", cluster.database(empty=True)
    Store.open(source).close()
    with copying._writing(Database.parse(target, 5, read_only=False)):
        done = call(source, target)
    assert done.code == 1
    assert "another mm4 store copy writes it just now" in done.err
    assert json.loads(call(source, target, "--json").out)["finished"] is False


def test_the_last_look_at_a_large_postgresql_may_take_any_time(cluster: Cluster) -> None:
    from mm4.store.database import Database

    source = cluster.database()
    # A writer waits for twice as long as for the lock, and a little.
    with copying._still(Database.parse(source, 0.5, read_only=False)) as still:
        assert still.execute(text("SELECT 1 FROM pg_sleep(2.5)")).scalar() == 1
    cluster.drop(source)
