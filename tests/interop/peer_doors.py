"""Real programs at every front door: curl, wget, Python, Node, Java and docker, before upstreams that judge what arrives. What
each program sends to an upstream directly is what must arrive through every door, and signed. Then what `countersign routes`
prints is run as it is printed.

Usage: peer_doors.py BINARY | --direct
"""
import contextlib, functools, hashlib, itertools, json, os, random, re, socket, ssl, time
from dataclasses import dataclass

from callers import CALLERS
from judges import AK, SK, TOKEN, Bce
from pasted import Printed, paste
from peers import Daemon, certificates, check, folder, main, needs, run, server_context
from programs import HERE, Ask, Curl, Httpx, JavaClient, JavaConnection, NodeFetch, NodeHttp, Requests, Wget
from stage import Upstream

BEARER = "the-real-token"
MIB = 1 << 20
BLOB = random.Random(1).randbytes(MIB)

ROUTES = """
[routes.cert]
upstream = "http://127.0.0.1:{cert}"
hosts = ["cert.example.test"]
listen = ["127.0.0.1:0", "unix:cert.sock"]
headers = {{ X-Route = "r0" }}
[routes.cert.bce]
credentials = {{ access_key = "{access}", secret_key = "{secret}", security_token = "{token}" }}

[routes.git]
upstream = "https://127.0.0.1:{git}"
hosts = ["git.example.test"]
listen = ["127.0.0.1:0", "unix:git.sock"]
tls = {{ ca = "{path}/ca.pem" }}
[routes.git.bearer]
token = "{bearer}"

[routes.cluster]
upstream = "tcp://127.0.0.1:{cluster}"
hosts = ["cluster.example.test"]
listen = ["127.0.0.1:0", "unix:cluster.sock"]
tls = {{ ca = "{path}/ca.pem", cert = "{path}/client.pem", key = "{path}/client.key" }}
[routes.cluster.mtls]

# Those that follow are there for what is printed of them.
[routes.bare]
upstream = "tcp://127.0.0.1:{cluster}"
hosts = ["bare.example.test"]
tls = {{ ca = "{path}/ca.pem", cert = "{path}/client.pem", key = "{path}/client.key" }}
[routes.bare.mtls]

[routes.local]
upstream = "https://127.0.0.1:{git}"
listen = ["unix:it's local.sock"]
tls = {{ ca = "{path}/ca.pem" }}
[routes.local.bearer]
token = "{bearer}"
"""

WITH_SDK = """
[routes.{route}]
upstream = "http://127.0.0.1:{port}"
listen = ["127.0.0.1:0"]
headers = {{ X-Route = "plain" }}
[routes.{route}.{provider}]
credentials = {{ access_key = "{access}", secret_key = "{secret}" }}
"""

DOORS = {"host": "NAME.localhost", "path": "/NAME/", "name": "`hosts`, http_proxy", "host by proxy": "NAME.localhost, http_proxy",
         "own": "its own port", "socket": "its Unix socket"}

# Escapes that nobody needs, in both cases, and what a parser might take for something else.
NASTY = "/v1/%E4%B8%AD%e6%96%87/a%20b%2Fc%41%7e%25//x;y=1,2/(z)!'*/?q=%e4%b8%ad&empty=&bare&x=a%2Bb%26c&y=/?"
CASES = [
    Ask("get", "GET", NASTY),
    Ask("unicode", "GET", "/v1/\u4e2d\u6587/\u00e9?q=\u4e2d"),
    Ask("post", "POST", NASTY, 1000),
    Ask("empty", "POST", "/v1/empty?", 0),
    Ask("chunked", "POST", "/v1/chunked?", 1000, "chunked"),
    Ask("expect", "POST", "/v1/expect?", 1000, "expect"),
    Ask("head", "HEAD", NASTY),
    Ask("again", "GET", "/v1/again?"),
    Ask("redirect", "GET", "/v1/redirect?"),
    Ask("download", "GET", "/v1/download?"),
    Ask("upload", "POST", "/v1/upload?", MIB),
]
NO_NAME = "the name does not resolve"

# What is asked of every route; the rest of it belongs to callers and doors.
ESSENTIAL = {"get", "post", "redirect", "download"}

# What a route's own settings, a hop or a proxy makes different.
OF_A_HOP = {b"host", b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"http2-settings", b"expect",
            b"x-route", b"authorization", b"x-bce-date", b"x-bce-security-token"}


