"""Opening a store: its schema, what is refused and what the error tells the operator to do."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, create_engine, inspect

import mm4
from cluster import Cluster, execute
from mm4.protocol.errors import StoreError
from mm4.protocol.transaction import Answer, Direction, Message, Transaction
from mm4.store import Store
from mm4.store.database import Database
from mm4.store.schema import REVISION, REVISIONS, generation, metadata

NewUrl = Callable[[], str]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mm4.__file__).parent.parent)}


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def engine(place: str) -> Engine:
    return Database.parse(place, 5, read_only=False).engine("migrator")


def migrate(place: str, revision: str) -> None:
    """Make the store, or bring it on, revision by revision."""
    if place.startswith("sqlite"):
        Path(place.removeprefix("sqlite:///")).touch()
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    with engine(place).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def whole_schema(place: str) -> dict[str, Any]:
    """All that a database says of its tables; the order of their columns may be another."""
    seen = inspect(engine(place))
    found: dict[str, Any] = {
        table: {
            "columns": sorted(
                (c["name"], repr(c["type"]), c["nullable"], c["default"], c.get("autoincrement"))
                for c in seen.get_columns(table)
            ),
            "primary key": seen.get_pk_constraint(table),
            "foreign keys": seen.get_foreign_keys(table),
            "indexes": {
                i["name"]: i | {"dialect_options": {k: str(v) for k, v in i.get("dialect_options", {}).items()}}
                for i in seen.get_indexes(table)
            },
            "other": [seen.get_unique_constraints(table), seen.get_check_constraints(table)],
        }
        for table in seen.get_table_names()
    }
    if place.startswith("sqlite"):
        with engine(place).connect() as connection:
            told = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
        found["counts on"] = {name for name, sql in told if "AUTOINCREMENT" in (sql or "")}
    return found


def test_a_new_store_is_what_the_migrations_make(new_url: NewUrl) -> None:
    migrated, opened = new_url(), new_url()
    migrate(migrated, "head")
    Store.open(opened).close()
    for place in (migrated, opened):
        with engine(place).connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert execute(place, "SELECT version_num FROM alembic_version") == [(REVISION,)]
    made, known = whole_schema(migrated), whole_schema(opened)
    for table in made:
        assert known[table] == made[table]
    assert set(known) == set(made) >= {*metadata.tables, "alembic_version"}


def test_the_code_knows_every_revision() -> None:
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [REVISION]
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS


def test_pragmas_and_mode_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(url(path)) as store:
        store.ping()
        with store._database.engine("writer").connect() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        assert path.stat().st_mode & 0o007 == 0
        with store._readers.connect() as connection, pytest.raises(Exception, match="readonly"):
            connection.exec_driver_sql("DELETE FROM messages")


@pytest.mark.slow
def test_alembic_is_imported_only_where_there_is_an_older_schema(new_url: NewUrl) -> None:
    new, old = new_url(), new_url()
    migrate(old, REVISIONS[0])
    code = "import sys; from mm4.store import Store\nStore.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    seen = [
        subprocess.run(
            [sys.executable, "-c", code, place],
            env=ENVIRONMENT, check=True, capture_output=True, text=True,
        ).stdout.strip()
        for place in (new, new, old, old)
    ]  # fmt: skip
    assert seen == ["False", "False", "True", "False"]


def test_many_open_a_new_store_at_once(new_url: NewUrl) -> None:
    one, other = new_url(), new_url()
    code = "import sys; from mm4.store import Store\nStore.open(sys.argv[1]).ping()"
    children = [
        subprocess.Popen([sys.executable, "-c", code, one], env=ENVIRONMENT) for _ in range(3)
    ]
    with ThreadPoolExecutor(4) as pool:
        for store in pool.map(lambda _: Store.open(other), range(4)):
            store.ping()
            store.close()
    assert [child.wait(60) for child in children] == [0, 0, 0]


def test_a_newer_schema_is_refused(store_url: str) -> None:
    Store.open(store_url).close()
    execute(store_url, "UPDATE alembic_version SET version_num = '9999'")
    for migrate in (True, False):
        with pytest.raises(StoreError, match=r"mm4\S+: its schema 9999 is newer .* install the newer mm4"):
            Store.open(store_url, migrate=migrate)


def test_after_a_rollback_the_version_before_works_on_the_newer_schema(store_url: str) -> None:
    """As a later revision of this generation would leave it: further columns that may be empty, and its own name."""
    Store.open(store_url).close()
    later = f"{generation(REVISION)}99"
    execute(store_url, "ALTER TABLE messages ADD COLUMN of_later TEXT")
    execute(store_url, "ALTER TABLE transactions ADD COLUMN of_later TEXT")
    execute(store_url, "UPDATE alembic_version SET version_num = :later", later=later)
    for migrate in (True, False):
        with Store.open(store_url, migrate=migrate) as store:
            token = secrets.token_hex(16)
            one = Transaction("t-1", "m-1", "+447700900101", "+447700900102")
            at = datetime.now(UTC)
            store.record(Message(token, Direction.IN, "tyntec", "MM4_forward.REQ", "4Q", "mx1", at, (one,))).result(30)
            assert store.message(token) is not None
    assert execute(store_url, "SELECT version_num FROM alembic_version") == [(later,)]


@pytest.mark.parametrize("before", [r for r in REVISIONS[:-1] if generation(r) == generation(REVISION)])
def test_what_a_version_before_reads_and_writes_it_can_read_and_write_after_the_migration(new_url: NewUrl, before: str) -> None:
    """Each revision's own columns, as its code names them, on the schema of today with rows of today in it."""
    place, other = new_url(), new_url()
    if place.startswith("sqlite"):
        Path(other.removeprefix("sqlite:///")).touch()
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    theirs = MetaData()
    with engine(other).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
        theirs.reflect(connection)
    at = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
    stamp = at.replace(tzinfo=None) if place.startswith("sqlite") else at
    token, old_token = secrets.token_hex(16), secrets.token_hex(16)
    one = Transaction("t-1", "m-1", "+447700900101", "+491511000001", ack_requested=True, due_at=at)
    answer = Answer("a@mms.north.example", "b@mms.gw.example", "MM4_forward.RES", "Ok", b"x")
    with Store.open(place, charging=True) as store:
        store.record(Message(token, Direction.OUT, "north", "MM4_forward.REQ", "4Q", "mx1", at, (one,), answer)).result(30)
        store.accepted(token, at).result(30)
        store.event(token, at, "something").result(30)
    with engine(place).begin() as connection:
        for table in theirs.tables.values():
            connection.execute(table.select()).all()
        for name, values in {
            "messages": {"token": old_token, "direction": "in", "peer": "north", "type": "MM4_forward.REQ", "queue_id": "4R",
                         "host": "mx1", "recorded_at": stamp},
            "transactions": {"token": old_token, "peer": "north", "direction": "in", "type": "MM4_forward.REQ",
                             "transaction_id": "t-2", "message_id": "m-2", "originator": "+447700900101",
                             "recipient": "+491511000001", "state": "recorded", "ack_requested": True, "delivery_report": False,
                             "read_reply": False, "updated_at": stamp},
            "events": {"token": old_token, "at": stamp, "what": "something"},
            "charges": {"token": old_token, "type": "MMR1F", "at": stamp, "requested_at": stamp, "peer": "north",
                        "originator": "+447700900101", "recipient": "+491511000001", "message_id": "m-2", "transaction_id": "t-2",
                        "ack_requested": True, "delivery_report": False, "read_reply": False, "queue_id": "4R", "host": "mx1"},
        }.items():  # fmt: skip
            if name in theirs.tables:
                connection.execute(theirs.tables[name].insert(), values)
        messages = theirs.tables["messages"]
        known = messages.c.token == token
        assert connection.execute(messages.update().where(known).values(answered_at=stamp)).rowcount == 1
    with Store.open(place) as store:
        for name in (token, old_token):
            assert store.message(name) is not None
        assert store.accepted(old_token, at).result(30)
        assert store.answered(old_token, at, "4S").result(30)


