import gc, weakref, socket, pytest
from wsrouter.config.values import *
from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import *
from wsrouter.live.connection import Connection
from wsrouter.layer4.tunnel import Layer4, Tunnel as T4
from wsrouter.config.values import Tunnel
from wsrouter.layer7.session import RelaySession
from wsrouter.config.values import Route, PathRule, PathKind
import wsrouter.relay.leg, wsrouter.relay.pump, wsrouter.relay.tls, wsrouter.backends.dial
from wsrouter.backends.pool import Attempt

KINDS = (wsrouter.relay.leg.Leg, wsrouter.relay.pump.Pump, RelaySession, T4, wsrouter.backends.dial.Dial, Attempt)
def alive():
    return [o for o in gc.get_objects() if isinstance(o, KINDS)]

class Obs:
    def __init__(s): s.ends=[]
    def opened(s,e): pass
    def closed(s,e,end): s.ends.append(end)
    def refused(s,r): s.ends.append(r)

@pytest.mark.parametrize("how", ["fin","reset","backend","silent", "refused", "gone-while-dialling"])
def test_tunnel_leak(rig, how):
    server = socket.create_server(("127.0.0.1",0)); server.settimeout(2)
    rig.sockets.append(server)
    b = Backend(*server.getsockname())
    if how == "refused": server.close()
    pool = BackendPool(rig.relay, Pool("p",(b,)), Discovery(rig.reactor, None, [b]))
    reg = Registry(); o=Obs(); reg.observers.append(o)
    room = Layer4(rig.relay, reg, {"p":pool}, IdleSweeper(rig.reactor))
    gc.collect(); gc.disable()
    base = len(alive())
    try:
        leg, peer = rig.leg()
        room.open(leg, Connection(1,"1.1.1.1",1,"main"), Tunnel("t","p",Match.ANY), b"hello")
        back=None
        if how=="gone-while-dialling":
            leg.abortConnection()
        elif how != "refused":
            rig.until(lambda: reg.entries)
            back,_=server.accept(); assert back.recv(10)==b"hello"
            if how=="fin": peer.finish(); rig.settle(); back.close()
            elif how=="reset": peer.reset()
            elif how=="backend": back.close()
            elif how=="silent": [rig.advance(100) for _ in range(45)]
        rig.settle(); rig.advance(3); rig.settle()
        if how=="backend": peer.close(); rig.settle(); rig.advance(3)
        if how=="refused": peer.close(); rig.settle(); rig.advance(3)
        print(how, o.ends, pool.live, rig.relay.members)
        assert not rig.relay.members and pool.live=={b:0} and not reg.entries
        for s in rig.sockets[1:]: s.close()
        if back: back.close()
        del rig.sockets[1:]; rig.peers.clear(); del leg, peer, back
        left = alive()
        assert len(left) <= base, left
    finally: gc.enable()

def frame(n, mask=False):
    return b"\x82" + (b"\xfe" if mask else b"\x7e") + n.to_bytes(2,"big") + (b"\0\0\0\0" if mask else b"") + b"A"*n

@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("how", ["close","vanish","reset","violate","drain-mid","abort"])
def test_session(rig, how, tls):
    b = Backend("127.0.0.1", 1)
    pool = BackendPool(rig.relay, Pool("p",(b,)), Discovery(rig.reactor, None, [b]))
    pool.take(b)
    reg = Registry(); o=Obs(); reg.observers.append(o)
    gc.collect(); gc.disable()
    base=len(alive())
    try:
        cl, cp = (rig.tls_leg if tls else rig.leg)(); sl, sp = rig.leg()
        s = RelaySession(rig.relay, reg, IdleSweeper(rig.reactor), Route("r", PathRule(PathKind.PREFIX,"/")), pool, b, Connection(1,"1.1.1.1",1,"main"), Facts(Kind.SESSION,"","","","","","",0.0), cl, sl, deflate=False)
        s.run(b"", b"101 ", b"")
        got = lambda p: bytes(getattr(p,"plain",p.received))
        sp.send(frame(1000)); rig.until(lambda: len(got(cp))==1008)
        if how=="close":
            cp.send(b"\x88\x80\0\0\0\0"); rig.until(lambda: sp.received); sp.send(b"\x88\x00"); rig.until(lambda: got(cp).endswith(b"\x88\x00"))
        elif how=="vanish": cp.close()
        elif how=="reset": sp.reset()
        elif how=="violate": cp.send(frame(10)*3)
        elif how=="abort": s.abort()
        elif how=="drain-mid":
            f=frame(1000)
            sp.send(f[:500]); rig.until(lambda: len(got(cp))==1508)
            s.end(1001,"drain")
            sp.send(f[500:]+frame(1000)[:14]); rig.settle()
            sp.send(frame(1000)[14:]); rig.settle()
            assert got(cp)[1008:] == f + b"\x88\x02\x03\xe9", got(cp)[1008:][-50:]
        rig.settle(); print(how, tls, o.ends, got(cp)[-6:], bytes(sp.received[-10:]))
        for p in (cp,sp): p.close()
        rig.settle(); rig.advance(6); rig.settle(); rig.advance(6); rig.advance(3)
        assert not rig.relay.members and not reg.entries and pool.live=={b:0}
        for x in rig.sockets: x.close()
        rig.sockets.clear(); rig.peers.clear(); del cl,cp,sl,sp,s, got
        if "p" in dir(): del p
        if "x" in dir(): del x
        left=alive()
        assert len(left)<=base, (left)
    finally: gc.enable()
