"""Real programs as callers: each does a list of requests in its own way, and says what came back."""
import base64, hashlib, os, re, ssl, subprocess, tempfile
from dataclasses import dataclass

import httpx, requests

from peers import PATIENCE, read, run

# A Java that starts soon: none of ours runs long.
os.environ["JAVA_TOOL_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
HERE = os.path.dirname(os.path.abspath(__file__))


def pattern(size):
    """The octets that every program sends as a body."""
    return (b"countersign " * (size // 12 + 1))[:size]


@dataclass
class Ask:
    """A request. `host` is a name to say instead of the URL's, `proxy` where to say all of it, `again` is done three times."""

    name: str
    method: str
    url: str
    size: int | None = None
    framing: str = ""
    host: str = ""
    socket: str = ""
    proxy: str = ""
    follows: bool = False

    @property
    def body(self):
        return None if self.size is None else pattern(self.size)

    @property
    def times(self):
        return 3 if self.name == "again" else 1

    def line(self, program):
        size = "" if self.size is None else str(self.size)
        words = [program, self.name, self.method, self.url, self.host, self.socket, self.proxy, size, self.framing]
        return "\t".join([*words, "follow" if self.follows else ""])


@dataclass
class Told:
    """What a program says came back: status 0 and the trouble as `digest` where nothing did. `reused` is "" if it cannot say."""

    status: int
    digest: str
    location: str = ""
    length: str = ""
    error: str = ""
    reused: str = ""
    start: bytes = b""


def told(status, headers, body, reused=""):
    """The same out of a reply's parts."""
    given = [headers.get(name) or "" for name in ("location", "content-length", "x-countersign-error")]
    return Told(status, hashlib.sha256(body).hexdigest(), *given, reused, body[:1000])


class Program:
    """A program. `cannot` has the doors and the kinds of requests that are not for it, and why."""

    cannot = {}
    # Whether it goes where a Location says by itself.
    follows = True
    # Whether it looks names up with getaddrinfo(3), as nearly all do.
    asks_the_system = True
    # Whether it sends a Host header that it is given.
    can_say_host = True

    def __str__(self):
        return self.name


class Command(Program):
    """A program that is started anew for each request."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "HOME": folder, "LC_ALL": "C.UTF-8"}

    def tell(self, asks):
        return [self.ask(ask) for ask in asks]

    def ask(self, ask):
        with tempfile.TemporaryDirectory(dir=self.folder) as path:
            with open(f"{path}/sent", "wb") as file:
                file.write(ask.body or b"")
            environment = {"http_proxy": f"http://{ask.proxy}"} if ask.proxy else {}
            done = subprocess.run(self.command(ask, path), stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * PATIENCE,
                                  env={**self.environment, **environment})
            log = done.stderr.decode(errors="replace")
            bodies = [read(f"{path}/{file}") for file in sorted(os.listdir(path)) if file.startswith("body")]
        # The last head of several, unless it is a 100 (Continue).
        starts = [found for found in re.finditer(r"^(?:< |  )HTTP/1\.1 (\d+)", log, re.M) if found[1] != "100"]
        if not starts:
            return Told(0, log.strip())
        fields = re.findall(r"^(?:< |  )([\w-]+): (.*?)\r?$", log[starts[-1].start():], re.M)
        headers = {name.lower(): value for name, value in fields}
        body = b"".join(bodies)
        if ask.method == "HEAD":
            body = b""
        assert body == body[:len(body) // ask.times] * ask.times, "the replies differ"
        return told(int(starts[-1][1]), headers, body[:len(body) // ask.times], "yes" if self.again in log else "no")


class Curl(Command):
    name = "curl"
    asks_the_system = False
    again = "Re-using existing connection"

    def command(self, ask, path):
        words = ["curl", "--verbose", "--no-progress-meter", "--max-time", str(PATIENCE)]
        words += ["--head"] * (ask.method == "HEAD") + ["--location"] * ask.follows
        words += ["--data-binary", f"@{path}/sent"] if ask.size is not None else []
        words += {"chunked": ["--header", "Transfer-Encoding: chunked"],
                  # Longer than all of it may take: who is told nothing does not get to the end.
                  "expect": ["--header", "Expect: 100-continue", "--expect100-timeout", str(2 * PATIENCE)]}.get(ask.framing, [])
        words += ["--header", f"Host: {ask.host}"] if ask.host else []
        words += ["--unix-socket", ask.socket] if ask.socket else []
        for number in range(ask.times):
            words += ["--output", f"{path}/body{number}", ask.url]
        return words


class Wget(Command):
    name = "wget"
    again = "Reusing existing connection"
    cannot = {"socket": "knows no Unix sockets", "chunked": "knows the length", "expect": "does not"}

    def command(self, ask, path):
        words = ["wget", "--no-config", "--server-response", "--content-on-error", "--tries=1", f"--timeout={PATIENCE}",
                 f"--output-document={path}/body"]
        words += ["--method=HEAD"] if ask.method == "HEAD" else []
        words += [f"--post-file={path}/sent"] if ask.size is not None else []
        words += [] if ask.follows else ["--max-redirect=0"]
        words += [f"--header=Host: {ask.host}"] if ask.host else []
        return [*words, *[ask.url] * ask.times]


def halves(body):
    """A body whose length nobody knows before."""
    yield body[:len(body) // 2]
    yield body[len(body) // 2:]


class Requests(Program):
    name = "requests"
    cannot = {"socket": "knows no Unix sockets by itself", "expect": "does not wait"}

    def tell(self, asks):
        return [self.ask(ask) for ask in asks]

    def ask(self, ask):
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": f"http://{ask.proxy}"} if ask.proxy else {}
            data = halves if ask.framing == "chunked" else lambda body: body
            for _ in range(ask.times):
                try:
                    reply = session.request(ask.method, ask.url, data=ask.body and data(ask.body), timeout=PATIENCE,
                                            headers={"Host": ask.host} if ask.host else {}, allow_redirects=ask.follows)
                except requests.RequestException as error:
                    return Told(0, str(error))
            adapter = session.get_adapter(ask.url)
            pools = [manager.pools[key] for manager in [adapter.poolmanager, *adapter.proxy_manager.values()]
                     for key in manager.pools.keys()]
            reused = "yes" if sum(pool.num_connections for pool in pools) < ask.times else "no"
            return told(reply.status_code, reply.headers, reply.content, reused)


class Httpx(Program):
    name = "httpx"
    # Not used, and long to make.
    tls = ssl.create_default_context()
    cannot = {"expect": "does not wait"}

    def tell(self, asks):
        return [self.ask(ask) for ask in asks]

    def ask(self, ask):
        if ask.socket:
            mounts = {"http://": httpx.HTTPTransport(uds=ask.socket, verify=self.tls)}
        else:
            mounts = {"http://": httpx.HTTPTransport(proxy=f"http://{ask.proxy}", verify=self.tls)} if ask.proxy else {}
        with httpx.Client(mounts=mounts, verify=self.tls, trust_env=False, timeout=PATIENCE, follow_redirects=ask.follows) as client:
            content = halves if ask.framing == "chunked" else lambda body: body
            streams = []
            for _ in range(ask.times):
                try:
                    reply = client.request(ask.method, ask.url, content=ask.body and content(ask.body),
                                           headers={"Host": ask.host} if ask.host else {})
                except httpx.TransportError as error:
                    return Told(0, str(error))
                streams.append(reply.extensions["network_stream"].get_extra_info("socket"))
            reused = "yes" if len({stream.fileno() for stream in streams}) == 1 else "no"
            return told(reply.status_code, reply.headers, reply.content, reused)


class Lines(Program):
    """A program of ours in another language, which reads requests and prints results, a line each."""

    def tell_by(self, command, asks):
        lines = "".join(f"{ask.line(self.name.split()[-1])}\n" for ask in asks).encode()
        printed = run(command, stdin=lines, patience=3 * PATIENCE).decode().splitlines()
        assert len(printed) == len(asks), f"{self}: {len(printed)} results for {len(asks)} requests"
        return [self.read(line.split("\t")) for line in printed]

    @staticmethod
    def read(words):
        status, digest, *rest = words
        return Told(int(status), digest, *rest[:4], base64.b64decode(rest[4])) if rest else Told(0, digest)


class NodeHttp(Lines):
    name = "Node's http"
    follows = False
    cannot = {"unicode": "wants it escaped"}

    def tell(self, asks):
        return self.tell_by(["node", f"{HERE}/doors.mjs"], asks)


class NodeFetch(NodeHttp):
    name = "Node's fetch"
    follows = True
    can_say_host = False
    cannot = {"socket": "wants an Agent of the package undici", "expect": "does not",
              **dict.fromkeys(["name", "host by proxy"], "wants a ProxyAgent of the package undici")}


class JavaClient(Lines):
    name = "Java's HttpClient"
    cannot = {"socket": "knows no Unix sockets", "unicode": "wants it escaped"}

    def __init__(self, classes):
        self.classes = classes

    def tell(self, asks):
        """One Java for those that go through the proxy, another for those that do not: its settings are for all."""
        results = {}
        for proxy in sorted({ask.proxy for ask in asks}):
            host, _, port = proxy.partition(":")
            words = [f"-Dhttp.proxyHost={host}", f"-Dhttp.proxyPort={port}"] if proxy else []
            words += ["-Djdk.httpclient.allowRestrictedHeaders=host", "-Dsun.net.http.allowRestrictedHeaders=true"]
            some = [number for number, ask in enumerate(asks) if ask.proxy == proxy]
            command = ["java", *words, "-cp", self.classes, "Doors"]
            results.update(zip(some, self.tell_by(command, [asks[number] for number in some])))
        return [results[number] for number in range(len(asks))]


class JavaConnection(JavaClient):
    name = "Java's HttpURLConnection"
    cannot = {**JavaClient.cannot, "expect": "does not"}
