"""The Autobahn test suite, through the router, both ways.

``python -m conformance`` runs it (``make conformance``); README.md tells what it shows. The parts:

* ``suite`` finds or makes what the suite needs: ``python2``, an interpreter, and an environment for it;
* ``kinds`` is the table of the kinds of session, ``runs`` lets the suite, a router and a peer play one run, and
  ``programs`` are the processes that these are;
* ``peers`` are that peer: an echo server, and a client that echoes;
* ``verdicts`` judges a report, ``summary`` tells of all; both are pure.
"""
