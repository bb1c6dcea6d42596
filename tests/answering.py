"""A peer that answers: what reaches its next hop is answered from its own address, as its MMSC would."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from aiosmtpd.smtp import SMTP, Envelope, Session

from harness import NORTH, NextHop, Sandbox, send
from mm4.protocol.reader import read_message

__all__ = ["Answering"]


class Answering(NextHop):
    """Answers each recipient's REQ with the status that stands for his number; who has none gets no RES."""

    def __init__(self, statuses: Mapping[str, str]) -> None:
        super().__init__()
        self.statuses = dict(statuses)
        self.gateway: Sandbox | None = None

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        reply = await super().handle_DATA(server, session, envelope)
        numbers = [address.partition("/")[0] for address in envelope.rcpt_tos]
        threading.Thread(target=self._answer, args=(envelope.original_content, numbers), daemon=True).start()
        return reply

    def _answer(self, content: bytes, numbers: list[str]) -> None:
        assert self.gateway is not None
        pdu = read_message(content)
        # One RES for all of a mail, as before Release 6: Postfix sends each recipient his own only where it is told to.
        status = next((self.statuses[number] for number in numbers if number in self.statuses), None)
        if status is None or pdu.type is None or not pdu.type.endswith(".REQ"):
            return
        lines = [
            ("X-Mms-3GPP-MMS-Version", "5.5.0"),
            ("X-Mms-Message-Type", pdu.type.replace(".REQ", ".RES")),
            ("X-Mms-Transaction-ID", pdu.raw("transaction_id")),
            ("X-Mms-Message-ID", pdu.raw("message_id")),
            ("X-Mms-Request-Status-Code", status),
            ("From", "postmaster"),
            ("To", "system-user@mms.gw.example"),
            ("Date", "Thu, 12 Nov 2026 02:28:03 +0200"),
        ]
        message = "".join(f"{name}: {value}\r\n" for name, value in lines).encode() + b"\r\n"
        send(self.gateway.smtp, message, source=NORTH, mail_from="", rcpt=("system-user@mms.gw.example",))
