"""What the pages show can be used as it stands, but for files that only their readers have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsrouter.config.reader import parse
from wsrouter.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```ini\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL), 1)
    if "[Unit]" not in text and "[Service]" not in text
]
ABSENT = re.compile(r"matches no file|is no (file|directory) that exists")


def completed(text: str) -> str:
    """The example, with the listener, routes and pools that others of the page have."""
    pools = set(re.findall(r"^\[pool (\S+)\]", text, re.MULTILINE))
    used = set(re.findall(r"^pool = (\S+)", text, re.MULTILINE))
    parts = [text]
    if "[listener " not in text:
        parts.append("[listener other]\nendpoint = tcp:8080")
    parts += [f"[pool {name}]\nbackends = 127.0.0.1:2222" for name in sorted(used - pools)]
    parts += [f"[route to-{name}]\npath = /to-{name}\npool = {name}" for name in sorted(pools - used)]
    if "[route " not in "\n".join(parts) and "[tunnel " not in text:
        parts.append("[route other]\nredirect = https://example.com/")
    return "\n".join(parts)


def faults(text: str, path: Path) -> tuple[str, ...]:
    """What is wrong with a configuration."""
    try:
        parse(text, path)
    except ConfigError as error:
        return tuple(error.faults)
    return ()


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_a_configuration(text: str, tmp_path: Path) -> None:
    assert [fault for fault in faults(completed(text), tmp_path / "router.ini") if not ABSENT.search(fault)] == []
