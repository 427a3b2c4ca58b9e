"""The table of the kinds of session: the router takes each configuration, and each has its cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from conformance.kinds import KINDS, Kind, configuration
from conformance.runs import Role, Run
from wsrouter.config import reader
from wsrouter.config.values import Plain

CASES = ["1.1.1", "10.1.1", "12.1.1", "13.7.18"]


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_router_accepts_the_configuration(kind: Kind, secure: bool, tmp_path: Path) -> None:
    certificate = tmp_path / "localhost.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    file = tmp_path / "router.ini"
    file.write_text(configuration(kind, 2222, certificate if secure else None))
    config = reader.read(file)
    (listener,) = config.listeners
    assert listener.plain is (Plain.NO if secure else Plain.YES)
    assert len(config.routes) == 1


def test_names_are_told_apart() -> None:
    runs = [Run(kind, scheme, role) for kind in KINDS for scheme in ("ws", "wss") for role in Role]
    assert len({run.name for run in runs}) == len(runs)
    assert Run(Kind("relay"), "wss", Role.SERVER).name == "relay-wss-fuzzing-server"


@pytest.mark.parametrize(
    ("clients", "backends", "as_client", "as_server"),
    [(True, True, 4, 4), (True, False, 4, 2), (False, True, 2, 4), (False, False, 2, 2)],
)
def test_compression_is_tested_on_the_leg_that_the_suite_is_at(
    clients: bool, backends: bool, as_client: int, as_server: int
) -> None:
    kind = Kind("some", "", clients, backends)
    assert len(Run(kind, "ws", Role.CLIENT).cases(CASES)) == as_client
    assert len(Run(kind, "ws", Role.SERVER).cases(CASES)) == as_server
