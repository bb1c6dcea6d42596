"""What Postfix 3.10 and Python 3.13 could do otherwise, on a Debian 13 in a container without a network."""

from __future__ import annotations

import docker

TELLING = ("t-01-ack", "t-02-envelope", "t-11-bounces", "t-13-store", "t-18-delivery-reports")

SECONDS = 600


def test_the_telling_part_of_the_suite_passes_on_debian_13(
    client: docker.DockerClient, trixie: str, repository: dict[str, dict[str, str]]
) -> None:
    folders = " ".join(f"tests/integration/{name}" for name in TELLING)
    run = f"postconf -hd mail_version; exec .venv/bin/python -m pytest -q -n 3 --dist loadfile {folders}"
    container = client.containers.run(
        trixie, ["sh", "-c", run], detach=True, init=True, volumes=repository, network_mode="none",
        environment={"CI": "true"},  # a test that is skipped there is not run anywhere on 3.10
        # Some tests put a file system of their own into a mount namespace of their own.
        cap_add=["SYS_ADMIN", "SYS_PTRACE"], security_opt=["apparmor=unconfined"],
    )  # fmt: skip
    try:
        code = container.wait(timeout=SECONDS)["StatusCode"]
        output = container.logs().decode(errors="replace")
    finally:
        container.remove(force=True)
    assert code == 0, output
    assert output.startswith("3.10"), output