def test_within_a_generation_only_what_may_be_empty_is_added(new_url: NewUrl) -> None:
    """What the version before does not know, it leaves out: that must hurt nobody."""
    place = new_url()
    if place.startswith("sqlite"):
        Path(place.removeprefix("sqlite:///")).touch()
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    known: MetaData | None = None
    for before, revision in zip((None, *REVISIONS), REVISIONS, strict=False):
        found = MetaData()
        with engine(place).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            found.reflect(connection)
        if known is not None and before is not None and generation(before) == generation(revision):
            for name, table in known.tables.items():
                now = found.tables[name]
                for column in table.columns:
                    assert (repr(now.c[column.name].type), now.c[column.name].nullable) == (repr(column.type), column.nullable)
                added = [column for column in now.columns if column.name not in table.c]
                assert [c.name for c in added if not c.nullable and c.server_default is None] == [], revision
                unique = {index.name for index in now.indexes if index.unique}
                assert unique == {index.name for index in table.indexes if index.unique}, revision
        known = found


def test_a_store_of_the_first_schema_is_brought_up_with_what_it_holds(new_url: NewUrl) -> None:
    place = new_url()
    if place.startswith("sqlite"):
        Path(place.removeprefix("sqlite:///")).touch()
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    with engine(place).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(
            "INSERT INTO messages (token, direction, peer, type, queue_id, host, recorded_at) VALUES "
            "('t', 'out', 'north', 'MM4_forward.REQ', '4Q', 'mx1', '2026-11-22 10:00:00.000000')"
        )
        connection.exec_driver_sql(
            "INSERT INTO transactions (token, peer, direction, type, transaction_id, message_id, originator, recipient, "
            "state, ack_requested, delivery_report, read_reply, updated_at) VALUES ('t', 'north', 'out', "
            "'MM4_forward.REQ', 't-1', 'm-1', '+447700900101', '+447700900102', 'waiting', true, true, false, "
            "'2026-11-22 10:00:00.000000')"
        )
    with pytest.raises(StoreError, match="has schema 0001, older than"):
        Store.open(place, migrate=False)
    with Store.open(place) as store:
        (original,) = store.originals("m-1")
    assert (original.source, original.peer, original.delivery_report) == ("local", "north", True)


