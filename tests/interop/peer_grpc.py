"""gRPC's own library as a client in plain text (HTTP/2 by prior knowledge) and as a server behind TLS, which wants a client
certificate, and in every call the token that the route adds. Messages are octets: no code is generated.

Usage: peer_grpc.py BINARY | --direct
"""
import concurrent.futures, contextlib, os, threading, time

import grpc

from peers import PATIENCE, Daemon, certificates, check, folder, main, needs, read

TOKEN = "the-real-token"
LARGE = 4 << 20
LIMITS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20),
          ("grpc.max_metadata_size", 64 << 10), ("grpc.absolute_max_metadata_size", 64 << 10), ("grpc.use_local_subchannel_pool", 1)]

ROUTE = """
[routes.rpc]
upstream = "https://127.0.0.1:{port}"
tls = {{ ca = "{path}/ca.pem", cert = "{path}/client.pem", key = "{path}/client.key" }}
[routes.rpc.header]
headers = {{ "X-Auth-Token" = "{token}" }}
"""


class Service(grpc.GenericRpcHandler):
    """Every method that the checks call, and what they tell about their end."""

    def __init__(self):
        self.ended = threading.Semaphore(0)

    def service(self, details):
        metadata = [value for name, value in details.invocation_metadata if name == "x-auth-token"]
        if metadata != [TOKEN]:
            def refuse(_, context):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, f"the tokens that came: {metadata}")
            return grpc.unary_unary_rpc_method_handler(refuse)
        kind, _, method = details.method.strip("/").partition("/")
        return hasattr(self, method) and getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self, method)) or None

    def echo(self, request, context):
        context.send_initial_metadata([("first", "seen"), *self.given(context)])
        context.set_trailing_metadata([("last", "seen"), ("octets-bin", bytes(range(256)))])
        return request

    def given(self, context):
        return [(name, value) for name, value in context.invocation_metadata() if name.startswith("given")]

    def fail(self, request, context):
        context.set_trailing_metadata([("grpc-status-details-bin", request)])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so: 50 % \u4e2d\u6587\n")

    def hang(self, request, context):
        context.add_callback(self.ended.release)
        self.await_end(context)
        return b""

    def await_end(self, context):
        end = time.monotonic() + PATIENCE
        while context.is_active() and time.monotonic() < end:
            time.sleep(0.02)

    def count(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def drip(self, request, context):
        context.add_callback(self.ended.release)
        yield b"first"
        self.await_end(context)

    def sum(self, requests, context):
        return str(sum(map(int, requests))).encode()

    def first(self, requests, context):
        # Answered while the caller has more to say.
        return next(requests)

    def chat(self, requests, context):
        for request in requests:
            yield request


@contextlib.contextmanager
def server(path, service, *options):
    """A server behind TLS; gives its port."""
    pair = read(f"{path}/server.key"), read(f"{path}/server.pem")
    credentials = grpc.ssl_server_credentials([pair], read(f"{path}/ca.pem"), require_client_auth=True)
    threads = concurrent.futures.ThreadPoolExecutor(150)
    running = grpc.server(threads, [service], options=[*LIMITS, ("grpc.so_reuseport", 0), *options], compression=None)
    port = running.add_secure_port("127.0.0.1:0", credentials)
    running.start()
    try:
        yield port
    finally:
        running.stop(0).wait(PATIENCE)


def calls(channel, service, name, metadata):
    def rpc(what):
        return check(f"grpc {name}: {what}")

    def call(kind, method, said):
        return getattr(channel, kind)(f"/{kind}/{method}")(said, timeout=PATIENCE, metadata=metadata)

    def whole(method, request=b"", given=(), timeout=PATIENCE, compression=None):
        ask = channel.unary_unary(f"/unary_unary/{method}").with_call
        return ask(request, timeout=timeout, metadata=[*metadata, *given], compression=compression)

    def refused(*arguments, **options):
        try:
            whole(*arguments, **options)
        except grpc.RpcError as error:
            return error
        raise AssertionError("it succeeded")

    with rpc("unary, empty and not, metadata at both ends"):
        for message in (b"", b"hello", os.urandom(100_000)):
            reply, made = whole("echo", message)
            assert reply == message and made.code() == grpc.StatusCode.OK
            assert ("first", "seen") in made.initial_metadata(), made.initial_metadata()
            trailing = dict(made.trailing_metadata())
            assert trailing["last"] == "seen" and trailing["octets-bin"] == bytes(range(256)), trailing

    with rpc("messages of 4 MB each way, compressed too"):
        large = os.urandom(LARGE)
        assert whole("echo", large)[0] == large
        assert whole("echo", large, compression=grpc.Compression.Gzip)[0] == large

    with rpc("8 KiB of metadata each way, among them what came twice and octets"):
        given = [("given", "x" * 8192), ("given-twice", "1"), ("given-twice", "2"), ("given-bin", b"\x00\xff")]
        seen = whole("echo", b"", given)[1].initial_metadata()
        assert sorted((name, value) for name, value in seen if name.startswith("given")) == sorted(given), seen

    with rpc("streams of the server, of the client, of both"):
        assert list(call("unary_stream", "count", b"1000")) == [str(number).encode() for number in range(1000)]
        assert call("stream_unary", "sum", (str(number).encode() for number in range(1000))) == b"499500"
        big = [os.urandom(1 << 20) for _ in range(8)]
        assert list(call("stream_stream", "chat", iter(big))) == big
        assert list(call("stream_stream", "chat", iter([]))) == []

    with rpc("a conversation, one message at a time"):
        turn = threading.Semaphore(1)
        said = []

        def say():
            for number in range(100):
                assert turn.acquire(timeout=PATIENCE), "no answer"
                said.append(str(number).encode())
                yield said[-1]
        for number, answer in enumerate(call("stream_stream", "chat", say())):
            assert answer == said[number] and len(said) == number + 1
            turn.release()

    with rpc("an answer before the caller has said everything"):
        stop = threading.Event()

        def endless():
            yield b"first"
            stop.wait(PATIENCE)
        assert call("stream_unary", "first", endless()) == b"first"
        stop.set()

    with rpc("errors with message and details, and a method that there is not"):
        details = os.urandom(1000)
        error = refused("fail", details)
        assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not so: 50 % \u4e2d\u6587\n"), error
        assert dict(error.trailing_metadata())["grpc-status-details-bin"] == details
        assert refused("nothing").code() == grpc.StatusCode.UNIMPLEMENTED

    with rpc("deadlines and cancellation reach the server"):
        error = refused("hang", timeout=0.5)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert service.ended.acquire(timeout=5), "the server did not hear of the deadline"
        dripping = call("unary_stream", "drip", b"")
        assert next(dripping) == b"first"
        dripping.cancel()
        assert service.ended.acquire(timeout=5), "the server did not hear of the cancellation"

    with rpc("a hundred conversations open at once"):
        everyone = threading.Barrier(100)

        def talk(number):
            def say():
                for turn in range(5):
                    yield f"{number} {turn}".encode()
                    everyone.wait(PATIENCE)
            assert list(call("stream_stream", "chat", say())) == [f"{number} {turn}".encode() for turn in range(5)]
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            list(pool.map(talk, range(100)))

    with rpc("two thousand calls, fifty at once"):
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            for number, (reply, _) in enumerate(pool.map(lambda number: whole("echo", b"%d" % number), range(2000))):
                assert reply == b"%d" % number


def restless(channel, name, metadata):
    """A server that sends GOAWAY every second, as those behind a balancer do."""
    with check(f"grpc {name}: no call fails while the server ends its connections every second"):
        echo = channel.unary_unary("/unary_unary/echo")
        end = time.monotonic() + 4

        def one(_):
            made = 0
            while time.monotonic() < end:
                assert echo(b"still there", timeout=PATIENCE, metadata=metadata) == b"still there"
                made += 1
            return made
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(one, range(4))) > 100