class Judge:
    """An upstream that answers what `verdict` does not object to, and remembers it."""

    def __init__(self, verdict=lambda received: None, context=None, replies=()):
        self.verdict, self.replies, self.seen = verdict, replies, []
        self.upstream = Upstream(self.answer, context)
        self.port = self.upstream.port
        self.url = f"http{'s' * bool(context)}://127.0.0.1:{self.port}"

    def answer(self, received):
        try:
            self.verdict(received)
        except Exception as error:
            return 403, [], f"{type(error).__name__}: {error} for {received.method} {received.target}".encode()
        # Where it stands in for a proxy.
        received.target = re.sub(rb"^http://[^/]+", b"", received.target)
        self.seen.append(received)
        if received.path == b"/v1/redirect":
            return 302, [("Location", f"{self.url}/v1/landed?{received.query.decode()}")], b""
        for part, kind, content in self.replies:
            if part in received.target:
                return 200, [("Content-Type", kind), ("x-bce-request-id", "interop")], content
        return 200, *self.of_docker(received)

    def of_docker(self, received):
        """What the docker CLI wants to hear; for everything else what was seen."""
        path = re.sub(rb"^/v1\.\d+/", b"/", received.path)
        versions = [("Api-Version", "1.44"), ("Docker-Experimental", "false"), ("Ostype", "linux")]
        as_json = [("Content-Type", "application/json")]
        if path == b"/_ping":
            return versions, b"OK"
        if path == b"/version":
            return versions + as_json, json.dumps({"Version": "the-judge", "ApiVersion": "1.44", "MinAPIVersion": "1.24"}).encode()
        if path == b"/images/load":
            return as_json, json.dumps({"stream": f"{hashlib.sha256(received.body).hexdigest()}\n"}).encode()
        if path in (b"/v1/download", b"/images/get"):
            return [], BLOB
        return [], self.text(received.method, received.target, received.body)

    @staticmethod
    def text(method, target, body):
        return b"%s %s %s\n" % (method, target, hashlib.sha256(body).hexdigest().encode())

    def of(self, number):
        """The requests with this number, as whoever compares them wants them: without it, and without what a hop changes."""
        mark = b"id=%d" % number
        return [(received.method, received.target.replace(mark, b"id="), hashlib.md5(received.body).hexdigest(),
                 sorted((name.lower(), value) for name, value in received.headers if name.lower() not in OF_A_HOP))
                for received in self.seen if received.target.endswith(mark)]


def signed(scheme):
    """The verdict on a signature."""
    def verdict(received):
        found, expected = scheme.judge(received)
        assert found == expected, "the signature is wrong"
    return verdict


def with_the_token(received):
    assert received.header(b"authorization") == b"Bearer " + BEARER.encode(), "the token is wrong"


@functools.cache
def resolves():
    """Whether getaddrinfo(3), which nearly all programs ask, knows names below localhost; None if it takes long to say."""
    began = time.monotonic()
    with contextlib.suppress(socket.gaierror):
        return bool(socket.getaddrinfo("cert.localhost", 80))
    return False if time.monotonic() - began < 1 else None


class Ways:
    """The doors of a route, for programs: what to ask for the path that comes behind, and where the reply's places lead."""

    def __init__(self, daemon, route):
        self.route, self.shared = route, f"127.0.0.1:{daemon.address[1]}"
        self.named = f"{route}.localhost:{daemon.address[1]}"
        self.own, self.socket = f"127.0.0.1:{daemon.own[route]}", f"{daemon.folder}/{route}.sock"

    def __call__(self, door, program):
        """The URL before the path, and what else an `Ask` needs."""
        if door == "host":
            if program.asks_the_system and not resolves():
                return f"http://{self.shared}", {"host": self.named}
            return f"http://{self.named}", {}
        return {"path": (f"http://{self.shared}/{self.route}", {}),
                "name": (f"http://{self.route}.example.test", {"proxy": self.shared}),
                "host by proxy": (f"http://{self.named}", {"proxy": self.shared}),
                "own": (f"http://{self.own}", {}),
                "socket": ("http://localhost", {"socket": self.socket})}[door]


@dataclass
class Step:
    """A request, who is to see it, and as what; what came of it is known later."""

    ask: Ask
    number: int
    judge: Judge | None
    door: str
    # What a Location at the upstream becomes, or a word of the refusal.
    expected: str

    @property
    def arrived(self):
        return self.judge.of(self.number)


