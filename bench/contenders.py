"""The proxies that are measured: for each, the configuration and the command that starts it as one process.

All do the same work: no access log, no timeout within a run, forwarding headers on layer 7, the TLS defaults of the
product. What differs from a product's defaults is written out here and in ``others.py``, and nowhere else.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.others import OTHERS
from bench.setups import HTTP, MESSAGE, RELAY, TUNNEL, WSS, Contender, Setup, Tools, first_line, missing_tool

TUNED_BUFFER = "128k"
"""A power of two that holds a message of 64 KB and its frame's header, so that one read takes the whole of it."""

POLICIES = """\
max_message = 16m
max_fragments = 1024
message_rate = 1000000/s burst=1000000
byte_rate = 64g/s burst=64g
ping = 5m
backend_ping = 5m"""
"""All that a relay session can be told to watch, with limits that nothing here reaches."""


CORES = 2
"""Processes of those that use more than one CPU: there are two, the proxy's and the generator's."""


def nginx(setup: Setup, tuning: str = "", workers: int = 1) -> list[str]:
    """Nginx as one process (``master_process off``) or with several workers.

    The HTTP module serves layer 7, the stream module layer 4.
    """
    listen = f"listen 127.0.0.1:{setup.port} {'ssl' if setup.work == WSS else ''} backlog=4096;"
    if setup.work == TUNNEL:
        to = f"proxy_pass 127.0.0.1:{setup.backend_port};"
        body = f"stream {{ server {{ {listen} {to} proxy_timeout 1h; {tuning} }} }}"
    else:
        pem = setup.certificate
        tls = f"ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {pem}; ssl_certificate_key {pem};"
        temporary = " ".join(
            f"{kind}_temp_path {setup.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # Plain requests share connections to the backend; sessions have one each.
        shared = setup.work == HTTP
        upstream = f"upstream back {{ server 127.0.0.1:{setup.backend_port}; keepalive 32; }}" if shared else ""
        upgrade = "" if shared else "proxy_set_header Upgrade $http_upgrade;"
        body = f"""\
http {{
    access_log off;
    keepalive_requests 1000000000;
    {temporary}
    {upstream}
    server {{
        {listen}
        {tls if setup.work == WSS else ""}
        location / {{
            proxy_pass http://{"back" if shared else f"127.0.0.1:{setup.backend_port}"};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            {upgrade}
            proxy_set_header Connection "{"" if shared else "upgrade"}";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
            {tuning}
        }}
    }}
}}"""
    path = setup.write(
        "nginx.conf",
        f"""\
{_nginx_modules()}
daemon off;
master_process {"on" if workers > 1 else "off"};
worker_processes {workers};
pid {setup.folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections {2 * setup.sessions + 512}; }}
{body}
""",
    )
    return [setup.tools.find("nginx"), "-e", "stderr", "-p", f"{setup.folder}/", "-c", str(path)]


def nginx_cores(setup: Setup) -> list[str]:
    """Nginx with a worker for each CPU."""
    return nginx(setup, workers=CORES)


def nginx_tuned(setup: Setup) -> list[str]:
    """Nginx with buffers for large messages.

    Of an upgraded connection and of a stream, ``proxy_buffer_size`` is the buffer of each direction. The HTTP module
    only wants the others to be no smaller. ``ssl_buffer_size`` is 16k already, a whole TLS record.
    """
    size = f"proxy_buffer_size {TUNED_BUFFER};"
    return nginx(setup, size if setup.work == TUNNEL else f"{size} proxy_buffers 4 {TUNED_BUFFER};")


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
    return [setup.tools.find("haproxy"), "-db", "-f", str(path)]


def wsrouter(setup: Setup, policies: str = "", workers: int = 1) -> list[str]:
    """The router under twistd, which lies beside the interpreter, as one process or with several workers."""
    if setup.work == TUNNEL:
        rule = "[tunnel raw]\nmatch = any\npool = back"
    else:
        kind = {MESSAGE: "session = message\n", HTTP: "accept = http\n"}.get(setup.work, "")
        rule = f"[route app]\npath = /\npool = back\n{kind}{policies}"
    path = setup.write(
        "router.ini",
        f"""\
[router]
access_log = off
workers = {workers}
[listener main]
endpoint = tcp:{setup.port}:interface=127.0.0.1
{f"certificates = {setup.certificate}" if setup.work == WSS else ""}
{rule}
[pool back]
backends = 127.0.0.1:{setup.backend_port}
""",
    )
    python = setup.tools.python
    return [str(python), str(python.parent / "twistd"), "-n", "--pidfile=", "wsrouter", "--config", str(path)]


def wsrouter_cores(setup: Setup) -> list[str]:
    """The router with a worker for each CPU."""
    return wsrouter(setup, workers=CORES)


def policed(setup: Setup) -> list[str]:
    """The router with all the policies that frame headers can serve."""
    return wsrouter(setup, POLICIES)


ROOT = Path(__file__).parent.parent
COMPILED = ROOT / "build" / "compiled"
"""Where ``make compiled`` puts it."""


def compiled(setup: Setup) -> list[str]:
    """The router with its data path compiled; see docs/compiled.md."""
    return ["/usr/bin/env", f"PYTHONPATH={COMPILED}", *wsrouter(setup)]


def _missing_compiled(tools: Tools) -> str:
    for path in (ROOT / "wsrouter").rglob("*.py"):
        copy = COMPILED / path.relative_to(ROOT)
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            return "it is not what make compiled would build now"
    # What was compiled for one version of Python is not there for another.
    facts = "import wsrouter.wire.frames as m; print(m.__file__)"
    found = first_line("/usr/bin/env", f"PYTHONPATH={COMPILED}", tools.python, "-P", "-c", facts)
    return "" if found.startswith(str(COMPILED)) and not found.endswith(".py") else "make compiled builds it"


def _missing_router(tools: Tools) -> str:
    twistd = tools.python.parent / "twistd"
    if not twistd.exists():
        return f"there is no {twistd}: install wsrouter for this interpreter or name another with --python"
    known = subprocess.run([tools.python, twistd, "--help"], capture_output=True, text=True, check=False).stdout
    commands = [line.split()[0] for line in known.splitlines() if line.strip()]
    return "" if "wsrouter" in commands else f"{twistd} does not know wsrouter"


def _router_version(tools: Tools) -> str:
    facts = "import platform, wsrouter; print('wsrouter', wsrouter.__version__, 'on Python', platform.python_version())"
    return first_line(tools.python, "-c", facts)


def _nginx_version(tools: Tools) -> str:
    return first_line(tools.find("nginx"), "-v")


def _haproxy_version(tools: Tools) -> str:
    return first_line(tools.find("haproxy"), "-v")


_ALL = (TUNNEL, RELAY, WSS)
_EVERY = (*_ALL, HTTP)

CONTENDERS = (
    Contender("nginx", _EVERY, missing_tool("nginx"), _nginx_version, nginx),
    Contender("nginx-tuned", _ALL, missing_tool("nginx"), _nginx_version, nginx_tuned),
    Contender("haproxy", _EVERY, missing_tool("haproxy"), _haproxy_version, haproxy),
    *OTHERS,
    Contender("wsrouter", (*_EVERY, MESSAGE), _missing_router, _router_version, wsrouter),
    Contender("wsrouter-compiled", (*_EVERY, MESSAGE), _missing_compiled, _router_version, compiled),
    Contender("wsrouter-policed", (RELAY,), _missing_router, _router_version, policed),
    Contender("nginx-cores", _ALL, missing_tool("nginx"), _nginx_version, nginx_cores, cores=True),
    Contender("wsrouter-cores", (*_ALL, MESSAGE), _missing_router, _router_version, wsrouter_cores, cores=True),
    Contender("floor", _ALL, lambda _tools: "", lambda _tools: "no proxy at all", lambda _setup: []),
)
"""In the order in which they take turns. An empty command means that the clients talk to the backend directly."""
