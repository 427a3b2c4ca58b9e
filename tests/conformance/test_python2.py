"""Where the suite's Python 2.7 comes from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance import python2
from conformance.python2 import Unavailable


@pytest.mark.parametrize("named", ["/nowhere/python2.7", sys.executable])
def test_a_named_interpreter_that_is_none_is_told(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON2", named)
    with pytest.raises(Unavailable, match=r"is no Python 2\.7 that runs"):
        python2.find(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_any_and_without_apt_it_says_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHON2", raising=False)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"name one with PYTHON2=\.\.\. \(on Debian it would be fetched\)"):
        python2.find(tmp_path / "new")


def test_one_that_pyenv_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "versions/2.7.18/bin/python2.7"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    monkeypatch.delenv("PYTHON2", raising=False)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert python2.find(tmp_path / "new") == python2.Interpreter(python)
