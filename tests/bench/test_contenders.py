"""The benchmark's configurations: what each proxy is given is what its own reader accepts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import contenders, others, proxies
from bench.setups import HTTP, MESSAGE, RELAY, TUNNEL, WSS, Setup, Tools
from wsrouter.config import reader


@pytest.fixture
def setup(tmp_path: Path, request: pytest.FixtureRequest) -> Setup:
    certificate = tmp_path / "cert.pem"
    proxies.write_certificate(certificate)
    return Setup(tmp_path, request.param, 2001, 2002, 2000, certificate, Tools(Path("/opt/bin/python")))


@pytest.mark.parametrize("setup", [TUNNEL, RELAY, WSS, MESSAGE, HTTP], indirect=True)
def test_the_router_accepts_its_configuration(setup: Setup) -> None:
    command = contenders.wsrouter(setup)
    config = reader.read(Path(command[-1]))
    assert len(config.tunnels) == (setup.work == TUNNEL)
    assert len(config.routes) == (setup.work != TUNNEL)
    assert command[:2] == ["/opt/bin/python", "/opt/bin/twistd"]


@pytest.mark.parametrize("setup", [RELAY], indirect=True)
def test_what_is_compiled_is_the_same_router_found_elsewhere(setup: Setup) -> None:
    assert contenders.compiled(setup)[2:] == contenders.wsrouter(setup)
    assert contenders.compiled(setup)[1] == f"PYTHONPATH={contenders.COMPILED}"


@pytest.mark.parametrize("setup", [RELAY], indirect=True)
def test_the_policed_router_has_every_policy_of_frame_headers(setup: Setup) -> None:
    (route,) = reader.read(Path(contenders.policed(setup)[-1])).routes
    policies = (route.max_message, route.message_rate, route.byte_rate, route.ping, route.backend_ping)
    assert None not in policies
    assert route.max_fragments == 1024


@pytest.mark.parametrize("setup", [TUNNEL, RELAY, WSS, HTTP], indirect=True)
@pytest.mark.parametrize("start", [contenders.nginx, contenders.nginx_tuned, contenders.nginx_cores])
def test_nginx_accepts_its_configuration(
    setup: Setup, start: Callable[[Setup], list[str]], require_program: Callable[[str, str], str]
) -> None:
    if not setup.tools.find("nginx"):
        require_program("nginx", "apt-get install nginx libnginx-mod-stream")
    done = subprocess.run([*start(setup), "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setup", [TUNNEL, RELAY, WSS, HTTP], indirect=True)
def test_haproxy_accepts_its_configuration(setup: Setup, require_program: Callable[[str, str], str]) -> None:
    if not setup.tools.find("haproxy"):
        require_program("haproxy", "apt-get install haproxy")
    done = subprocess.run([*contenders.haproxy(setup), "-c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_there_says_how_to_name_it(tmp_path: Path) -> None:
    tools = Tools(
        Path(sys.executable), {"caddy": str(tmp_path / "none"), "http-proxy": str(tmp_path), "node": "/bin/sh"}
    )
    reasons = {one.name: one.missing(tools) for one in others.OTHERS}
    assert reasons["caddy"] == "caddy is not installed (--tool caddy=PATH names it)"
    assert "--tool http-proxy=FOLDER/node_modules" in reasons["http-proxy"]
    assert reasons["autobahn"] == ""


def test_http_proxy_is_found_in_the_folder_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "http-proxy").mkdir()
    (tmp_path / "http-proxy" / "package.json").touch()
    tools = Tools(Path(sys.executable), {"http-proxy": str(tmp_path), "node": "/bin/sh"})
    assert {one.name: one.missing(tools) for one in others.OTHERS}["http-proxy"] == ""
