"""``python -m wsrouter.workers NUMBER``: a worker. The supervisor starts it; nobody else has a channel for it."""

from wsrouter.workers.worker import main

main()