def test_an_interrupted_first_opening_is_taken_up(new_url: NewUrl) -> None:
    place = new_url()
    if place.startswith("sqlite"):
        Path(place.removeprefix("sqlite:///")).touch()
    with pytest.raises(StoreError, match=r"has no schema; start mm4 serve"):
        Store.open(place, migrate=False)
    with Store.open(place) as store:
        store.ping()


def test_a_read_only_store_reads_and_writes_nothing(store_url: str) -> None:
    with Store.open(store_url) as writing:
        with Store.open(store_url, read_only=True) as store:
            assert store.counts() == {}
            with pytest.raises(StoreError, match="opened read-only"):
                store.event("token", datetime.now(UTC), "x").result(0)
            with pytest.raises(StoreError, match="opened read-only"):
                store.ping()
            with store._readers.connect() as connection, pytest.raises(Exception, match=r"readonly|read-only"):
                connection.exec_driver_sql("DELETE FROM messages")
        writing.ping()


def test_a_read_only_store_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "odd #?%20 name.db"
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(f"sqlite:///{tmp_path}/missing.db", read_only=True)
    assert not path.exists()
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("", "cannot be read: write sqlite"),
        ("/var/lib/mm4/mm4.db", "cannot be read"),
        ("sqlite://", "no absolute path"),
        ("sqlite:///mm4.db", "no absolute path"),
        ("mysql://user:secret@db.example/mm4", "unknown kind mysql"),
        ("postgresql://mm4:secret@db.example/mm4?prepare_threshold=5", "prepare_threshold can only be none; leave it out"),
        ("sqlite:////nonexistent/folder/mm4.db", "folder /nonexistent/folder does not exist; create it"),
        ("sqlite:////proc/mm4.db", "not writable for user id|check the folder /proc"),
        ("sqlite:////etc", "is a folder"),
    ],
)
def test_a_wrong_place_is_named_with_its_cure(wrong: str, text: str) -> None:
    with pytest.raises(StoreError, match=text) as caught:
        Store.open(wrong)
    assert "secret" not in str(caught.value)
    assert caught.value.temporary


