from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from twisted.application.service import Application, IService, MultiService
from twisted.logger import ILogObserver, LogLevel
from twisted.python.usage import Options, UsageError

from wsrouter import __version__, tap
from wsrouter.service import RouterService

GOOD = "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route all]\npath = /\nredirect = /x\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that is good."""
    path = tmp_path / "router.ini"
    path.write_text(GOOD)
    return path


def status_of(*arguments: str) -> object:
    """The exit status of a command line that ends the program."""
    with pytest.raises(SystemExit) as caught:
        tap.Options().parseOptions(list(arguments))
    return caught.value.code


def test_a_good_file_becomes_a_configuration(config, capsys):
    options = tap.Options()
    options.parseOptions(["--config", str(config)])
    assert [listener.name for listener in options.configuration.listeners] == ["main"]
    assert capsys.readouterr() == ("", "")


def test_the_option_has_a_short_form(config):
    options = tap.Options()
    options.parseOptions(["-c", str(config)])
    assert options.configuration.file == config


def test_without_a_file_the_start_says_what_is_needed(capsys):
    assert status_of() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wsrouter: --config FILE is needed")
    assert err.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_every_fault_is_one_line_on_standard_error(config, capsys, more):
    config.write_text(GOOD + "path = /again\n[pool]\n[listner x]\n")
    assert status_of("--config", str(config), *more) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(f"{config}:") for line in lines)


@pytest.mark.parametrize("name", ["nowhere.ini", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path, capsys, name):
    assert status_of("--config", str(tmp_path / name)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot be read" in err
    assert err.count("\n") == 1


def test_check_says_that_the_file_is_good_and_ends_the_program(config, capsys):
    assert status_of("--config", str(config), "--check") == 0
    assert capsys.readouterr() == (f"{config}: the configuration is good\n", "")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("certificates = bad.pem", "bad.pem"),
        (
            "[pool app]\nbackends = 127.0.0.1:1\ntls = yes\ntls_ca = bad.pem\n[route p]\npath = /p\npool = app",
            "bad.pem",
        ),
        ("[router]\naccess_log = nowhere/access.log", "the directory of 'nowhere/access.log' does not exist"),
        ("[route www]\npath = /www\nstatic = nowhere", "'nowhere' is no directory that exists"),
    ],
    ids=["certificate", "ca", "access log", "folder"],
)
def test_check_looks_at_every_file_that_is_named(config, capsys, line, told):
    (config.parent / "bad.pem").write_text("nothing of that kind")
    config.write_text(GOOD.replace("[route all]", f"{line}\n[route all]"))
    assert status_of("--config", str(config), "--check") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == 1


def test_check_tells_what_is_good_and_yet_hardly_meant(config, capsys):
    certificate = trustme.CA().issue_cert("old.example", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    certificate.private_key_and_cert_chain_pem.write_to_path(config.parent / "old.pem")
    config.write_text(GOOD.replace("[route", "certificates = old.pem\n[route"))
    assert status_of("--config", str(config), "--check") == 0
    out, err = capsys.readouterr()
    assert out == f"{config}: the configuration is good\n"
    assert "old.pem: expired on 2020-01-01" in err


def test_the_version_is_shown(capsys):
    assert status_of("--version") == 0
    assert capsys.readouterr() == (f"wsrouter {__version__}\n", "")


def test_an_unknown_option_is_refused():
    with pytest.raises(UsageError, match="confg"):
        tap.Options().parseOptions(["--confg", "router.ini"])


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of the process the service would change once the reactor runs, and it does."""
    names: list[str] = []
    for name in ("handle_signals", "settle"):
        monkeypatch.setattr(RouterService, name, lambda self, name=name: names.append(name))
    return names


async def test_the_service_is_built_and_nothing_is_bound(config, called):
    options = tap.Options()
    options.parseOptions(["--config", str(config)])
    service = tap.makeService(options)
    assert IService.providedBy(service)
    assert isinstance(service, RouterService)
    assert [listener._port for listener in service.listeners] == [None]
    assert not service.running
    assert called == ["handle_signals", "settle"]
    await service.stopService()


def test_a_file_that_went_bad_in_between_is_a_fault_of_the_start(config, capsys, called):
    authority = trustme.CA()
    authority.issue_cert("a.example").private_key_and_cert_chain_pem.write_to_path(config.parent / "a.pem")
    config.write_text(GOOD.replace("[route", "certificates = a.pem\n[route"))
    options = tap.Options()
    options.parseOptions(["--config", str(config)])
    (config.parent / "a.pem").write_text("half of it")
    with pytest.raises(SystemExit) as caught:
        tap.makeService(options)
    assert caught.value.code == 1
    assert "a.pem" in capsys.readouterr().err
    assert called == []


# The log as JSON.


class Twistd(Options):
    """The options of twistd, as far as they say where its log goes."""

    optParameters = [["logfile", "l", None]]
    optFlags = [["nodaemon", "n"]]


@pytest.fixture
def with_json(config, called, monkeypatch) -> Callable[..., RouterService]:
    """``with_json("--nodaemon")``: the service of a configuration with ``log = json``, as twistd makes it."""
    config.write_text("[router]\nlog = json\n" + GOOD)
    monkeypatch.chdir(config.parent)

    def make(*arguments: str) -> RouterService:
        options = tap.Options()
        options.parseOptions(["--config", str(config)])
        options.parent = Twistd()
        options.parent.parseOptions(list(arguments))
        service = tap.makeService(options)
        assert isinstance(service, RouterService)
        return service

    return make


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("--nodaemon",), None),
        (("--logfile=-",), None),
        (("--nodaemon", "--logfile=a.log"), "a.log"),
        (("--logfile=a.log",), "a.log"),
        ((), "twistd.log"),
    ],
)
def test_json_goes_where_twistd_would_log(config, with_json, capsys, monkeypatch, arguments, file):
    application = Application("wsrouter")
    service = with_json(*arguments)
    with contextlib.ExitStack() as opened:
        # A process keeps its log open to its end; a test does not.
        monkeypatch.setattr(Path, "open", lambda *given, **more: opened.enter_context(open(*given, **more)))
        service.setServiceParent(application)
        ILogObserver(application)({"log_format": "{a}", "a": "hello", "log_time": 0.0, "log_level": LogLevel.info})
    out = capsys.readouterr().out
    text = out if file is None else (config.parent / file).read_text()
    assert json.loads(text)["message"] == "hello"
    assert bool(out) == (file is None)


def test_without_twistd_json_goes_to_standard_output(config, with_json, capsys):
    options = tap.Options()
    options.parseOptions(["--config", str(config)])
    application = Application("wsrouter")
    tap.makeService(options).setServiceParent(application)
    ILogObserver(application)({"log_format": "hello", "log_time": 0.0, "log_level": LogLevel.info})
    assert json.loads(capsys.readouterr().out)["message"] == "hello"


def test_as_the_child_of_another_service_the_router_leaves_the_log_alone(with_json):
    parent = MultiService()
    with_json().setServiceParent(parent)
    assert parent.namedServices.keys() == {"wsrouter"}


def test_elsewhere_than_on_linux_the_start_says_so(config, capsys, monkeypatch):
    options = tap.Options()
    options.parseOptions(["--config", str(config)])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit) as caught:
        tap.makeService(options)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "wsrouter: needs Linux (epoll); this is darwin\n"
