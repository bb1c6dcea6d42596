"""What mail's words about a delivery mean in MM4's: every row of the table, by an example of its own."""

from __future__ import annotations

import pytest

from mm4.gateway.dispositions import ROWS, Disposition, disposition
from mm4.protocol.dialect import builtin

EXAMPLES = [
    ("delivered", "2.1.5", "Retrieved", None),
    ("relayed", "2.0.0", "Indeterminate", None),
    ("expanded", "2.1.5", "Indeterminate", None),
    ("failed", "4.4.7", "Expired", "Error-network-problem"),
    ("failed", "4.4.1", "Indeterminate", "Error-network-problem"),
    ("failed", "5.1.8", "Rejected", "Error-sending-address-unresolved"),
    ("failed", "5.1.1", "Rejected", "Error-unspecified"),
    ("failed", "5.3.4", "Rejected", "Error-content-not-accepted"),
    ("failed", "5.2.1", "Rejected", "Error-service-denied"),
    ("failed", "5.2.2", "Rejected", "Error-unspecified"),
    ("failed", "5.4.4", "Indeterminate", "Error-network-problem"),
    ("failed", "5.6.1", "Rejected", "Error-content-not-accepted"),
    ("failed", "5.7.1", "Rejected", "Error-service-denied"),
    ("failed", "5.0.0", "Rejected", "Error-unspecified"),
]


def row_of(action: str, status: str) -> Disposition:
    found = disposition(action, status)
    assert found is not None
    return found


@pytest.mark.parametrize(("number", "example"), list(enumerate(EXAMPLES)))
def test_every_row_has_its_example_and_is_reached(number: int, example: tuple[str, str, str, str | None]) -> None:
    action, status, mm_status, request_status = example
    found = row_of(action, status)
    assert (found.mm_status, found.request_status) == (mm_status, request_status)
    assert found == ROWS[number]


def test_there_are_as_many_rows_as_examples_and_each_names_its_source() -> None:
    assert len(ROWS) == len(EXAMPLES)
    assert all(row.source.startswith("RFC ") for row in ROWS)


def test_what_the_rows_say_can_be_written() -> None:
    dialect = builtin("3gpp")
    assert {row.mm_status for row in ROWS} <= set(dialect.fields["mm_status"].values)
    assert {row.request_status for row in ROWS} - {None} <= set(dialect.statuses)


@pytest.mark.parametrize(
    ("status", "mm_status"),
    [("5.4.7", "Expired"), ("5.1.7", "Rejected"), ("5.2.3", "Rejected"), ("", "Rejected"), ("5.5.2", "Rejected")],
)
def test_other_failures(status: str, mm_status: str) -> None:
    assert row_of("failed", status).mm_status == mm_status


@pytest.mark.parametrize("action", ["delayed", "reported", ""])
def test_what_is_no_news_is_none(action: str) -> None:
    assert disposition(action, "4.4.1") is None


def test_what_was_relayed_is_what_the_operator_says_and_a_mailbox_is_retrieved() -> None:
    for action in ("relayed", "expanded"):
        found = disposition(action, "2.0.0", relayed="Forwarded")
        assert found is not None
        assert found.mm_status == "Forwarded"
        found = disposition(action, "2.0.0", relayed="Forwarded", mailbox=True)
        assert found is not None
        assert found.mm_status == "Retrieved"


def test_what_was_given_up_after_its_own_expiry_is_expired_and_what_was_refused_is_not() -> None:
    late = disposition("failed", "4.4.1", late=True)
    refused = disposition("failed", "5.1.1", late=True)
    assert late is not None
    assert refused is not None
    assert (late.mm_status, refused.mm_status) == ("Expired", "Rejected")
