"""The `mm4` command, one module a command group."""
