"""Listeners: how a connection comes in, and where it goes.

listener    one [listener] of the configuration, running
port        binding an endpoint; unix sockets, with stale files replaced
preamble    a client's first bytes: PROXY header, admission, verdict
"""
