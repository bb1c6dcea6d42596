"""Opening a store: its schema, what is refused and what the error tells the operator to do."""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

import mm4
from mm4.protocol.errors import StoreError
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store import Store
from mm4.store.database import Database
from mm4.store.schema import REVISION, REVISIONS, generation, metadata

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mm4.__file__).parent.parent)}


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def test_the_migrated_schema_is_that_of_the_code(tmp_path: Path) -> None:
    Store.open(url(tmp_path / "a.db")).close()
    migrated, created = (create_engine(url(tmp_path / name)) for name in ("a.db", "b.db"))
    with migrated.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    # compare_metadata does not see the conditions of indexes, nor what a foreign key does on delete.
    metadata.create_all(created)
    for table in metadata.tables:
        one, two = ({index["name"]: index for index in inspect(e).get_indexes(table)} for e in (migrated, created))
        assert set(one) == set(two)
        assert [one[name]["column_names"] for name in one] == [two[name]["column_names"] for name in one]
        assert [bool(one[name]["dialect_options"]) for name in one] == [
            bool(two[name]["dialect_options"]) for name in one
        ]
        assert inspect(migrated).get_foreign_keys(table) == inspect(created).get_foreign_keys(table)


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


def test_alembic_is_imported_only_where_there_is_something_to_migrate(tmp_path: Path) -> None:
    code = "import sys; from mm4.store import Store\nStore.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    seen = [
        subprocess.run(
            [sys.executable, "-c", code, url(tmp_path / "a.db")],
            env=ENVIRONMENT, check=True, capture_output=True, text=True,
        ).stdout.strip()
        for _ in range(2)
    ]  # fmt: skip
    assert seen == ["True", "False"]


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    code = "import sys; from mm4.store import Store\nStore.open(sys.argv[1]).ping()"
    children = [
        subprocess.Popen([sys.executable, "-c", code, url(tmp_path / "a.db")], env=ENVIRONMENT) for _ in range(3)
    ]
    with ThreadPoolExecutor(4) as pool:
        for store in pool.map(lambda _: Store.open(url(tmp_path / "b.db")), range(4)):
            store.ping()
            store.close()
    assert [child.wait(20) for child in children] == [0, 0, 0]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store.open(url(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for migrate in (True, False):
        with pytest.raises(StoreError, match=r"a\.db: its schema 9999 is newer .* install the newer mm4"):
            Store.open(url(path), migrate=migrate)


def test_after_a_rollback_the_version_before_works_on_the_newer_schema(tmp_path: Path) -> None:
    """As a later revision of this generation would leave it: further columns that may be empty, and its own name."""
    path = tmp_path / "a.db"
    Store.open(url(path)).close()
    later = f"{generation(REVISION)}99"
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE messages ADD COLUMN of_later TEXT")
        connection.execute("ALTER TABLE transactions ADD COLUMN of_later TEXT")
        connection.execute("UPDATE alembic_version SET version_num = ?", (later,))
    for migrate in (True, False):
        with Store.open(url(path), migrate=migrate) as store:
            token = secrets.token_hex(16)
            one = Transaction("t-1", "m-1", "+447700900101", "+447700900102")
            at = datetime.now(UTC)
            store.record(Message(token, Direction.IN, "tyntec", "MM4_forward.REQ", "4Q", "mx1", at, (one,))).result(5)
            assert store.message(token) is not None
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (later,)


def test_a_store_of_the_first_schema_is_brought_up_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = create_engine(url(path))
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(
            "INSERT INTO messages (token, direction, peer, type, queue_id, host, recorded_at) VALUES "
            "('t', 'out', 'north', 'MM4_forward.REQ', '4Q', 'mx1', '2026-11-22 10:00:00.000000')"
        )
        connection.exec_driver_sql(
            "INSERT INTO transactions (token, peer, direction, type, transaction_id, message_id, originator, recipient, "
            "state, ack_requested, delivery_report, read_reply, updated_at) VALUES ('t', 'north', 'out', "
            "'MM4_forward.REQ', 't-1', 'm-1', '+447700900101', '+447700900102', 'waiting', 1, 1, 0, "
            "'2026-11-22 10:00:00.000000')"
        )
    engine.dispose()
    with pytest.raises(StoreError, match="has schema 0001, older than"):
        Store.open(url(path), migrate=False)
    with Store.open(url(path)) as store:
        (original,) = store.originals("m-1")
    assert (original.source, original.peer, original.delivery_report) == ("local", "north", True)


def test_an_interrupted_first_opening_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    with pytest.raises(StoreError, match=r"has no schema; start mm4 serve"):
        Store.open(url(tmp_path / "a.db"), migrate=False)
    with Store.open(url(tmp_path / "a.db")) as store:
        store.ping()


def test_a_read_only_store_reads_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "odd #?%20 name.db"
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(f"sqlite:///{tmp_path}/missing.db", read_only=True)
    with Store.open(url(tmp_path / "a.db")) as writing:
        with Store.open(url(tmp_path / "a.db"), read_only=True) as store:
            assert store.counts() == {}
            with pytest.raises(StoreError, match="opened read-only"):
                store.event("token", datetime.now(UTC), "x").result(0)
            with pytest.raises(StoreError, match="opened read-only"):
                store.ping()
        writing.ping()
    assert not path.exists()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("", "cannot be read: write sqlite"),
        ("/var/lib/mm4/mm4.db", "cannot be read"),
        ("sqlite://", "no absolute path"),
        ("sqlite:///mm4.db", "no absolute path"),
        ("mysql://user:secret@db.example/mm4", "unknown kind mysql"),
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


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    with pytest.raises(StoreError, match=r"other\.db: holds tables of something else \(users\)"):
        Store.open(url(path))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("users",)]


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
