"""``python -m wsrouter.workers NUMBER COLUMN``: a worker. Only the supervisor can start one: it has the channel."""

from wsrouter.workers.worker import main

main()
