"""The edges to Postfix: milter, responder, submission, wiring, sandbox."""
