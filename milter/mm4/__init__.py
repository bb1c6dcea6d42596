"""MM4, the interface over which MMS operators exchange messages by SMTP, for an existing Postfix."""

__version__ = "0.1.0"
