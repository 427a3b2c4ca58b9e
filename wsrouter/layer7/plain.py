"""What answers the plain requests of a route: files, a redirect, or a pool's HTTP proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.config.values import PathKind
from wsrouter.errors import HttpError
from wsrouter.layer7.affinity import affinity_of
from wsrouter.layer7.files import Files
from wsrouter.layer7.proxy import HttpProxy
from wsrouter.layer7.request import Handler, PlainRequest
from wsrouter.layer7.site import HeaderRules, Request
from wsrouter.policy.routing import strip
from wsrouter.wire.forwarding import compile_template, plain_fields

#: Makes the handler of one request.
Maker: TypeAlias = Callable[[Request], Handler]


def maker_for(
    route: values.Route, rules: HeaderRules, pools: Mapping[str, BackendPool], proxies: Mapping[str, HttpProxy]
) -> Maker:
    """The maker of a route; ``pools`` and their ``proxies`` are by name."""
    if route.static is not None:
        return _files(route, route.static)
    if route.redirect is not None:
        return _redirect(route.redirect)
    assert route.pool is not None
    return _proxy(route, rules, pools[route.pool], proxies[route.pool])


def _files(route: values.Route, root: Path) -> Maker:
    files = Files(root)
    prefix = route.path.text.removesuffix("/") if route.path.kind is PathKind.PREFIX else ""

    def make(request: Request) -> Handler:
        path = request.target.path[len(prefix) :]
        return lambda plain: files.serve(plain, path)

    return make


def _redirect(redirect: values.Redirect) -> Maker:
    template = compile_template(redirect.location)

    def make(request: Request) -> Handler:
        location = template.fill(request.fields())

        def handle(plain: PlainRequest) -> None:
            plain.answer(redirect.status, [(b"Location", location)])

        return handle

    return make


def _proxy(route: values.Route, rules: HeaderRules, pool: BackendPool, proxy: HttpProxy) -> Maker:
    def make(request: Request) -> Handler:
        target = request.target
        if target.path == "*" and route.strip_prefix:
            raise HttpError(404, "no route")
        forward = target.forward(strip(route, target.path))
        fields = plain_fields(request.head, request.client(), rules.fill(request))

        def handle(plain: PlainRequest) -> Awaitable[None]:
            return proxy.handle(plain, forward, fields, route.idle_timeout, affinity_of(pool, request, plain))

        return handle

    return make
