"""The wheel and the editable install both show the plugin to twistd, and neither shadows Twisted."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    # The checkout must not come in by another door than the install.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Hatchling, from the development tools, is used as it is: the network is not needed.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A virtual environment's Python that sees this one's packages, but not the checkout."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    inside = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    # Files named .pth are not read in a folder that a .pth adds, so an editable install out there has no effect here.
    Path(inside, "outer.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def test_the_wheel_holds_the_package_and_the_plugin_and_shadows_nothing(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"wsrouter/__init__.py", "wsrouter/py.typed", "twisted/plugins/wsrouter_plugin.py"} <= names
    assert not {"twisted/__init__.py", "twisted/plugins/__init__.py", "twisted/plugins/dropin.cache"} & names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"wsrouter", "twisted"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_twistd_lists_the_command_after_an_install(wheel: Path, fresh: Path, tmp_path: Path, editable: bool) -> None:
    what = ["--no-build-isolation", "--editable", ROOT] if editable else [wheel]
    pip = [sys.executable, "-m", "pip", "--python", fresh, "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-deps", "--no-index", "--ignore-installed", *what, cwd=tmp_path)
    listed = run(fresh, "-c", "from twisted.scripts.twistd import run; run()", "--help", cwd=tmp_path)
    assert "wsrouter" in listed
    told = run(fresh, "-c", "import wsrouter, twisted; print(wsrouter.__file__); print(twisted.__file__)", cwd=tmp_path)
    ours, theirs = map(Path, told.splitlines())
    assert ours.is_relative_to(ROOT if editable else tmp_path)
    assert theirs.name == "__init__.py"
