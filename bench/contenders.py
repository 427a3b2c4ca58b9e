"""The proxies that are measured: for each, the configuration and the command that starts it as one process.

All do the same work: no access log, no timeout within a run, forwarding headers on layer 7, the TLS defaults of the
product. What differs from a product's defaults is written out here and nowhere else.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TUNNEL, RELAY, WSS = "tunnel", "relay", "wss"
PROTOCOLS = {TUNNEL: "tcp", RELAY: "ws", WSS: "wss"}
"""Each kind of work, and the load generator's name for what its clients speak."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What one started proxy needs to know; ``sessions`` is the most that will be live at once."""

    folder: Path
    work: str
    port: int
    backend_port: int
    sessions: int
    certificate: Path
    python: Path

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file into the folder of this run."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the tables. ``command`` writes the configuration and returns the command line.

    ``missing`` says why the contender cannot run here, or nothing; ``version`` is what it calls itself.
    """

    name: str
    works: tuple[str, ...]
    missing: Callable[[Path], str]
    version: Callable[[Path], str]
    command: Callable[[Setup], list[str]]


def nginx(setup: Setup) -> list[str]:
    """Nginx as one process (``master_process off``); HTTP module for layer 7, stream module for layer 4."""
    listen = f"listen 127.0.0.1:{setup.port} {'ssl' if setup.work == WSS else ''} backlog=4096;"
    if setup.work == TUNNEL:
        body = f"stream {{ server {{ {listen} proxy_pass 127.0.0.1:{setup.backend_port}; proxy_timeout 1h; }} }}"
    else:
        pem = setup.certificate
        tls = f"ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {pem}; ssl_certificate_key {pem};"
        temporary = " ".join(
            f"{kind}_temp_path {setup.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        body = f"""\
http {{
    access_log off;
    {temporary}
    server {{
        {listen}
        {tls if setup.work == WSS else ""}
        location / {{
            proxy_pass http://127.0.0.1:{setup.backend_port};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }}
    }}
}}"""
    path = setup.write(
        "nginx.conf",
        f"""\
{_nginx_modules()}
daemon off;
master_process off;
worker_processes 1;
pid {setup.folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections {2 * setup.sessions + 512}; }}
{body}
""",
    )
    return [_tool("nginx"), "-e", "stderr", "-p", f"{setup.folder}/", "-c", str(path)]


def _nginx_modules() -> str:
    """Load the stream module where a distribution ships it apart (Debian); elsewhere it is built in."""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    return f"load_module {module};" if module.exists() else ""


def haproxy(setup: Setup) -> list[str]:
    """HAProxy with one thread, in the foreground."""
    tls = f"ssl crt {setup.certificate} alpn http/1.1" if setup.work == WSS else ""
    http = (
        ""
        if setup.work == TUNNEL
        else "option forwardfor\n    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]"
    )
    path = setup.write(
        "haproxy.cfg",
        f"""\
global
    nbthread 1
    maxconn {setup.sessions + 256}
defaults
    mode {"tcp" if setup.work == TUNNEL else "http"}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
frontend main
    bind 127.0.0.1:{setup.port} {tls} backlog 4096
    {http}
    default_backend back
backend back
    server one 127.0.0.1:{setup.backend_port}
""",
    )
    return [_tool("haproxy"), "-db", "-f", str(path)]


def wsrouter(setup: Setup) -> list[str]:
    """The router as one process under twistd, which lies beside the interpreter."""
    if setup.work == TUNNEL:
        rule = "[tunnel raw]\nmatch = any\npool = back"
    else:
        rule = "[route app]\npath = /\npool = back"
    path = setup.write(
        "router.ini",
        f"""\
[router]
access_log = off
[listener main]
endpoint = tcp:{setup.port}:interface=127.0.0.1
{f"certificates = {setup.certificate}" if setup.work == WSS else ""}
{rule}
[pool back]
backends = 127.0.0.1:{setup.backend_port}
""",
    )
    twistd = setup.python.parent / "twistd"
    return [str(setup.python), str(twistd), "-n", "--pidfile=", "wsrouter", "--config", str(path)]


def _tool(name: str) -> str:
    """Path of a proxy's binary, which lies outside the search path of most users; empty where there is none."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin") or ""


def _missing_tool(name: str) -> Callable[[Path], str]:
    return lambda _python: "" if _tool(name) else f"{name} is not installed"


def _missing_router(python: Path) -> str:
    twistd = python.parent / "twistd"
    if not twistd.exists():
        return f"there is no {twistd}: install wsrouter for this interpreter or name another with --python"
    known = subprocess.run([python, twistd, "--help"], capture_output=True, text=True, check=False).stdout
    commands = [line.split()[0] for line in known.splitlines() if line.strip()]
    return "" if "wsrouter" in commands else f"{twistd} does not know wsrouter"


def _first_line(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr).strip().partition("\n")[0]


def _router_version(python: Path) -> str:
    facts = "import platform, wsrouter; print('wsrouter', wsrouter.__version__, 'on Python', platform.python_version())"
    return _first_line(python, "-c", facts)


CONTENDERS = (
    Contender(
        "nginx",
        (TUNNEL, RELAY, WSS),
        _missing_tool("nginx"),
        lambda _python: _first_line(_tool("nginx"), "-v"),
        nginx,
    ),
    Contender(
        "haproxy",
        (TUNNEL, RELAY, WSS),
        _missing_tool("haproxy"),
        lambda _python: _first_line(_tool("haproxy"), "-v"),
        haproxy,
    ),
    Contender("wsrouter", (TUNNEL, RELAY, WSS), _missing_router, _router_version, wsrouter),
    Contender("floor", (TUNNEL, RELAY), lambda _python: "", lambda _python: "no proxy at all", lambda _setup: []),
)
"""In the order in which they take turns. An empty command means that the clients talk to the backend directly."""
