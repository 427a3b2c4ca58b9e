"""Layer 7: connections that end at the router, request by request.

certificates    the certificates of a listener, chosen by server name
termination     the TLS handshake with a client; the front follows
front           reads request heads, sends each request on its way
checks, record  whether a request may go on; what is known of it, for the log
opening         an opening handshake, to a backend and back
session         a relayed WebSocket, from the 101 to its end
pumps           what carries its frames, as its route wants it (keepalive: pings of the router's own)
message_session a WebSocket that the router ends on both sides, message by message (message_rules, judged_session)
dispatch_session one whose messages each get a backend chosen for them (branch, joining, choice, tally)
side, sides     one side of it, ended by Autobahn
filters         what sees its messages (own_filters, filter_base, word_filter, json_filter)
site, plain     what all connections share; what answers plain requests
exchange        one plain request and its answer (intake, outlet, request, quiet)
files, ranges   static files
proxy, upstream plain HTTP for a pool
"""
