"""By what else than its address a client is known, as the configuration describes it: certificates and logins.

Postfix tells a milter the subject of a certificate that it trusts (`{cert_subject}`, the CN alone) and the SASL login
(`{auth_authen}`); a fingerprint, of any certificate, it tells by its policy protocol alone.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from .entries import FileName, Fingerprint, Text
from .section import Section, place

__all__ = ["Certificate", "LoginName", "Sasl", "Tls"]


def _common_name(text: str) -> str:
    if not text or re.search(r"[\x00-\x1f\x7f]|^CN\s*=|^/", text, re.IGNORECASE):
        raise ValueError(
            f"{text!r} is no CN of a certificate: write the name alone, for example mm4.north.example; "
            "openssl x509 -in cert.pem -noout -subject prints it behind CN ="
        )
    return text


def _login(text: str) -> str:
    if not text or re.search(r"[\x00-\x20\x7f]", text):
        raise ValueError(f"{text!r} is no SASL login: write it as Postfix logs it (sasl_username=)")
    return text


LoginName = Annotated[Text, AfterValidator(_login)]


class Certificate(Section):
    """One TLS client certificate of a peer."""

    subject: Annotated[Text, AfterValidator(_common_name)] | None = Field(
        None,
        description="Its CN, in any letter case. Postfix tells it of a certificate that `service.tls.ca` vouches for.",
    )
    fingerprint: Fingerprint | None = Field(
        None,
        description="Its SHA-256 fingerprint: this very certificate, whoever vouches for it. With a subject both have "
        "to hold.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Certificate:
        if self.subject is None and self.fingerprint is None:
            raise ValueError("a certificate is known by its fingerprint, its subject or both")
        return self

    def fits(self, subject: str | None, fingerprint: str | None) -> bool:
        """Whether a client that showed these showed this certificate."""
        return (self.subject is None or (subject or "").casefold() == self.subject.casefold()) and (
            self.fingerprint in (None, fingerprint)
        )


class Tls(Section):
    """TLS of the MM4 line towards whoever connects."""

    certificate: FileName = Field(description="PEM file with our certificate and what it is signed by.")
    key: FileName | None = Field(
        None, description="PEM file with its key. Left out: it stands in `certificate`, first."
    )
    ca: FileName | None = Field(
        None,
        description="PEM file with the authorities that vouch for certificates of peers; a self-signed one vouches for "
        "itself.",
    )
    level: Literal["may", "encrypt"] = Field(
        "may", description="Whether clients may use TLS (the default), or have to (encrypt)."
    )


class Sasl(Section):
    """Where Postfix has logins and passwords from."""

    type: Literal["dovecot", "cyrus"] = Field(
        "dovecot", description="Postfix's smtpd_sasl_type: dovecot (the default) or cyrus."
    )
    path: Text | None = Field(
        None,
        description="Postfix's smtpd_sasl_path: Dovecot's socket (private/auth, below the queue folder), or the name "
        "of Cyrus's file without .conf (smtpd). Default: these.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Sasl:
        if self.path is not None and re.search(r"[\s,{}$]", self.path):
            raise ValueError(place("path") + f"{self.path!r}: master.cf cannot hold this path")
        return self

    @property
    def where(self) -> str:
        """The value of smtpd_sasl_path."""
        return self.path or {"dovecot": "private/auth", "cyrus": "smtpd"}[self.type]
