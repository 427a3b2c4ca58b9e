"""The table of the kinds of session: the router takes each configuration, and each has its cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from conformance.kinds import KINDS, Kind, configuration
from conformance.runs import SCHEMES, Role, Run, every_run, quick_runs
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


def test_every_kind_runs_over_both_schemes_and_both_ways_where_the_suite_can_be_a_backend() -> None:
    runs = every_run()
    assert len({run.name for run in runs}) == len(runs)
    for kind in KINDS:
        roles = Role if kind.suite_as_backend else [Role.CLIENT]
        expected = [(scheme, role) for scheme in SCHEMES for role in roles]
        assert [(run.scheme, run.role) for run in runs if run.kind is kind] == expected
    assert Run(Kind("relay"), "wss", Role.SERVER).name == "relay-wss-fuzzing-server"


def test_quick_runs_have_relay_sessions_every_way_and_each_further_kind_in_each_role() -> None:
    quick = [run.name for run in quick_runs()]
    assert set(quick) <= {run.name for run in every_run()}
    for kind in KINDS:
        roles = [f"{kind.name}-ws-fuzzing-client", f"{kind.name}-wss-fuzzing-server"]
        other = [f"{kind.name}-ws-fuzzing-server", f"{kind.name}-wss-fuzzing-client"]
        expected = {*roles[: 1 + kind.suite_as_backend], *(other if kind.name == "relay" else ())}
        assert {name for name in quick if name.startswith(f"{kind.name}-ws")} == expected


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
