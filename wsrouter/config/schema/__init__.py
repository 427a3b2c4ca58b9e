"""The table of every section and option: how it is read, what its absence means, and one sentence for people.

``docs/configuration.md`` is what ``describe`` returns.
"""

from __future__ import annotations

from wsrouter.config.options import Kind
from wsrouter.config.schema.choosing import ROUTE, TUNNEL
from wsrouter.config.schema.listening import CERTIFICATE, LISTENER, ROUTER
from wsrouter.config.schema.serving import ECHO, POOL
from wsrouter.config.values import TEMPLATE_FIELDS

#: Every kind of section, in the order in which people read about them.
KINDS = (ROUTER, LISTENER, CERTIFICATE, TUNNEL, ROUTE, POOL, ECHO)

_INTRODUCTION = f"""\
# Configuration

One INI file, read once. Every fault in it is reported at once, each with its line.

- `[kind NAME]` opens a section, `option = value` sets an option. Names hold letters, digits, `_`, `.` and `-`.
- A line that is indented deeper than its option continues the value.
- `#` and `;` begin a comment at the start of a line or after a blank.
- Durations: `500ms`, `5s`, `2m`, `1h`. Sizes: `512`, `16k`, `1m`, `1g` (bytes, powers of 1024). Truth: `yes`, `no`.
- Rates: `50/s`, `300/m`, `1000/h`, with `burst=N` behind for how many may come at once; absent: the number itself.
- Networks: `10.0.0.0/8`, `2001:db8::/32`; a single address is a network of one.
- Lists: one value per line, or separated by commas; paths and headers by line only.
- Relative paths begin at the folder of the configuration file.
- Host names may be written in Unicode.
- Placeholders for `set_header` and `redirect`: {", ".join(f"`{{{word}}}`" for word in TEMPLATE_FIELDS)};
  `{{{{` and `}}}}` stand for braces.
"""


def describe() -> str:
    """The whole table as a page of Markdown: sections, options, defaults."""
    return "\n".join([_INTRODUCTION, *map(_describe_kind, KINDS)])


def _describe_kind(kind: Kind) -> str:
    page = [f"## {kind.title}", "", kind.doc, "", "| option | default | meaning |", "|---|---|---|"]
    for row in kind.options:
        default = "required" if row.required else f"`{row.default}`" if row.default else ""
        page.append(f"| `{row.name}` | {default} | {row.doc.replace('|', chr(92) + '|')} |")
    return "\n".join([*page, ""])
