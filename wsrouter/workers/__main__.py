"""``python -m wsrouter.workers NUMBER COLUMN``: a worker. Only the supervisor can start one: it has the channel."""

import signal

# First of all: these are sent to all processes by a terminal or by who means the supervisor.
for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(ignored, signal.SIG_IGN)

from wsrouter.workers.worker import main  # noqa: E402

main()
