"""The configuration as frozen values.

Units: durations are seconds (float), sizes are bytes (int), paths are absolute. ``None`` stands for "off"
or "absent". Host names are lower case without a final dot; a wildcard is ``*.example.com`` and stands
for one or more labels to the left of ``example.com``.
"""

from __future__ import annotations

from wsrouter.config.values.pools import Backend, BackendTls, BalanceKey, Check, Echo, Pool, Sticky
from wsrouter.config.values.sections import (
    TEMPLATE_FIELDS,
    Certificate,
    Config,
    FilterRule,
    Listener,
    Network,
    PathRule,
    Rate,
    Redirect,
    Route,
    Router,
    Tunnel,
)
from wsrouter.config.values.words import (
    Accept,
    Balance,
    CheckKind,
    ClientAuth,
    Compression,
    Dispatch,
    IdleCounts,
    KeySource,
    Log,
    Match,
    OnDown,
    OnRate,
    PathKind,
    Plain,
    SameSite,
    SendProxy,
    Session,
)

__all__ = [
    "TEMPLATE_FIELDS",
    "Accept",
    "Backend",
    "BackendTls",
    "Balance",
    "BalanceKey",
    "Certificate",
    "Check",
    "CheckKind",
    "ClientAuth",
    "Compression",
    "Config",
    "Dispatch",
    "Echo",
    "FilterRule",
    "IdleCounts",
    "KeySource",
    "Listener",
    "Log",
    "Match",
    "Network",
    "OnDown",
    "OnRate",
    "PathKind",
    "PathRule",
    "Plain",
    "Pool",
    "Rate",
    "Redirect",
    "Route",
    "Router",
    "SameSite",
    "SendProxy",
    "Session",
    "Sticky",
    "Tunnel",
]
