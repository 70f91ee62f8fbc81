"""The library `websockets` as a client in plain text and as a server behind TLS, which wants the token that the route adds.

Usage: peer_websocket.py BINARY | --direct
"""
import asyncio, contextlib, http, os, ssl

from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from peers import PATIENCE, Daemon, certificates, check, connections, folder, main, needs, server_context, until

TOKEN = "the-real-token"
# Longer than every timeout of the route.
PAUSE = 2.5
PATIENT = {"open_timeout": PATIENCE, "close_timeout": PATIENCE, "ping_interval": None, "max_size": 4 << 20}

ROUTE = """
[routes.ws]
upstream = "https://127.0.0.1:{port}"
listen = ["127.0.0.1:0", "unix:ws.sock"]
tls = {{ ca = "{path}/ca.pem" }}
timeouts = {{ connect = "1s", response = "1s", body = "1s", pool_idle = "1s" }}
[routes.ws.bearer]
token = "{token}"
"""


class Server:
    """Does what the path says, and keeps how connections ended."""

    def __init__(self):
        self.ends = asyncio.Queue()

    def admit(self, connection, request):
        if request.headers.get_all("Authorization") != [f"Bearer {TOKEN}"]:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no token\n")
        if request.path.startswith("/refused"):
            return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")
        return None

    async def handle(self, connection):
        path = connection.request.path
        try:
            if path == "/close":
                await connection.close(4001, "as agreed")
            elif path == "/vanish":
                connection.transport.abort()
            elif path == "/ping":
                await connection.send(str(await (await connection.ping(b"from the server")) >= 0))
            elif path == "/fragments":
                await connection.send(piece async for piece in fragments())
            elif path == "/target?q=%2F+x":
                await connection.send(path)
            async for message in connection:
                await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            await self.ends.put((connection.protocol.close_code, connection.protocol.close_reason))


async def fragments():
    for piece in ("one ", "two ", "", "three"):
        yield piece
        await asyncio.sleep(0)


async def echo(connection, message):
    await connection.send(message)
    return await connection.recv()


