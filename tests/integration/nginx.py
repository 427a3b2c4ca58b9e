"""nginx as a process of a test's own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 10.0

#: What stands before every configuration: one process, all its files in ``{folder}``.
PREAMBLE = """
daemon on;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
"""
#: What stands first in ``http { }``.
HTTP = """
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""


@contextlib.contextmanager
def serving(program: str, folder: Path, configuration: str) -> Iterator[None]:
    """nginx, listening, for as long as the ``with`` block lasts; ``folder`` is its own."""
    (folder / "nginx.conf").write_text(configuration)
    run = [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    # It becomes a daemon once it has bound its ports, so there is nothing to wait for.
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    gone = os.pidfd_open(int((folder / "nginx.pid").read_text()))
    try:
        yield
    finally:
        signal.pidfd_send_signal(gone, signal.SIGTERM)
        ended = select.select([gone], [], [], PATIENCE)[0]
        os.close(gone)
        assert ended, "nginx does not end"
