"""`mm4 store status`, `migrate`, `backup` and `restore` as they are typed, and the copy by hand of a store in use."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

import mm4
import mm4.store.condition
import mm4.store.listing
from cluster import Cluster, execute
from fake import CONFIG
from mm4.cli import store as store_command
from mm4.postfix.owner import own
from mm4.protocol.transaction import Answer, Direction, Message, Transaction
from mm4.store import Store, backup
from mm4.store.database import Database
from mm4.store.schema import REVISION, generation
from recorder import Done, called

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
ANSWER = Answer("a@mms.north.example", "b@mms.gw.example", "MM4_forward.RES", "Ok", b"X-A: b\r\n\r\n")

Call = Callable[..., Done]
NewUrl = Callable[[], str]


def record(store: Store, number: int = 1, answer: Answer | None = None, at: datetime = T0) -> list[str]:
    tokens = [secrets.token_hex(16) for _ in range(number)]
    for token in tokens:
        one = Transaction(f"t-{token}", f"m-{token}", "+447700900101", "+491511000001")
        store.record(Message(token, Direction.IN, "north", "MM4_forward.REQ", "4Q", "mx1", at, (one,), answer)).result(30)
    return tokens


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`mm4 store ...` with a configuration that names this store."""
    (tmp_path / "run").mkdir()
    (tmp_path / "state").mkdir()

    def run(url: str, *arguments: object) -> Done:
        yaml = tmp_path / "mm4.yaml"
        yaml.write_text(CONFIG + f'store: "{url}"\nfolders: {{state: state, sockets: run, postfix: postfix}}\n')
        return called(monkeypatch, capsys, "store", *arguments, "--config", yaml)

    return run


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "db").mkdir()
    return f"sqlite:///{tmp_path}/db/mm4.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def only(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- status


def test_status_tells_kind_schema_rows_and_what_is_owed(store_url: str, call: Call) -> None:
    with Store.open(store_url) as store:
        record(store, 2, at=T0)
        record(store, 1, ANSWER, at=T0 + timedelta(hours=1))
        done = call(store_url, "status", "--json")
        shown = call(store_url, "status")
    assert (done.code, shown.code) == (0, 0)
    found = done.json
    assert found["kind"] == store_url.partition(":")[0]
    assert (found["revision"], found["head"], found["usable"], found["problem"]) == (REVISION, REVISION, True, None)
    assert found["rows"]["messages"] == found["rows"]["transactions"] == {"count": 3, "exact": True}
    assert found["rows"]["limits"] == {"count": 0, "exact": True}
    assert (found["oldest"], found["newest"]) == ("2026-11-22T10:00:00+00:00", "2026-11-22T11:00:00+00:00")
    assert (found["owed"], found["owed_since"], found["held"]) == (1, "2026-11-22T11:00:00+00:00", 0)
    assert found["bytes"] > 50_000
    assert "1, the oldest since 2026-11-22 11:00:00" in shown.out


def test_status_of_a_store_that_cannot_be_used_as_it_is(new_url: NewUrl, call: Call) -> None:
    url = new_url()
    if url.startswith("sqlite"):
        assert call(url, "status").code == 78
        path_of(url).touch()
    done = call(url, "status", "--json")
    assert (done.code, done.json["revision"], done.json["usable"]) == (1, None, False)
    old(url, "0003")
    done = call(url, "status", "--json")
    assert (done.code, done.json["revision"]) == (1, "0003")
    assert f"schema 0003, older than {REVISION}" in done.json["problem"]
    assert set(done.json["rows"]) == {"messages", "transactions", "events"}
    assert call(url, "migrate").code == 0
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    done = call(url, "status")
    assert done.code == 1
    assert "no: store" in done.out
    assert "newer than this mm4" in done.out


