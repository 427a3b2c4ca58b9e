"""The benchmark: wsrouter beside nginx and others, by CPU and memory for each unit of work. README.md explains it.

``run`` goes round; ``options`` reads the command line; ``contenders`` and ``others`` know how each proxy is configured
and started, ``proxies`` starts them; ``workloads`` names what is done with them, ``measure`` does it, by the load
generator that ``generator`` builds from ``load/``; ``report``, ``targets``, ``plots`` and ``publish`` make tables and
pictures of it.
"""
