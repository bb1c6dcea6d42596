"""The outcome table: what each finding means by SMTP and by MM4.

A row says which request status a RES carries and which SMTP reply stands in for it where no RES may be sent.
Our own failures have no row: they are temporary errors of the tree in `protocol.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..protocol.errors import Reply

__all__ = [
    "ACCEPTED",
    "ALONE",
    "CORRUPT",
    "DENIED",
    "DRAINING",
    "ENDED",
    "IN_PROGRESS",
    "LIMITS",
    "NETWORK",
    "NOT_ACCEPTED",
    "NOT_FOUND",
    "NOT_SERVED",
    "NO_OPERATOR",
    "NO_RES_ADDRESS",
    "NO_SENDER",
    "RECIPIENT_OK",
    "REPLIES",
    "SENDER_OK",
    "STRANGER",
    "TOO_LARGE",
    "TOO_MANY",
    "TOO_MANY_SIDES",
    "TOO_OFTEN",
    "UNSPECIFIED",
    "UNSUPPORTED",
    "WRONG_ORIGINATOR",
    "WRONG_SENDER",
]

ACCEPTED = Reply(250, "2.0.0", "Ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Ok")
SENDER_OK = Reply(250, "2.1.0", "Ok")
ENDED = Reply(250, "2.0.0", "Ok: recorded")

# Request statuses, as the dialect 3gpp lists them.
CORRUPT = "Error-message-format-corrupt"
UNSUPPORTED = "Error-unsupported-message"
DENIED = "Error-service-denied"
NOT_ACCEPTED = "Error-content-not-accepted"
NOT_FOUND = "Error-message-not-found"
NO_SENDER = "Error-sending-address-unresolved"
NETWORK = "Error-network-problem"
UNSPECIFIED = "Error-unspecified"

# RFC 3463 codes: 5.6.x content, 5.7.1 policy, 5.1.x address, 5.3.4 size.
REPLIES: Mapping[str, Reply] = MappingProxyType(
    {
        CORRUPT: Reply(554, "5.6.0", "Malformed MM4 message"),
        UNSUPPORTED: Reply(554, "5.6.1", "MM4 message type not supported"),
        NO_SENDER: Reply(553, "5.1.7", "From is no address"),
        NOT_ACCEPTED: Reply(552, "5.3.4", "Message too large or content not accepted"),
        DENIED: Reply(550, "5.7.1", "Service denied"),
        NOT_FOUND: Reply(550, "5.1.0", "Report about a message that is not known here"),
    }
)

STRANGER = Reply(550, "5.7.1", "This host exchanges MMS with its peers only")
WRONG_SENDER = Reply(550, "5.7.1", "Sender address is not in this peer's domains")
WRONG_ORIGINATOR = Reply(550, "5.7.1", "The originator is no subscriber of this client's operator")
TOO_LARGE = Reply(552, "5.3.4", "Message exceeds the size agreed for this link")
TOO_MANY = Reply(452, "4.5.3", "Too many recipients for one message, send the others again")
TOO_OFTEN = Reply(451, "4.7.1", "More messages than agreed for this link, try again later")
NOT_SERVED = Reply(550, "5.1.1", "Number not served here")
ALONE = Reply(452, "4.5.3", "No further recipient beside this one, send the others again")
TOO_MANY_SIDES = Reply(452, "4.5.3", "Recipients of too many operators in one message, send the others again")
NO_OPERATOR = Reply(451, "4.3.5", "Its operator is not known, and the peer's addresses need it")
NO_RES_ADDRESS = Reply(550, "5.7.1", "No address for the acknowledgement in this peer's domains")
IN_PROGRESS = Reply(451, "4.7.1", "The same message is being taken, try again later")
DRAINING = Reply(421, "4.3.2", "Service restarting, connect again")

LIMITS: Mapping[str, int] = MappingProxyType(
    {
        # Received lines beyond which a message runs in circles; Postfix itself stops at 50 (hopcount_limit).
        "received": 30,
        # Times a message may have been forwarded from subscriber to subscriber. No document names a number.
        "forward_counter": 10,
        # Indexes of Previously-sent-by that may name our own domain: once is a message that comes home.
        "own_hops": 1,
        # Sides (peers, and identities of our own) that one message may go to: each further one is a copy to submit. A
        # group message seldom has more recipients than this; those beyond come in a message of their own.
        "sides": 20,
    }
)