async def exchange(open_one, server, name):
    def ws(what):
        return check(f"websocket {name}: {what}")

    with ws("text, binary, nothing, 1 MB each way, a subprotocol, the target as it was"):
        async with open_one("/target?q=%2F+x", subprotocols=["second", "first"]) as connection:
            assert await connection.recv() == "/target?q=%2F+x"
            assert connection.subprotocol == "first", connection.subprotocol
            for message in ("text \u4e2d\u6587", b"\x00\xff", "", b"", "x" * (1 << 20), os.urandom(1 << 20)):
                assert await echo(connection, message) == message
        assert await server.ends.get() == (1000, "")

    with ws("compressed and uncompressed"):
        for compression in ("deflate", None):
            async with open_one("/", compression=compression) as connection:
                assert bool(connection.protocol.extensions) == bool(compression)
                assert await echo(connection, "abc" * 1000) == "abc" * 1000
            await server.ends.get()

    with ws("fragments both ways, as they were"):
        async with open_one("/fragments") as connection:
            assert [piece async for piece in connection.recv_streaming()] == ["one ", "two ", "", "three", ""]
            await connection.send(fragments())
            assert await connection.recv() == "one two three"
        await server.ends.get()

    with ws("ping and pong both ways"):
        async with open_one("/ping") as connection:
            assert await connection.recv() == "True"
            assert await (await connection.ping(b"from the caller")) >= 0
        await server.ends.get()

    with ws("close codes and reasons both ways"):
        async with open_one("/close") as connection:
            with contextlib.suppress(ConnectionClosed):
                await connection.recv()
            assert (connection.close_code, connection.close_reason) == (4001, "as agreed")
        await server.ends.get()
        async with open_one("/") as connection:
            await connection.close(4002, "by the caller")
        assert await server.ends.get() == (4002, "by the caller")

    with ws("who vanishes is gone for the other too"):
        async with open_one("/vanish") as connection:
            with contextlib.suppress(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1006, connection.close_code
        await server.ends.get()
        async with open_one("/") as connection:
            assert await echo(connection, "here") == "here"
            connection.transport.abort()
        assert (await server.ends.get())[0] == 1006

    with ws("fifty at once, twenty messages each"):
        async def one(number):
            async with open_one(f"/{number}") as connection:
                for turn in range(20):
                    message = f"{number} {turn} " * 100
                    assert await echo(connection, message) == message
            await server.ends.get()
        await asyncio.gather(*map(one, range(50)))

    with ws("a handshake that the server refuses is passed on"):
        try:
            async with open_one("/refused"):
                raise AssertionError("it was not refused")
        except InvalidStatus as refusal:
            assert (refusal.response.status_code, refusal.response.body) == (403, b"not you\n"), refusal.response


async def through(binary, path, port, server):
    with Daemon(binary, ROUTE.format(path=path, port=port, token=TOKEN), access=True) as daemon:
        own, shared = daemon.own["ws"], daemon.address[1]

        def door(address, **options):
            def open_one(target, **more):
                return connect(f"{address}{target}", proxy=None, **PATIENT, **options, **more)
            return open_one

        forged = {"additional_headers": {"Authorization": "Bearer forged"}}
        await exchange(door(f"ws://127.0.0.1:{own}", **forged), server, "at the route's port")
        await exchange(door(f"ws://ws.localhost:{shared}", host="127.0.0.1", port=shared), server, "at the route's host")

        with check("websocket: at the route's path, and at its Unix socket"):
            async with connect(f"ws://127.0.0.1:{shared}/ws/target?q=%2F+x", proxy=None) as connection:
                assert await connection.recv() == "/target?q=%2F+x"
            async with unix_connect(f"{daemon.folder}/ws.sock", "ws://ws/target?q=%2F+x") as connection:
                assert await connection.recv() == "/target?q=%2F+x"
            await server.ends.get()
            await server.ends.get()

        with check(f"websocket: a silence of {PAUSE} s, which no timeout of the route allows elsewhere"):
            async with door(f"ws://127.0.0.1:{own}")("/") as connection:
                assert await echo(connection, "before") == "before"
                await asyncio.sleep(PAUSE)
                assert await echo(connection, "after") == "after"
            await server.ends.get()

        with check("websocket: nothing is left open when all have gone"):
            await asyncio.to_thread(until, lambda: not connections(port), "connections to the server are still open")

        with check("websocket: another site's page is refused"):
            try:
                async with door(f"ws://127.0.0.1:{own}")("/", origin="http://elsewhere.example"):
                    raise AssertionError("it was let through")
            except InvalidStatus as refusal:
                found = refusal.response.status_code, refusal.response.headers["X-Countersign-Error"]
                assert found == (403, "cross_site"), found


async def everything(binary, path):
    server, context = Server(), server_context(path)
    # HTTP/2 comes first here, and is not what an upgrade can be asked for in: who offers it for one gets it, and nowhere.
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serve(server.handle, "127.0.0.1", 0, ssl=context, process_request=server.admit,
                     select_subprotocol=lambda _, offered: "first" if "first" in offered else None, **PATIENT) as listening:
        port = listening.sockets[0].getsockname()[1]
        if binary:
            await through(binary, path, port, server)
            return
        trust = ssl.create_default_context(cafile=f"{path}/ca.pem")

        def open_one(target, **options):
            return connect(f"wss://127.0.0.1:{port}{target}", ssl=trust, proxy=None,
                           additional_headers={"Authorization": f"Bearer {TOKEN}"}, **PATIENT, **options)
        await exchange(open_one, server, "without a proxy")


def checks(binary):
    needs("openssl")
    with folder() as path:
        certificates(path, "server")
        asyncio.run(everything(binary, path))


if __name__ == "__main__":
    main(checks)
