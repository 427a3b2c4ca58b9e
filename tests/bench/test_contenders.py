"""The benchmark's configurations: what the router is given is what its own reader accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import contenders, run
from bench.contenders import Setup
from wsrouter.config import reader


@pytest.fixture
def setup(tmp_path: Path, request: pytest.FixtureRequest) -> Setup:
    certificate = tmp_path / "cert.pem"
    run._write_certificate(certificate)
    return Setup(tmp_path, request.param, 2001, 2002, 2000, certificate, Path("/opt/bin/python"))


@pytest.mark.parametrize("setup", [contenders.TUNNEL, contenders.RELAY, contenders.WSS], indirect=True)
def test_the_router_accepts_its_configuration(setup: Setup) -> None:
    command = contenders.wsrouter(setup)
    config = reader.read(Path(command[-1]))
    assert len(config.tunnels) == (setup.work == contenders.TUNNEL)
    assert len(config.routes) == (setup.work != contenders.TUNNEL)
    assert command[:2] == ["/opt/bin/python", "/opt/bin/twistd"]
