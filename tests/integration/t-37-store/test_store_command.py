"""`mm4 store` beside a gateway in traffic: saved and put back, and moved to PostgreSQL; no message is lost by either."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster import Cluster, execute
from harness import Link, Mta, forward_req, mm4, new_ids, wait_for

pytestmark = pytest.mark.postfix


@pytest.fixture
def link() -> Iterator[Link]:
    with Link((Path(__file__).parent / "mm4.yaml").read_text(), hops=("mmsc", "north")) as made:
        yield made


def _messages(count: int) -> dict[str, bytes]:
    pairs = [new_ids() for _ in range(count)]
    return {ids[0]: forward_req(ids=ids) for ids in pairs}


def _traffic(link: Link, messages: dict[str, bytes]) -> Mta:
    return Mta(link.gateway.smtp, messages, gap=0.25)


def _store(link: Link, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return mm4("store", *map(str, arguments), "--config", link.gateway.config, "--json", check=check)


def _checked(link: Link) -> str:
    return mm4("check", "--config", link.gateway.config, check=False).stdout


def _counted(link: Link, names: Any) -> tuple[dict[str, int], dict[str, int]]:
    """How many mails of each message came to the MMSC, and of its RES to the peer.

    A stop also cuts Postfix's own client short, and what that has sent but not noted it sends again: that is one mail.
    """
    delivered, answers = ({n: {mail.submission for mail in at.get(n, ())} for n in names}
                          for at in (link.mmsc.by_transaction(), link.north.by_transaction()))  # fmt: skip
    return {n: len(delivered[n]) for n in names}, {n: len(answers[n]) for n in names}


def test_a_backup_of_a_gateway_in_traffic_is_restored_and_no_message_is_lost(link: Link) -> None:
    gateway = link.gateway
    messages, rest, file = _messages(40), _messages(90), gateway.folder / "backup.db"
    with _traffic(link, messages) as mta:
        mta.wait(20)
        before = set(mta.accepted)
        done = json.loads(_store(link, "backup", file).stdout)
        assert done["bytes"] == file.stat().st_size
        refused = _store(link, "restore", file, check=False)
        assert refused.returncode == 1
        assert "systemctl stop mm4" in refused.stderr
        mta.wait()
        # What comes now is delivered, and its RES waits: the store that knows of it is about to be replaced.
        gateway.postfix("postconf", "-e", "defer_transports=mm4-responder")
        gateway.postfix("postfix", "reload")
        late = _messages(5)
        with Mta(gateway.smtp, late, gap=0) as other:
            other.wait()
        wait_for(lambda: late.keys() <= link.mmsc.by_transaction().keys(), "the late ones at the MMSC")
    with _traffic(link, rest) as mta:
        mta.wait(5)
        gateway.stop()
        assert len(mta.accepted) < len(rest), "the traffic was over before the gateway stopped"
        restored = json.loads(_store(link, "restore", file).stdout)
        with closing(sqlite3.connect(f"file:{restored['kept']}?mode=ro", uri=True)) as kept:
            assert kept.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        said = _checked(link)
        assert "store restored" in said
        assert "messages in Postfix's queue have a token that this store does not know: they are delivered, but" in said
        gateway.start()
        mta.wait()
    gateway.quiet()
    delivered, answers = _counted(link, {**messages, **late, **rest})
    assert {name for name, count in delivered.items() if not count} == set()
    # Of what the backup knows, and of what came after it was restored, every RES came; none came twice but to a message
    # that the peer sent twice.
    lacking = {name for name, count in answers.items() if not count}
    assert late.keys() <= lacking
    assert not lacking & before
    again = {failure.name for failure in mta.failures}
    assert len(lacking) < len(late) + len(rest)
    assert {name for name, count in answers.items() if count > 1} <= again
    assert {name for name, count in delivered.items() if count > 1} <= again
    assert gateway.wait_log('why="unknown token"')
    said = _checked(link)
    assert "store restored" in said
    assert "that this store does not know" not in said


def test_a_gateway_in_traffic_moves_to_postgresql_and_loses_nothing_and_acks_nothing_twice(link: Link) -> None:
    gateway = link.gateway
    messages, rest = _messages(50), _messages(90)
    with Cluster(fsync=True) as cluster:
        url = cluster.database(empty=True)
        with _traffic(link, messages) as mta:
            mta.wait(10)
            for _ in range(2):
                first = json.loads(_store(link, "copy", "--to", url).stdout)
                assert first["finished"] is False
            assert _store(link, "copy", "--to", url, "--finish", check=False).returncode == 1
            mta.wait()
        name = next(iter(mta.accepted))
        with _traffic(link, rest) as mta:
            mta.wait(5)
            gateway.stop()
            assert len(mta.accepted) < len(rest), "the traffic was over before the gateway stopped"
            last = json.loads(_store(link, "copy", "--to", url, "--finish").stdout)
            assert last["verified"] is True
            written = {table["table"]: table["written"] for table in last["tables"]}
            assert 5 <= written["messages"] < len(messages) + len(rest)
            assert "name the copy as store:" in _checked(link)
            gateway.yaml.write_text(gateway.yaml.read_text() + f'store: "{url}"\n')
            gateway.start()
            # A copy of what came before the move is known for one.
            assert gateway.send(messages[name]).code == 250
            mta.wait()
        gateway.quiet()
        delivered, answers = _counted(link, {**messages, **rest})
        assert set(delivered.values()) == {1}
        again = {failure.name for failure in mta.failures} | {name}
        assert {name: count for name, count in answers.items() if count != 1 and name not in again} == {}
        assert min(answers.values()) == 1
        assert execute(url, "SELECT count(DISTINCT transaction_id) FROM transactions") == [(len(messages) + len(rest),)]
        # One that Postfix was stopped with before it had it came again, and that is the message.
        owed = execute(
            url,
            "SELECT transaction_id, accepted_at FROM transactions JOIN messages USING (token) "
            "WHERE answer_to IS NOT NULL AND answered_at IS NULL",
        )
        assert {name for name, _ in owed} <= again
        assert {accepted for _, accepted in owed} <= {None}
        found = json.loads(_store(link, "status").stdout)
        assert (found["kind"], found["usable"], found["owed"]) == ("postgresql", True, len(owed))
        gateway.stop()  # before its store
