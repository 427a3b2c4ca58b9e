"""The contenders that take part where they are installed.

Caddy, node with http-proxy, and for messages mitmproxy and a bare pair of Autobahn's protocols. ``programs/`` holds
what the last three run.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.setups import HTTP, MESSAGE, PROGRAMS, RELAY, WSS, Contender, Setup, Tools, first_line, missing_tool


def caddy(setup: Setup) -> list[str]:
    """Caddy, which sees that it has one CPU; nothing is kept outside the folder of the run."""
    pem = setup.certificate
    site = f"https://bench.test:{setup.port}" if setup.work == WSS else f"http://:{setup.port}"
    path = setup.write(
        "Caddyfile",
        f"""\
{{
    admin off
    auto_https off
    persist_config off
    log default {{
        level ERROR
    }}
}}
{site} {{
    bind 127.0.0.1
    {f"tls {pem} {pem}" if setup.work == WSS else ""}
    reverse_proxy 127.0.0.1:{setup.backend_port}
}}
""",
    )
    homes = [f"{name}={setup.folder}" for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")]
    return ["env", *homes, setup.tools.find("caddy"), "run", "--config", str(path), "--adapter", "caddyfile"]


def http_proxy(setup: Setup) -> list[str]:
    """Node's http-proxy, which adds X-Forwarded headers."""
    program = [str(PROGRAMS / "http_proxy.js"), str(setup.port), str(setup.backend_port)]
    certificate = [str(setup.certificate)] if setup.work == WSS else []
    return ["env", f"NODE_PATH={_modules(setup.tools)}", setup.tools.find("node"), *program, *certificate]


def _modules(tools: Tools) -> str:
    """The folder of modules that holds http-proxy, or nothing: as named, or from NODE_PATH."""
    folders = [tools.named["http-proxy"]] if "http-proxy" in tools.named else os.environ.get("NODE_PATH", "").split(":")
    return next((folder for folder in folders if folder and (Path(folder) / "http-proxy/package.json").exists()), "")


def _missing_http_proxy(tools: Tools) -> str:
    if not tools.find("node"):
        return "node is not installed"
    return (
        ""
        if _modules(tools)
        else "http-proxy is in no folder of NODE_PATH (--tool http-proxy=FOLDER/node_modules names it)"
    )


def _http_proxy_version(tools: Tools) -> str:
    facts = "console.log('http-proxy', require(process.argv[1]).version, 'on node', process.version)"
    return first_line(tools.find("node"), "-e", facts, f"{_modules(tools)}/http-proxy/package.json")


def mitmproxy(setup: Setup) -> list[str]:
    """Mitmproxy in reverse mode with an addon that reads each message; no log, and no files in the user's home."""
    return [
        setup.tools.find("mitmdump"),
        *("--mode", f"reverse:http://127.0.0.1:{setup.backend_port}"),
        *("--listen-host", "127.0.0.1", "--listen-port", str(setup.port)),
        *("--set", f"confdir={setup.folder}", "--quiet", "--scripts", str(PROGRAMS / "read_messages.py")),
    ]


def autobahn(setup: Setup) -> list[str]:
    """An Autobahn server and client for each session, on Twisted's own transports."""
    return [str(setup.tools.python), str(PROGRAMS / "autobahn_pair.py"), str(setup.port), str(setup.backend_port)]


def _missing_autobahn(tools: Tools) -> str:
    found = first_line(tools.python, "-c", "import autobahn.twisted.websocket; print('there')")
    return "" if found == "there" else f"{tools.python} has no autobahn"


def _autobahn_version(tools: Tools) -> str:
    facts = "import autobahn, twisted; print('Autobahn', autobahn.__version__, 'on Twisted', twisted.__version__)"
    return first_line(tools.python, "-c", facts)


OTHERS = (
    Contender(
        "caddy",
        (RELAY, WSS, HTTP),
        missing_tool("caddy"),
        lambda tools: "Caddy " + first_line(tools.find("caddy"), "version").partition(" ")[0],
        caddy,
    ),
    Contender("http-proxy", (RELAY, WSS, HTTP), _missing_http_proxy, _http_proxy_version, http_proxy),
    Contender(
        "mitmproxy",
        (MESSAGE,),
        missing_tool("mitmdump"),
        lambda tools: first_line(tools.find("mitmdump"), "--version"),
        mitmproxy,
    ),
    Contender("autobahn", (MESSAGE,), _missing_autobahn, _autobahn_version, autobahn),
)
