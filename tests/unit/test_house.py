"""What the house rules promise about the repository itself."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "milter" / "mm4"

# What each package may import of ours. Each names only packages above it.
MAY_IMPORT = {
    "protocol": set(),
    "gateway": {"protocol"},
    "store": {"protocol"},
    "lookup": {"protocol"},
    "postfix": {"protocol", "gateway", "store", "lookup"},
    "compose": {"protocol", "gateway", "store", "lookup", "postfix"},
    "cli": {"protocol", "gateway", "store", "lookup", "postfix", "compose"},
}
OUTSIDE_WORLD = {
    "Milter", "milter", "asyncio", "http", "os", "select", "signal", "smtplib", "socket", "sqlalchemy",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib",
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that a module imports, at its top or inside."""
    package = ["mm4", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            yield ".".join(module)
            yield from (".".join([*module, alias.name]) for alias in node.names)


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_only_to_packages_higher_in_the_list(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    if own not in MAY_IMPORT:
        return  # __init__, __main__: at the top
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("mm4.")}
    known = ours & MAY_IMPORT.keys()
    assert known <= MAY_IMPORT[own] | {own}


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(PACKAGE).parts[0] in ("protocol", "gateway")],
                         ids=lambda p: str(p.relative_to(PACKAGE)))  # fmt: skip
def test_the_pure_packages_touch_nothing_outside(path: Path) -> None:
    names = set(imports(path))
    assert not {name.split(".")[0] for name in names} & OUTSIDE_WORLD
    assert "pathlib.Path" not in names  # PurePath only computes


def test_one_module_imports_pymilter() -> None:
    users = [p.relative_to(PACKAGE) for p in MODULES if {n.split(".")[0] for n in imports(p)} & {"Milter", "milter"}]
    assert users == [Path("postfix/milter.py")]


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    from mm4.postfix.metrics import METRICS

    written = set(re.findall(r"^\| `(mm4_\w+)`", (REPOSITORY / "docs" / "monitoring.md").read_text(), re.MULTILINE))
    counted = {m._name + ("_total" if m._type == "counter" else "") for m in METRICS}
    assert written == counted


def test_every_key_of_a_log_line_is_documented() -> None:
    session = (PACKAGE / "postfix" / "session.py").read_text()
    block = session[session.index("logline(\n                queue_id=") :]
    keys = set(re.findall(r"^\s{16}(\w+)=", block, re.MULTILINE))
    assert "transaction_id" in keys
    documented = (REPOSITORY / "docs" / "monitoring.md").read_text()
    assert {key for key in keys if f"`{key}`" not in documented} == set()


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: no list of tracked files")
    return [REPOSITORY / name for name in done.stdout.decode().split("\0") if name]


def test_no_file_holds_a_path_of_one_machine() -> None:
    own = str(REPOSITORY.parent) + "/"
    if len(REPOSITORY.parent.parts) < 3:
        return  # the checkout lies at the root or in /srv: nothing to tell from ordinary paths
    found = [f for f in tracked() if f.is_file() and own.encode() in f.read_bytes()]
    assert found == []


def test_every_python_file_says_what_it_is() -> None:
    silent = [p for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))]
    assert [p for p in silent if p.parts[-2] != "versions"] == []
