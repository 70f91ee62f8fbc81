"""squid as the outbound proxy: it wants a password, and it alone knows where the upstreams are. Behind it stand Python's server
over TLS (through CONNECT) and in plain text (in absolute form), nghttpd, and a WebSocket server.

Usage: peer_squid.py BINARY | --direct
"""
import asyncio, contextlib, json, os

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from peer_curl import BODY, TOKEN, curl, nghttpd, python
from peers import PATIENCE, Daemon, certificates, check, folder, free_port, is_open, main, needs, read, run, server_context, service
from peers import tail, until

USER, PASSWORD = "corp user", "p@ss/word:%"
# The same as a URL spells them.
USERINFO, WRONG = "corp%20user:p%40ss%2Fword%3A%25", "corp%20user:not-it"

CONFIGURATION = """
http_port 127.0.0.1:{port}
hosts_file {path}/hosts
dns_nameservers 127.0.0.1
dns_timeout 1 second
dns_retransmit_interval 1 second
auth_param basic program /usr/lib/squid/basic_ncsa_auth {path}/passwords
auth_param basic children 2
acl known proxy_auth REQUIRED
acl forbidden dstdomain forbidden.test
http_access deny forbidden
http_access allow known
http_access deny all
cache deny all
access_log stdio:{path}/squid/access.log
cache_log {path}/squid/cache.log
pid_filename {path}/squid/pid
coredump_dir {path}/squid
shutdown_lifetime 0 seconds
pinger_enable off
"""

ROUTE = """
[routes.{name}]
upstream = "{upstream}"
listen = ["127.0.0.1:0"]
{trust}
{proxy}
[routes.{name}.header]
headers = {{ "X-Auth-Token" = "{token}" }}
"""


class Squid:
    """A squid of our own, and what its log says of a name."""

    def __init__(self, path):
        self.port, self.log = free_port(), f"{path}/squid/access.log"
        os.makedirs(f"{path}/squid")
        # Started by root, it becomes somebody else.
        os.chmod(f"{path}/squid", 0o777)
        password = run(["openssl", "passwd", "-apr1", PASSWORD]).decode().strip()
        for name, text in (("hosts", "127.0.0.1 upstream.test forbidden.test\n"), ("passwords", f"{USER}:{password}\n"),
                           ("squid.conf", CONFIGURATION.format(port=self.port, path=path))):
            with open(f"{path}/{name}", "w") as file:
                file.write(text)
        self.service = service(["squid", "-N", "-f", f"{path}/squid.conf"], f"{path}/squid.log", lambda: is_open(self.port))

    def lines(self, *words):
        """The lines of the log that have all these words in them."""
        return [line for line in read(self.log).decode().splitlines() if all(word in line for word in words)]

    def __enter__(self):
        self.service.__enter__()
        return self

    def __exit__(self, *reason):
        return self.service.__exit__(*reason)


def is_refused(url, *words):
    """Asks for something that must end with 502, and looks at what is said of it."""
    answer = curl("--include", f"{url}/small").decode()
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 502 ") and "x-countersign-error: upstream_" in head.lower(), answer
    message = json.loads(body)["error"]["message"]
    assert all(word in message for word in words), message
    # "not-it" is the password that squid refused.
    assert "not-it" not in answer and PASSWORD not in answer and USERINFO not in answer, answer


async def echoes(connection):
    async for message in connection:
        await connection.send(message)


async def tunnel_in_a_tunnel(path, start):
    """A WebSocket through us, and through squid."""
    def admit(connection, request):
        if request.headers.get_all("X-Auth-Token") != [TOKEN]:
            return connection.respond(401, "")

    async with serve(echoes, "127.0.0.1", 0, ssl=server_context(path), process_request=admit) as server:
        with start(f"https://upstream.test:{server.sockets[0].getsockname()[1]}") as daemon:
            async with connect(f"ws://127.0.0.1:{daemon.own['tls']}", proxy=None) as connection:
                for message in ("text", os.urandom(100_000)):
                    await connection.send(message)
                    assert await connection.recv() == message


