"""The Ansible collection as it stands: lint, what its archive holds, and its variables with their documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import hosts

COLLECTION = hosts.REPOSITORY / "ansible"
ROLES = ("mm4", "mm4_postfix")
SECONDS = 300

pytestmark = pytest.mark.skipif(not find_spec("ansible"), reason="the extra `ansible` is not installed: make test-docker")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the tools find the collection by its name, and write nowhere else."""
    home = tmp_path_factory.mktemp("ansible")
    place = home / "collections/ansible_collections/mm4"
    place.mkdir(parents=True)
    (place / "mm4").symlink_to(COLLECTION)
    return {
        **os.environ, "HOME": str(home), "ANSIBLE_HOME": str(home), "ANSIBLE_COLLECTIONS_PATH": str(home / "collections"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1",
    }  # fmt: skip


def _run(*command: str, tools: dict[str, str], cwd: Path = COLLECTION) -> None:
    done = subprocess.run(command, cwd=cwd, env=tools, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


def _role(role: str, part: str) -> Any:
    return yaml.safe_load((COLLECTION / "roles" / role / part / ("argument_specs.yml" if part == "meta" else "main.yml")).read_text())


def _options(role: str) -> dict[str, Any]:
    entries = _role(role, "meta")["argument_specs"].values()
    return {name: option for entry in entries for name, option in entry["options"].items()}


def test_it_has_no_finding_of_the_production_profile(tools: dict[str, str]) -> None:
    _run("ansible-lint", "--offline", "--strict", tools=tools)


def test_its_archive_holds_the_units_themselves(tools: dict[str, str], tmp_path: Path) -> None:
    _run("ansible-galaxy", "collection", "build", "--output-path", str(tmp_path), tools=tools)
    (archive,) = tmp_path.glob("mm4-mm4-*.tar.gz")
    with tarfile.open(archive) as tar:
        entries = {entry.name: entry for entry in tar.getmembers()}
        for name in _role("mm4", "vars")["__mm4_unit_files"]:
            entry = entries[f"roles/mm4/files/{name}"]
            assert entry.isfile(), name
            held = tar.extractfile(entry)
            assert held is not None
            assert held.read() == (hosts.REPOSITORY / "milter/systemd" / name).read_bytes(), name
    assert not [name for name in entries if name.startswith("extensions")]


def test_every_unit_of_the_gateway_is_in_it() -> None:
    there = {file.name for file in (hosts.REPOSITORY / "milter/systemd").iterdir() if file.is_file()}
    assert there - {"README.md"} == set(_role("mm4", "vars")["__mm4_unit_files"])


def test_it_has_the_version_of_the_gateway() -> None:
    version = re.search(r'(?m)^__version__ = "(.*)"$', (hosts.REPOSITORY / "milter/mm4/__init__.py").read_text())
    assert version is not None
    assert yaml.safe_load((COLLECTION / "galaxy.yml").read_text())["version"] == version[1]


@pytest.mark.parametrize("role", ROLES)
def test_its_variables_are_documented_with_their_defaults(role: str) -> None:
    options, defaults = _options(role), _role(role, "defaults")
    assert options.keys() == defaults.keys()
    for name, default in defaults.items():
        if isinstance(default, str) and "{{" in default:
            assert "default" not in options[name], name  # its description says what it follows from
        else:
            assert options[name]["default"] == default, name


@pytest.mark.parametrize("role", ROLES)
def test_its_readme_has_every_variable(role: str) -> None:
    readme = (COLLECTION / "README.md").read_text()
    for name, option in _options(role).items():
        shown = f"`{json.dumps(option['default'])}` " if "default" in option else ""
        assert f"| `{name}` | {shown}|" in readme.replace("|  |", "| |"), name


def test_its_roles_use_what_every_ansible_has() -> None:
    """No other collection: where Galaxy cannot be reached, there is none."""
    for file in COLLECTION.rglob("*.yml"):
        foreign = re.findall(r"^\s*(?:- )?((?!ansible\.builtin\.|mm4\.mm4\.)[a-z_]+\.[a-z_]+\.[a-z_]+):", file.read_text(), re.MULTILINE)
        assert not foreign, (file, foreign)
