"""Compiles the data path while a wheel is built, where ``HATCH_BUILD_HOOK_ENABLE_CUSTOM=1`` asks for it.

The compiler is mypyc. It makes extension modules of the same files, which lie in the wheel beside them, so the Python
ones stay complete: they are what runs where this was not asked for. See docs/compiled.md.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SETUP = """
from mypyc.build import mypycify
from setuptools import setup

setup(
    name="compiled",
    packages=[],
    ext_modules=mypycify({options} + {modules}, opt_level="2", debug_level="0"),
    script_args=["--quiet", "build_ext", "--inplace"],
)
"""

# ``make lint`` is where types have to be perfect. A later release of a library must not keep anybody from building.
OPTIONS = [
    "--config-file=types.toml",
    "--no-warn-unused-ignores",
    "--no-warn-unreachable",
    "--no-warn-return-any",
    "--allow-untyped-calls",
    "--allow-untyped-decorators",
    "--allow-subclassing-any",
    "--allow-any-generics",
]


class CompileHook(BuildHookInterface[Any]):
    """``modules`` in pyproject.toml are patterns of what is compiled, ``except`` those of what is not."""

    def dependencies(self) -> list[str]:
        """The compiler, and what it has to know the types of."""
        return [*self.config["compilers"], *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile in a copy, so that nothing is left behind that would hide the files of a checkout."""
        if version == "editable":
            self.app.display_warning("an editable install is never compiled: it would not follow its files")
            return
        self._made = tempfile.TemporaryDirectory(prefix="wsrouter-compiled-")
        folder = Path(self._made.name)
        shutil.copytree(Path(self.root, "wsrouter"), folder / "wsrouter", ignore=shutil.ignore_patterns("*.so"))
        shutil.copy(Path(self.root, "pyproject.toml"), folder / "types.toml")
        modules = sorted(set(self._found(folder, "modules")) - set(self._found(folder, "except")))
        self.app.display_info(f"compiling {len(modules)} modules; this takes a minute or two")
        subprocess.run([sys.executable, "-c", SETUP.format(options=OPTIONS, modules=modules)], cwd=folder, check=True)
        for made in folder.rglob("*.so"):
            if "build" not in made.relative_to(folder).parts:
                build_data["force_include"][str(made)] = str(made.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel has them."""
        if version != "editable":
            self._made.cleanup()

    def _found(self, folder: Path, option: str) -> list[str]:
        return [str(path.relative_to(folder)) for pattern in self.config[option] for path in folder.glob(pattern)]
