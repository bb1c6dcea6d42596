"""What Postfix 3.10 and Python 3.13 could do otherwise: the integration tests on a Debian 13, in a container without a network."""

from __future__ import annotations

import docker

LEFT_OUT = {
    "test_lint_speed.py": "how quick pure Python is on two idle cores: no Postfix, and no idle core beside the other tests",
    "test_reach_speed.py": "the same",
}
"""Of tests/integration, with the reason."""

PROCESSES = 4
"""More than cores, as part of the time is spent waiting. Other tests in containers run beside."""

SECONDS = 1500


def test_the_integration_tests_pass_on_debian_13(
    client: docker.DockerClient, trixie: str, repository: dict[str, dict[str, str]]
) -> None:
    left_out = " ".join(f"--ignore tests/integration/{name}" for name in LEFT_OUT)
    # A test that hangs is named before all are stopped.
    run = (
        f"postconf -hd mail_version; exec timeout --foreground -s INT {SECONDS} .venv/bin/python -m pytest -q --durations 25 -n {PROCESSES}"
        f" --dist loadfile -o faulthandler_timeout={SECONDS // 3} tests/integration {left_out}"
    )
    container = client.containers.run(
        trixie, ["sh", "-c", run], detach=True, init=True, volumes=repository, network_mode="none",
        environment={
            "CI": "true",  # a test that is skipped there is not run anywhere on 3.10
            # The checkout is not to be written: without this each of some thousand Pythons would compile it anew.
            "PYTHONPYCACHEPREFIX": "/tmp/pycache",
        },
        sysctls={"net.ipv6.conf.all.disable_ipv6": "0"},  # Docker leaves ::1 out where there is no network
        # Some tests put a file system of their own into a mount namespace of their own, or hosts into network namespaces.
        cap_add=["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"], security_opt=["apparmor=unconfined"],
    )  # fmt: skip
    try:
        code = container.wait(timeout=SECONDS + 60)["StatusCode"]
        output = container.logs().decode(errors="replace")
    finally:
        container.remove(force=True)
    print(output)
    assert code == 0, output
    assert output.startswith("3.10"), output
