"""What judges and callers share: the daemon, and an upstream that keeps the octets it got."""
import os, re, shutil, socket, subprocess, sys, tempfile, threading

PATIENCE = 20


class Received:
    """A request as it arrived: everything in octets, headers in order."""

    def __init__(self, method, target, headers, body):
        self.method, self.target, self.headers, self.body = method, target, headers, body

    @property
    def path(self):
        return self.target.split(b"?", 1)[0]

    @property
    def query(self):
        return self.target.split(b"?", 1)[1] if b"?" in self.target else b""

    def header(self, name):
        """The one value of a header, None if it is not there."""
        values = [value for given, value in self.headers if given.lower() == name]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


def read_message(stream, proceed=lambda: None):
    """Reads a start line, headers and a body framed by length or chunks; None at the end of the connection. `proceed` is
    called where somebody waits with the body to be told to."""
    start = stream.readline()
    if not start:
        return None
    headers = []
    while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
        name, value = line.rstrip(b"\r\n").split(b":", 1)
        headers.append((name, value.strip(b" \t")))
    found = {name.lower(): value for name, value in headers}
    if found.get(b"expect", b"").lower() == b"100-continue":
        proceed()
    body = b""
    if b"chunked" in found.get(b"transfer-encoding", b""):
        while size := int(stream.readline().split(b";")[0], 16):
            body += stream.read(size)
            stream.readline()
        while stream.readline() not in (b"\r\n", b""):
            pass
    else:
        body = stream.read(int(found.get(b"content-length", 0)))
    return start.rstrip(b"\r\n"), headers, body


class Upstream:
    """Answers each request with what `answer` says of it: (status, headers, body); behind TLS if there is a context."""

    def __init__(self, answer, context=None):
        self.answer, self.context = answer, context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context:
            connection = self.context.wrap_socket(connection, server_side=True)
        stream = connection.makefile("rb")
        while message := read_message(stream, lambda: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")):
            start, headers, body = message
            method, target, _ = start.split(b" ")
            try:
                status, fields, content = self.answer(Received(method, target, headers, body))
            except Exception as error:  # a judge that stumbles is a finding like any other
                status, fields, content = 500, [], f"{type(error).__name__}: {error}".encode()
            lines = [f"HTTP/1.1 {status} Judged", f"Content-Length: {len(content)}"]
            lines += [f"{name}: {value}" for name, value in fields]
            reply = "\r\n".join(lines).encode() + b"\r\n\r\n"
            connection.sendall(reply if method == b"HEAD" else reply + content)


class Daemon:
    """countersign with this configuration, of which `address` is the shared listener and `own[route]` a route's. `server` is
    what else is to stand in that table."""

    def __init__(self, binary, configuration, server="", access=False, environment={}):
        self.folder = tempfile.mkdtemp(prefix="countersign-interop-")
        self.path = path = os.path.join(self.folder, "countersign.toml")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(f'[server]\nlisten = ["127.0.0.1:0"]\n{server}\n[log]\naccess = {str(access).lower()}\n{configuration}')
        environment = {**os.environ, "NO_COLOR": "1", **environment}
        environment.pop("JOURNAL_STREAM", None)
        self.process = subprocess.Popen([binary, "run", "-c", path], stderr=subprocess.PIPE, text=True, env=environment)
        self.address, self.own, self.log = None, {}, []
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r" listening address=127\.0\.0\.1:(\d+)(?: route=\"([^\"]+)\")?", line):
                if found[2]:
                    self.own[found[2]] = int(found[1])
                else:
                    self.address = ("127.0.0.1", int(found[1]))
            if "serving" in line:
                break
        else:
            raise SystemExit(f"the daemon did not start:\n{''.join(self.log)}")
        watchdog.cancel()
        threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            print(f"-- the end of the daemon's log:\n{''.join(self.log[-40:])}", file=sys.stderr)
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            shutil.rmtree(self.folder)
