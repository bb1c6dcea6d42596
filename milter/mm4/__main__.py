"""`python -m mm4` is the `mm4` command."""

from .cli.main import run

if __name__ == "__main__":
    run()