def test_postgresql_needs_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match="needs psycopg") as caught:
        Store.open("postgresql://mm4:secret@db.example/mm4")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database at all\n" * 100)
    with pytest.raises(StoreError, match=r"notes\.txt: is no SQLite database"):
        Store.open(url(path))
    assert path.read_bytes() == b"not a database at all\n" * 100


def test_a_database_of_something_else_is_left_alone(new_url: NewUrl) -> None:
    place = new_url()
    if place.startswith("sqlite"):
        Path(place.removeprefix("sqlite:///")).touch()
    execute(place, "CREATE TABLE users (name TEXT)")
    with pytest.raises(StoreError, match=r"holds tables of something else \(users\)"):
        Store.open(place)
    assert inspect(engine(place)).get_table_names() == ["users"]


def test_a_folder_or_file_without_permission_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    Store.open(url(folder / "a.db")).close()
    (folder / "a.db").chmod(0o444)
    folder.chmod(0o555)
    for part in (tmp_path, *tmp_path.parents[:3]):  # as many as there are of the test run alone
        part.chmod(part.stat().st_mode | 0o055)
    root = os.geteuid() == 0  # who may write everywhere: for this test somebody else
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(StoreError, match=r"closed is not writable for user id \d+; give it to that user"):
            Store.open(url(folder / "a.db"))
        with pytest.raises(StoreError, match="not writable"):
            Store.open(url(folder / "b.db"))
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_store_that_root_creates_belongs_to_the_owner_of_its_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with Store.open(url(tmp_path / "a.db")) as store:
        store.ping()
        assert {file.stat().st_uid for file in tmp_path.iterdir()} == {65534}


def test_a_password_is_never_shown() -> None:
    database = Database(
        create_engine("sqlite://").url.set(drivername="postgresql", username="mm4", password="secret"),
        None,
        5,
        False,
    )
    assert "secret" not in str(database)


# -- PostgreSQL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("postgresql://mm4@/nothing?host={folder}", r"no connection to PostgreSQL .*database .nothing. does not exist"),
        ("postgresql://nobody-of-ours@/postgres?host={folder}", r"role .nobody-of-ours. does not exist"),
        ("postgresql://mm4@/mm4?host={folder}/missing", r"no connection to PostgreSQL .*; start it, or mend store:"),
        ("postgresql://mm4:secret@127.0.0.1:1/mm4", r"no connection to PostgreSQL .*refused"),
    ],
)
def test_what_is_wrong_with_postgresql_is_named_with_its_cure(cluster: Cluster, wrong: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        Store.open(wrong.format(folder=cluster.folder))
    assert "secret" not in str(caught.value)
    assert caught.value.temporary


@pytest.mark.slow
def test_a_role_without_rights_is_told_so_and_is_not_taken_for_a_new_store(cluster: Cluster) -> None:
    place = cluster.database()
    if not cluster.run("SELECT 1 FROM pg_roles WHERE rolname = 'guest'"):
        cluster.run("CREATE ROLE guest LOGIN")
    with pytest.raises(StoreError, match="the role lacks a right; make it the owner"):
        Store.open(place.replace("mm4@", "guest@"))
    with pytest.raises(StoreError, match="the role lacks a right"):
        Store.open(cluster.database(empty=True).replace("mm4@", "guest@"))


@pytest.mark.slow
def test_what_a_database_is_set_to_otherwise_changes_nothing(cluster: Cluster) -> None:
    place = cluster.database()
    name = place.partition("@/")[2].partition("?")[0]
    cluster.run(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    cluster.run(f"ALTER DATABASE {name} SET timezone = 'Pacific/Auckland'")
    with Store.open(place) as store:
        store.ping()
        with store._readers.connect() as connection:
            settings = [connection.exec_driver_sql(f"SHOW {n}").scalar() for n in ("transaction_isolation", "timezone")]
    assert settings == ["read committed", "UTC"]