class Plan:
    """What a program is to do."""

    numbers = itertools.count(100_000)

    def __init__(self, program):
        self.program, self.steps = program, []

    def add(self, door, judge, base, options, cases=CASES, expected=None):
        for case in cases:
            if case.name in self.program.cannot:
                continue
            number = next(self.numbers)
            # Where a name is said that is not in the URL, nobody could go on to it.
            follows = case.name == "redirect" and self.program.follows and "host" not in options
            ask = Ask(case.name, case.method, f"{base}{case.url}&id={number}".replace("?&", "?"), case.size, case.framing,
                      follows=follows, **options)
            place = f"http://{options['host']}" if "host" in options else base
            self.steps.append(Step(ask, number, judge, door, expected or f"{place}/v1/landed?id={number}"))


def comes_back(program, step, found, direct):
    """A request that came through a door, beside the same request without one."""
    ask, seen = step.ask, step.arrived
    what = f"{program}, {step.door}: {step.ask}\n  told: {found}\n  arrived: {seen}\n  directly: {direct}"
    count = ask.times + (ask.name == "redirect" and ask.follows)
    assert len(seen) == count and seen == direct[:count], what
    if ask.name == "redirect" and not ask.follows:
        assert (found.status, found.location) == (302, step.expected), what
        return
    method, target, _, _ = seen[-1]
    body = BLOB if ask.name == "download" else Judge.text(method, target + b"%d" % step.number, ask.body or b"")
    assert found.status == 200, what
    if ask.method == "HEAD":
        assert (found.length, found.start) == (str(len(body)), b""), what
    else:
        assert found.digest == hashlib.sha256(body).hexdigest(), what
    assert ask.name != "again" or found.reused != "no", what


def is_refused(program, step, found):
    """What no route belongs to, or no name."""
    what = f"{program}, {step.door}: {step.ask}\n  told: {found}"
    if step.expected == NO_NAME:
        assert found.status == 0, what
    else:
        assert (found.status, found.error) == (421, "unknown_host"), what
        assert step.expected in json.loads(found.start)["error"]["message"], what


def through_doors(program, daemon, judges):
    """Every door that a program can use, with every route behind it, and none. Returns what the table says of each."""
    plan, cells, direct = Plan(program), {}, Judge()
    plan.add("no door", direct, direct.url, {})
    # curl escapes less where it talks to a proxy.
    if "name" not in program.cannot:
        url, options = "http://direct.example.test", {"proxy": f"127.0.0.1:{direct.port}"}
        plan.add("any proxy", direct, url, options, [case for case in CASES if case.name != "redirect"])
        plan.add("any proxy", direct, direct.url, options, [case for case in CASES if case.name == "redirect"])
    if daemon:
        cells = with_doors(plan, daemon, judges)
    found = program.tell([step.ask for step in plan.steps])
    without = {(step.ask.name, bool(step.ask.proxy)): step.arrived for step in plan.steps if step.judge is direct}
    for step, told in zip(plan.steps, found):
        if step.judge:
            comes_back(program, step, told, without[step.ask.name, bool(step.ask.proxy)])
        else:
            is_refused(program, step, told)
    return cells


def with_doors(plan, daemon, judges):
    """Adds what a program asks for at the doors that it can use, with what the table says of each, and what is refused there."""
    program, cells, cert = plan.program, {}, Ways(daemon, "cert")
    cannot = dict(program.cannot)
    if not program.can_say_host and not resolves():
        cannot["host"] = f"{NO_NAME} here, and it takes no other Host"
    for door in DOORS:
        if door in cannot:
            cells[door] = f"no: {cannot[door]}"
            continue
        for route, judge in judges.items():
            base, options = Ways(daemon, route)(door, program)
            some = CASES if route == "cert" else [case for case in CASES if case.name in ESSENTIAL]
            plan.add(door, judge, base, options, some)
        cells[door] = f"by Host: {NO_NAME} here, so a header says it" if "host" in options else "ok"
    for door, base, options, word in (
            ("path", f"http://{cert.shared}/nobody", {}, "the routes are cert, git, cluster"),
            ("host", f"http://{cert.shared}", {"host": cert.named.replace("cert", "nobody")}, "the routes are cert, git, cluster"),
            ("own", f"http://{cert.own}", {"host": "elsewhere.example.test"}, "use NAME.localhost"),
            ("name", "http://nobody.example.test", {"proxy": cert.shared}, "use NAME.localhost")):
        if door not in cannot and (program.can_say_host or "host" not in options):
            plan.add(door, None, base, options, CASES[:1], word)
    if program.asks_the_system and resolves() is False:
        plan.add("host", None, f"http://{cert.named}", {}, CASES[:1], NO_NAME)
    return cells


