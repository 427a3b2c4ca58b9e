def test_a_tunnel_echoes(router, connect, backend):
    server = backend()
    running = router(f'''
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [tunnel all]
        match = any
        pool = app
        [pool app]
        backends = {server.address}
    ''')
    client = connect(running.port("main"))
    client.send(b"\0hello")
    peer = server.accept()
    assert peer.recv_exactly(6) == b"\0hello"
    client.close()
    running.until(lambda: running.opened)
    peer.close()
    running.until(lambda: running.closed)
    entry, end = running.closed[0]
    print(entry, end)


def test_a_session_echoes(router, connect, echo_backend, authority):
    from websockets.sync.client import connect as ws
    server = echo_backend()
    running = router(f'''
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = a.pem
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
    ''', files={"a.pem": authority.issue("localhost")})
    with ws(f"wss://localhost:{running.port('main')}/", sock=__import__("socket").create_connection(("127.0.0.1", running.port())), ssl=authority.client_context()) as client:
        client.send("hello")
        assert client.recv(timeout=5) == "hello"
    assert server.closes.get(timeout=5) == (1000, "")
    running.until(lambda: running.closed)
