"""What MM4 is: PDUs, fields, addresses, status codes, dialects. Pure, and imports nothing of ours."""