def docker(path, daemon, judge):
    """The docker CLI, of which the judge plays the daemon: GET, HEAD, and POST of what has no length."""
    direct, cells = Judge(), {}
    environment = {"PATH": os.environ["PATH"], "HOME": path, "DOCKER_CONFIG": f"{path}/docker"}

    def seen(judge, host, proxy=""):
        ask = {**environment, "DOCKER_HOST": host, "http_proxy": proxy}
        before = len(judge.seen)
        assert run(["docker", "version", "--format", "{{.Server.Version}}"], env=ask) == b"the-judge\n"
        assert hashlib.sha256(BLOB).hexdigest().encode() in run(["docker", "load"], stdin=BLOB, env=ask)
        assert run(["docker", "save", "an/image:tag"], env=ask) == BLOB
        return [(came.method, came.target, came.body) for came in judge.seen[before:]]

    expected = seen(direct, f"tcp://127.0.0.1:{direct.port}")
    assert {method for method, _, _ in expected} == {b"GET", b"HEAD", b"POST"}, expected
    if daemon:
        ways = Ways(daemon, "cluster")
        for door, host, proxy in (("path", f"tcp://{ways.shared}/cluster", ""), ("own", f"tcp://{ways.own}", ""),
                                  ("socket", f"unix://{ways.socket}", ""),
                                  ("name", "tcp://cluster.example.test:80", f"http://{ways.shared}"),
                                  ("host by proxy", f"tcp://{ways.named}", f"http://{ways.shared}")):
            assert seen(judge, host, proxy) == expected, door
            cells[door] = "ok"
        try:
            assert resolves() is not None, "lookup takes long"
            assert seen(judge, f"tcp://{ways.named}") == expected
            cells["host"] = "ok"
        except AssertionError as error:
            assert "lookup" in str(error), error
            cells["host"] = f"no: {NO_NAME} here"
    return cells


def print_table(table):
    """Who came through which door, and below it why somebody did not, or how."""
    notes, rows = [], [["", *DOORS.values()]]
    for program, cells in table.items():
        row = [str(program)]
        for door in DOORS:
            word, _, why = cells[door].partition(": ")
            if why and why not in notes:
                notes.append(why)
            row.append(f"{word} ({notes.index(why) + 1})" if why else word)
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for number, why in enumerate(notes):
        print(f"({number + 1}) {why}")


def checks(binary):
    needs("curl", "wget", "node", "java", "javac", "docker", "nginx", "openssl")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        certificates(path, "server", "client")
        mutual = server_context(path)
        mutual.verify_mode = ssl.CERT_REQUIRED
        mutual.load_verify_locations(f"{path}/ca.pem")
        sdks = dict(zip(("cert", "sms", "acm", "clusters"), CALLERS))
        # Those that the SDKs need: the rest is to see what it was that arrived.
        replies = {route: [(part.rstrip(b"/"), *reply) for part, *reply in caller[4]] for route, caller in sdks.items()}
        judges = {"cert": Judge(signed(Bce()), replies=replies["cert"]), "git": Judge(with_the_token, server_context(path)),
                  "cluster": Judge(context=mutual)}
        daemon, sources = None, [f"{HERE}/Doors.java"]
        if binary:
            keys, ports = {"access": AK, "secret": SK}, {route: judge.port for route, judge in judges.items()}
            routes = ROUTES.format(path=path, token=TOKEN, bearer=BEARER, **keys, **ports)
            for route, (_, scheme, *_) in list(sdks.items())[1:]:
                judge = Judge(signed(scheme), replies=replies[route])
                routes += WITH_SDK.format(route=route, port=judge.port, provider=scheme.table, **keys)
            daemon = stack.enter_context(Daemon(binary, routes))
            printed = Printed(binary, daemon, path)
            sources.append(printed.java())
        with check("doors: what is written in Java compiles"):
            run(["javac", "-d", f"{path}/classes", *sources], patience=60)
        table = {}
        for program in (Curl(path), Wget(path), Requests(), Httpx(), NodeHttp(), NodeFetch(), JavaClient(f"{path}/classes"),
                        JavaConnection(f"{path}/classes")):
            with check(f"doors: {program}"):
                table[program] = through_doors(program, daemon, judges)
        with check("doors: docker"):
            table["docker"] = docker(path, daemon, judges["cluster"])
        if daemon:
            print_table(table)
            with check("doors: the judge refuses what nobody signed"):
                curl = Curl(path)
                assert curl.ask(Ask("get", "GET", f"{judges['cert'].url}/v1/x")).status == 403
            paste(printed, NASTY)


if __name__ == "__main__":
    main(checks)
