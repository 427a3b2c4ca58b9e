"""Several processes on the same ports: ``workers = N``.

supervisor  the service of the first process: binds, probes, reads the configuration, and hands all of it on
fleet       keeps the workers alive, replaces them, and passes on what concerns them all
process     one worker, as the supervisor has it: its process, its channel
worker      the service of a worker, and its end of the channel (``python -m wsrouter.workers``)
control     the commands of the channel (Twisted's AMP over a pair of unix sockets, which can carry descriptors)
generation  what workers run on: a configuration with all its files, and how the backends are
lent        ports in a worker: sockets that the supervisor has bound
shared      memory that all have in common, for limits that hold for all of them
telling     the way of a worker's log to the supervisor's
"""