def checks(binary):
    needs("openssl")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        certificates(path, "server", "client")
        service = Service()
        steady = stack.enter_context(server(path, service))
        moody = stack.enter_context(server(path, service, ("grpc.max_connection_age_ms", 1000), ("grpc.max_connection_age_grace_ms", 5000)))

        def open_channel(port, daemon):
            if daemon:
                own = [("grpc.default_authority", f"rpc.localhost:{daemon.address[1]}")]
                return grpc.insecure_channel(f"127.0.0.1:{daemon.address[1]}", options=[*LIMITS, *own])
            credentials = grpc.ssl_channel_credentials(*(read(f"{path}/{name}") for name in ("ca.pem", "client.key", "client.pem")))
            return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=LIMITS)
        name = "at the route's host" if binary else "without a proxy"
        # With a proxy in between this one must not arrive.
        metadata = [("x-auth-token", "forged" if binary else TOKEN)]
        for port in (steady, moody):
            with contextlib.ExitStack() as inner:
                daemon = binary and inner.enter_context(Daemon(binary, ROUTE.format(port=port, path=path, token=TOKEN), access=True))
                channel = inner.enter_context(open_channel(port, daemon))
                if port == steady:
                    calls(channel, service, name, metadata)
                else:
                    restless(channel, name, metadata)


if __name__ == "__main__":
    main(checks)