def checks(binary):
    needs("squid", "curl", "nghttpd", "openssl")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        certificates(path, "server")
        os.mkdir(f"{path}/files")
        for name, size in (("body", BODY), ("small", 10)):
            with open(f"{path}/files/{name}", "wb") as file:
                file.write(os.urandom(size))
        body, small = read(f"{path}/files/body"), read(f"{path}/files/small")
        ports = {"tls": stack.enter_context(python(path)), "plain": stack.enter_context(python(path, tls=False)),
                 "http2": stack.enter_context(nghttpd(path, f"{path}/nghttpd.log"))}
        squid = stack.enter_context(Squid(path))
        known, unknown = (f"http://{user}@127.0.0.1:{squid.port}" for user in (USERINFO, WRONG))
        upstream = {name: f"http{'s' * (name != 'plain')}://upstream.test:{port}" for name, port in ports.items()}

        if not binary:
            with check("squid without us: a password is wanted, CONNECT, absolute form"):
                asked = ["--header", f"X-Auth-Token: {TOKEN}", "--cacert", f"{path}/ca.pem", "--proxy", f"http://127.0.0.1:{squid.port}"]
                for url in upstream.values():
                    assert curl(*asked, "--proxy-user", f"{USER}:{PASSWORD}", f"{url}/body") == body
                    curl(*asked, "--fail", f"{url}/body", expect=22)
                    assert squid.lines("TCP_DENIED/407"), tail(squid.log)
            return

        def route(name, upstream, proxy=None):
            trust = f'tls = {{ ca = "{path}/ca.pem" }}' if upstream.startswith("https") else "plaintext = true"
            return ROUTE.format(name=name, upstream=upstream, trust=trust, proxy=f'proxy = "{proxy}"' if proxy else "", token=TOKEN)

        def start(proxy=None, server="", environment={}, upstream=upstream, **more):
            routes = "".join(route(name, url, proxy) for name, url in upstream.items())
            return Daemon(binary, routes + "".join(more.values()), server, access=True, environment=environment)

        def address(daemon, name):
            return f"http://127.0.0.1:{daemon.own[name]}"

        with start(known) as daemon:
            for name, how in (("tls", "through CONNECT"), ("plain", "in absolute form"), ("http2", "HTTP/2 through CONNECT")):
                with check(f"squid: {how}, {BODY >> 20} MB each way"):
                    assert curl(f"{address(daemon, name)}/body") == body
                    assert curl("--upload-file", f"{path}/files/body", f"{address(daemon, name)}/put") == body
            with check("squid: one connection through it serves many requests"):
                for number in range(20):
                    assert curl(f"{address(daemon, 'tls')}/small?{number}") == small
        with check("squid: its log has what was asked for, and who asked"):
            tunnel = f" CONNECT upstream.test:{ports['tls']} {USER} "
            until(lambda: squid.lines(tunnel), f"no CONNECT:\n{tail(squid.log)}")
            # A pool for each of the daemon's threads.
            assert len(squid.lines(tunnel)) <= os.cpu_count(), tail(squid.log)
            for asked in ("GET {}/body", "PUT {}/put"):
                assert squid.lines(f" {asked.format(upstream['plain'])} {USER} "), tail(squid.log)
            assert not squid.lines("TCP_DENIED/407"), tail(squid.log)

        with check("squid: a WebSocket through CONNECT"):
            asyncio.run(tunnel_in_a_tunnel(path, lambda url: start(known, upstream={"tls": url})))

        near = route("near", f"https://127.0.0.1:{ports['tls']}", "none")
        with check("squid: set for the server, and not for one route"), start(server=f'proxy = "{known}"', near=near) as daemon:
            for name in ("tls", "plain", "near"):
                assert curl(f"{address(daemon, name)}/small") == small
            assert not squid.lines(f"127.0.0.1:{ports['tls']}"), tail(squid.log)

        near = route("near", f"https://127.0.0.1:{ports['tls']}", "env")
        environment = {"https_proxy": known, "http_proxy": known, "no_proxy": "127.0.0.1"}
        with check("squid: set in the environment, and not for what no_proxy names"), start("env", "", environment, near=near) as daemon:
            for name in ("tls", "plain", "near"):
                assert curl(f"{address(daemon, name)}/small") == small
            assert not squid.lines(f"127.0.0.1:{ports['tls']}"), tail(squid.log)

        with check("squid: a wrong password, through CONNECT and in absolute form"), start(unknown) as daemon:
            for name in ("tls", "plain"):
                is_refused(address(daemon, name), "407")
            until(lambda: len(squid.lines("TCP_DENIED/407")) >= 2, tail(squid.log))

        with check("squid: an upstream that it forbids, that it does not find, that is not there"):
            for authority, word in (("forbidden.test", "does not allow"), ("nowhere.test", "cannot reach"),
                                    (f"upstream.test:{free_port()}", "cannot reach")):
                with start(known, upstream={"tls": f"https://{authority}"}) as daemon:
                    is_refused(address(daemon, "tls"), word)

        with check("squid: no proxy where one should be"):
            with start(f"http://{USERINFO}@127.0.0.1:{free_port()}") as daemon:
                for name in ("tls", "plain"):
                    is_refused(address(daemon, name), "proxy")


if __name__ == "__main__":
    main(checks)
