"""What this gateway decides: configuration, peers, rules, routing, rewriting, verdicts. Pure: values in, values out."""
