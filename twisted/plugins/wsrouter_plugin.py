"""Tells ``twistd`` that there is a ``wsrouter`` command; everything else lies in the wsrouter package."""

from twisted.application.service import ServiceMaker

wsrouter = ServiceMaker(
    "wsrouter",
    "wsrouter.tap",
    "A reverse proxy and load balancer for WebSockets: layer 4 and layer 7 on one port",
    "wsrouter",
)
