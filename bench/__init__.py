"""The benchmark: wsrouter beside nginx and HAProxy, by CPU and memory for each unit of work. README.md explains it.

``run`` reads the options and goes round; ``contenders`` knows how each proxy is configured and started; ``measure``
takes one reading of one proxy; ``generator`` builds and calls the load generator (``load.c``); ``report`` makes tables.
"""