@pytest.mark.slow
def test_status_of_many_rows_on_postgresql_is_an_estimate(
    cluster: Cluster, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cluster.database()
    with Store.open(url) as store:
        record(store, 12)
    monkeypatch.setattr(mm4.store.condition, "COUNTED", 10)
    assert call(url, "status", "--json").json["rows"]["messages"] == {"count": 11, "exact": False}
    cluster.run("ANALYZE messages", database=url.partition("@/")[2].partition("?")[0])
    assert call(url, "status", "--json").json["rows"]["messages"] == {"count": 12, "exact": False}
    assert "~12 rows" in call(url, "status").out


@pytest.mark.slow
def test_no_password_is_shown(cluster: Cluster, call: Call) -> None:
    for url in (
        cluster.database().replace("mm4@/", "mm4:secret@/"),
        cluster.database() + "&password=secret",
    ):
        for arguments in (("status",), ("status", "--json"), ("migrate",), ("backup", "x"), ("restore", "x"),
                          ("copy", "--to", "sqlite:////nonexistent/folder/mm4.db")):
            done = call(url, *arguments)
            assert "secret" not in done.out + done.err
        assert done.code in (70, 78)


# -- migrate


def old(url: str, revision: str) -> None:
    """A store as an earlier version has left it."""
    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    with Database.parse(url, 5, read_only=False).engine("migrator").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_migrate_says_what_it_did_and_does_it_once(new_url: NewUrl, call: Call) -> None:
    url = new_url()
    done = call(url, "migrate")
    assert (done.code, done.out.partition(": ")[2]) == (0, f"made with schema {REVISION}\n")
    assert call(url, "migrate", "--json").json["changed"] is False
    other = new_url()
    if other.startswith("sqlite"):
        path_of(other).touch()
    old(other, "0004")
    assert call(other, "migrate", "--json").json == {
        "store": call(other, "status", "--json").json["store"], "from": "0004", "to": REVISION, "changed": True,
    }  # fmt: skip
    assert call(other, "migrate").out.endswith(f": schema {REVISION}, nothing to do\n")


def test_migrate_leaves_a_newer_store_alone(store_url: str, call: Call) -> None:
    Store.open(store_url).close()
    later = f"{generation(REVISION)}99"
    execute(store_url, "UPDATE alembic_version SET version_num = :later", later=later)
    assert call(store_url, "migrate").out.endswith(f": schema {later}, nothing to do\n")
    execute(store_url, "UPDATE alembic_version SET version_num = '9999'")
    done = call(store_url, "migrate")
    assert done.code == 78
    assert "newer than this mm4" in done.err
    assert execute(store_url, "SELECT version_num FROM alembic_version") == [("9999",)]


@pytest.mark.slow
def test_two_migrate_at_once(new_url: NewUrl, call: Call, tmp_path: Path) -> None:
    url = new_url()
    if url.startswith("sqlite"):
        path_of(url).touch()
    old(url, "0001")
    call(url, "status")  # writes the YAML
    environment = {**os.environ, "PYTHONPATH": str(Path(mm4.__file__).parent.parent)}
    command_ = [sys.executable, "-m", "mm4", "store", "migrate", "--json", "--config", str(tmp_path / "mm4.yaml")]
    children = [subprocess.Popen(command_, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(child.communicate(timeout=60)[0].partition('"from": ')[2][:6] for child in children)
    assert [child.returncode for child in children] == [0, 0, 0]
    assert said == ['"0001"', f'"{REVISION}"', f'"{REVISION}"']


# -- backup


def test_a_backup_is_a_store_of_one_moment_though_others_write(
    url: str, store: Store, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_PAGES", 1)
    seen: list[int] = []
    monkeypatch.setattr(store_command, "_bar", lambda: contextlib.nullcontext(lambda _, done, __: seen.append(done)))
    before = set(record(store, 50))
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            written.extend(record(store))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            done = call(url, "backup", tmp_path / f"b{number}.db", "--json")
            assert done.code == 0, done.err
            assert done.json["revision"] == REVISION
    finally:
        stop.set()
        thread.join()
    # Each went through once, in steps, and none began anew because of a write.
    assert sum(later < earlier for earlier, later in itertools.pairwise(seen)) == 2
    for number in range(3):
        file = tmp_path / f"b{number}.db"
        assert file.stat().st_mode & 0o7777 == 0o600
        with Store.open(f"sqlite:///{file}", migrate=False, read_only=True) as copy:
            found = {row["token"] for row in copy.listed(mm4.store.listing.Wanted())}
        assert before <= found
        # In order: what is there has all before it.
        assert found - before == set(written[: len(found - before)])
    assert [name for name in only(tmp_path) if name.startswith((".", "b"))] == ["b0.db", "b1.db", "b2.db"]


def test_a_backup_never_overwrites_and_leaves_nothing_behind_when_it_fails(
    url: str, store: Store, call: Call, tmp_path: Path
) -> None:
    record(store)
    file = tmp_path / "backup"
    file.write_text("mine")
    done = call(url, "backup", file)
    assert done.code == 2
    assert "is there already; name a new file" in done.err
    assert file.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert call(url, "backup", link).code == 2
    assert call(url, "backup", tmp_path / "no" / "folder").code == 2
    assert only(tmp_path) == ["backup", "db", "link", "mm4.yaml", "run", "state"]


def test_a_damaged_store_is_not_called_a_good_backup(url: str, call: Call, tmp_path: Path) -> None:
    with Store.open(url) as store:
        record(store, 200)
    with path_of(url).open("r+b") as file:
        file.seek(8 * 4096)
        file.write(secrets.token_bytes(3 * 4096))
    done = call(url, "backup", tmp_path / "backup")
    assert done.code in (1, 70)
    assert "damaged" in done.err
    assert only(tmp_path) == ["db", "mm4.yaml", "run", "state"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_backup_belongs_to_the_owner_of_the_store(url: str, store: Store, call: Call, tmp_path: Path) -> None:
    store.ping()
    os.chown(path_of(url), 65534, 65534)
    assert call(url, "backup", tmp_path / "backup").code == 0
    assert (tmp_path / "backup").stat().st_uid == 65534


@pytest.mark.slow
def test_postgresql_is_copied_by_its_own_programs(cluster: Cluster, call: Call) -> None:
    url = cluster.database()
    done = call(url, "backup", "a file")
    assert done.code == 78
    shown = url.replace("/mm4_", "/mm4_")
    assert f"pg_dump --format=custom --file='a file' --dbname='{shown}'" in done.err.replace("%2F", "/")
    assert "mm4.yaml:" in done.err
    assert "pg_restore --clean --if-exists --dbname=" in call(url, "restore", "a file").err


# -- restore


def test_a_restored_backup_replaces_the_store_which_is_kept(url: str, call: Call, tmp_path: Path) -> None:
    path, file = path_of(url), tmp_path / "backup"
    with Store.open(url) as store:
        first = record(store)
        assert call(url, "backup", file).code == 0
        second = record(store)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    owner = path.stat()
    done = call(url, "restore", file, "--json")
    assert done.code == 0, done.err
    assert done.json["taken_at"] == T0.isoformat()
    kept = Path(done.json["kept"])
    assert kept.name.startswith("mm4.db.replaced-20")
    assert only(path.parent) == ["mm4.db", kept.name]
    now = path.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (owner.st_mode, owner.st_uid, owner.st_gid)
    for place, tokens in ((path, first), (kept, first + second)):
        with Store.open(f"sqlite:///{place}", migrate=False) as store:
            assert {token for token in first + second if store.message(token)} == set(tokens)
    with Store.open(url) as store:
        (noted,) = store.notes(datetime.now(UTC) - timedelta(minutes=5))
    assert noted["what"] == "store restored"
    assert f"from {file}, whose last event is of 2026-11-22 10:00:00 UTC" in noted["detail"]
    assert file.exists()


def test_no_store_is_replaced_that_somebody_uses(url: str, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    with Store.open(url) as store:
        record(store)
        assert call(url, "backup", file).code == 0
    lock = own(tmp_path / "run", "")
    try:
        done = call(url, "restore", file)
        assert done.code == 1
        assert "mm4 serves with" in done.err
        assert "systemctl stop mm4" in done.err
    finally:
        os.close(lock)
    # A child of a supervisor that was killed, or a command.
    with closing(sqlite3.connect(path_of(url))) as other:
        other.execute("SELECT count(*) FROM messages").fetchone()
        done = call(url, "restore", file)
        assert done.code == 1
        assert "nothing was changed" in done.err
    assert [name for name in only(tmp_path / "db") if "replaced" in name or name.startswith(".")] == []
    assert call(url, "restore", file).code == 0


def test_what_is_no_good_backup_is_refused_and_changes_nothing(url: str, call: Call, tmp_path: Path) -> None:
    with Store.open(url) as store:
        (token,) = record(store)
    (tmp_path / "text").write_text("not a database\n" * 1000)
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE users (name TEXT)")
    (tmp_path / "empty").touch()
    assert call(url, "backup", tmp_path / "newer").code == 0
    execute(f"sqlite:///{tmp_path}/newer", "UPDATE alembic_version SET version_num = '9999'")
    assert call(url, "backup", tmp_path / "torn").code == 0
    with (tmp_path / "torn").open("r+b") as file:
        file.seek(8 * 4096)
        file.write(secrets.token_bytes(3 * 4096))
    for name, said in {
        "text": "no SQLite database", "other": "is no store of mm4", "empty": "is no store of mm4",
        "newer": "newer than this mm4", "torn": "damaged", "missing": "there is no such file",
    }.items():  # fmt: skip
        done = call(url, "restore", tmp_path / name)
        assert done.code in (1, 70, 78), name
        assert said in done.err, name
    assert call(url, "restore", path_of(url)).code == 1
    assert {name for name in only(tmp_path / "db") if not name.endswith(("-wal", "-shm"))} == {"mm4.db"}
    with Store.open(url) as store:
        assert store.message(token)
        assert store.notes(T0) == []


def test_a_backup_of_an_earlier_version_is_restored_and_brought_up_to_date(url: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    old(f"sqlite:///{tmp_path}/old", "0001")
    Store.open(url).close()
    done = call(url, "restore", tmp_path / "old", "--json")
    assert (done.code, done.json["revision"]) == (0, "0001")
    with Store.open(url) as store:
        assert len(store.notes(T0)) == 1


def test_a_damaged_store_is_replaced_and_kept_with_its_log(url: str, call: Call, tmp_path: Path) -> None:
    with Store.open(url) as store:
        record(store)
        assert call(url, "backup", tmp_path / "backup").code == 0
    path_of(url).write_bytes(secrets.token_bytes(50_000))
    Path(f"{path_of(url)}-wal").write_bytes(b"what is left")
    done = call(url, "restore", tmp_path / "backup", "--json")
    assert done.code == 0, done.err
    kept = Path(done.json["kept"]).name
    assert set(only(tmp_path / "db")) - {f"{kept}-shm"} == {"mm4.db", kept, f"{kept}-wal"}
    with Store.open(url, migrate=False) as store:
        store.ping()


def test_without_a_store_a_backup_makes_one(url: str, call: Call, tmp_path: Path) -> None:
    with Store.open(url) as store:
        record(store)
        assert call(url, "backup", tmp_path / "backup").code == 0
    for file in (tmp_path / "db").iterdir():
        file.unlink()
    assert call(url, "restore", tmp_path / "backup", "--json").json["kept"] is None
    assert only(tmp_path / "db") == ["mm4.db"]


def test_no_sequence_number_of_a_charging_record_comes_again_after_a_restore(url: str, call: Call, tmp_path: Path) -> None:
    with Store.open(url, charging=True) as store:
        store.accepted(record(store)[0], T0).result(30)
        assert call(url, "backup", tmp_path / "backup").code == 0
        for token in record(store, 3):
            store.accepted(token, T0).result(30)
    assert execute(url, "SELECT max(id) FROM charges") == [(4,)]
    assert call(url, "restore", tmp_path / "backup").code == 0
    with Store.open(url, charging=True) as store:
        store.accepted(record(store)[0], T0).result(30)
    assert execute(url, "SELECT id FROM charges ORDER BY id") == [(1,), (5,)]
