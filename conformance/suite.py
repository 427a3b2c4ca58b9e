"""The Autobahn test suite in an environment of its own, made once and kept in ``conformance/build``."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conformance import python2
from conformance.python2 import Interpreter, Unavailable

HERE = Path(__file__).parent
#: How many cases this release of the suite has.
CASES = 517
#: The last release of virtualenv that makes environments for Python 2.7.
_VIRTUALENV = "virtualenv==20.15.1"
#: Unmasks and checks UTF-8 in C. It must be compiled; without it all is the same, but takes about twice as long.
_ACCELERATOR = "wsaccel==0.6.6"
_LIST_CASES = """
import json
from autobahntestsuite.case import CaseBasename, Cases
print(json.dumps([one.__name__[len(CaseBasename):].replace("_", ".") for one in Cases]))
"""


@dataclass(frozen=True, slots=True)
class Suite:
    """``command`` runs ``wstest``; ``cases`` are the names of all cases, in the suite's order."""

    command: tuple[str, ...]
    cases: tuple[str, ...]


def prepare(say: Callable[[str], None], build: Path = HERE / "build") -> Suite:
    """Make the environment if need be, saying what is going on; raises Unavailable."""
    requirements = HERE / "requirements.txt"
    version = hashlib.sha256(requirements.read_bytes() + _VIRTUALENV.encode()).hexdigest()[:12]
    environment, stamp = build / f"suite-{version}", build / f"suite-{version}.made"
    python = environment / "bin" / "python"
    if not stamp.exists():
        say("making an environment for the test suite, which takes a minute")
        interpreter = python2.find(build / "python2")
        say(f"Python 2.7 is {interpreter.path}")
        _make(interpreter, environment, requirements, build / "virtualenv", say)
        stamp.touch()
    # Its warnings, that Python 2 is old, would be among what is listed.
    cases = tuple(json.loads(_run(python, "-W", "ignore", "-c", _LIST_CASES)))
    if len(set(cases)) != CASES:
        raise Unavailable(f"the test suite has {len(set(cases))} cases, expected {CASES}")
    return Suite((str(python), "-u", "-W", "ignore", str(environment / "bin" / "wstest")), cases)


def _make(
    interpreter: Interpreter, environment: Path, requirements: Path, tool: Path, say: Callable[[str], None]
) -> None:
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", tool, _VIRTUALENV)
    virtualenv = ("-c", f"import sys; sys.path.insert(0, {str(tool)!r}); import virtualenv.__main__ as m; m.run()")
    _run(sys.executable, *virtualenv, "--clear", "--no-download", "--python", interpreter.path, environment)
    install = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps")
    _run(*install, "--requirement", requirements, variables=interpreter.environment)
    try:
        _run(*install, _ACCELERATOR, variables=interpreter.environment)
    except Unavailable:
        say(f"{_ACCELERATOR} cannot be compiled here: the runs will take about twice as long")


def _run(*command: str | Path, variables: dict[str, str] | None = None) -> str:
    done = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the test suite cannot be installed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout
