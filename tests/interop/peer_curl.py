"""curl, nghttp and h2load as callers in every version of HTTP, before Python's server (HTTP/1.1) and nghttpd (HTTP/2), both
behind TLS.

Usage: peer_curl.py BINARY | --direct
"""
import contextlib, http.server, os, select, subprocess, threading, time

from peers import PATIENCE, Daemon, certificates, check, folder, free_port, is_open, main, needs, read, run, server_context, service
from peers import tail, until

TOKEN = "the-real-token"
BODY = 8 << 20

ROUTE = """
[routes.{name}]
upstream = "https://127.0.0.1:{port}"
listen = ["127.0.0.1:0"]
tls = {{ ca = "{path}/ca.pem" }}
[routes.{name}.header]
headers = {{ "X-Auth-Token" = "{token}" }}
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Files, echoes, and a reply in two halves, of which the second waits for a sign."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    go = threading.Event()

    def do_GET(self):
        if self.headers.get_all("X-Auth-Token") != [TOKEN]:
            return self.answer(401, b"")
        if self.path == "/halves":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for half in (b"first\n", b"second\n"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(half), half))
                self.go.wait(PATIENCE)
            return self.wfile.write(b"0\r\n\r\n")
        if self.path == "/headers":
            return self.answer(200, b"", {name: value for name, value in self.headers.items() if name.lower().startswith("large")})
        try:
            with open(self.server.folder + self.path.split("?")[0], "rb") as file:
                return self.answer(200, file.read())
        except OSError:
            return self.answer(404, b"not here\n")

    do_HEAD = do_GET

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(200, body)

    do_PUT = do_POST

    def answer(self, status, body, headers={}):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def python(path, tls=True):
    """Python's own server, HTTP/1.1 behind TLS or in plain text; gives its port."""
    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128
        def handle_error(self, *_):
            pass
    server = Server(("127.0.0.1", 0), Handler)
    server.folder = f"{path}/files"
    if tls:
        server.socket = server_context(path).wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextlib.contextmanager
def nghttpd(path, log, *options):
    """A server of HTTP/2 behind TLS; gives its port."""
    port = free_port()
    command = ["nghttpd", "--address=127.0.0.1", f"--htdocs={path}/files", "--echo-upload", "--trailer=after: all", *options,
               str(port), f"{path}/server.key", f"{path}/server.pem"]
    with service(command, log, lambda: is_open(port)):
        yield port


def curl(*words, **options):
    return run(["curl", "--silent", "--show-error", "--max-time", "30", *words], patience=40, **options)


def with_curl(name, url, files, *options):
    """What a version of HTTP, on the caller's side, can say to every upstream."""
    def ask(*words, **more):
        return curl(*options, *words, **more)

    def code(*words):
        return ask("--output", "/dev/null", "--write-out", "%{http_code}", *words)

    body = read(f"{files}/body")
    with check(f"curl {name}: GET, HEAD, 404, POST, uploads of {BODY >> 20} MB"):
        assert ask(f"{url}/body") == body
        assert code("--head", f"{url}/body") == b"200"
        assert code(f"{url}/none") == b"404"
        assert ask("--data-binary", "a=1", f"{url}/post") == b"a=1"
        assert ask("--data-binary", "", f"{url}/post") == b""
        assert ask("--upload-file", f"{files}/body", f"{url}/put") == body
        if "--http1.0" not in options:
            assert ask("--upload-file", "-", f"{url}/put", stdin=body) == body

    # In HTTP/1.0 nobody may be told to continue (RFC 9110, section 10.1.1), and in HTTP/2 the HTTP library does not.
    patience = "25" if "--http1.1" in options else "1"
    with check(f"curl {name}: nobody who expects 100 (Continue) is left waiting"):
        began = time.monotonic()
        expecting = ["--header", "Expect: 100-continue", "--expect100-timeout", patience]
        assert ask(*expecting, "--data-binary", "x" * 100, f"{url}/post") == b"x" * 100
        assert time.monotonic() - began < 15

    # curl 7.88, that of Debian 12, cannot use a connection of HTTP/2 without TLS again, whoever answers.
    if "--http2-prior-knowledge" not in options:
        with check(f"curl {name}: 300 requests, 50 at a time"):
            found = ask("--parallel", "--parallel-immediate", "--parallel-max", "50", "--no-progress-meter",
                        "--write-out", "%{http_code} ", "--output", "/dev/null", f"{url}/small?[1-300]")
            assert found == b"200 " * 300, found[:200]


def of_python(name, url, *options):
    """What only an upstream can show that does as it is told."""
    with check(f"curl {name}: each part of a reply comes at once"):
        Handler.go.clear()
        with subprocess.Popen(["curl", "--silent", "--no-buffer", "--max-time", "30", *options, f"{url}/halves"],
                              stdout=subprocess.PIPE, bufsize=0) as process:
            assert select.select([process.stdout], [], [], PATIENCE)[0], "nothing came"
            assert process.stdout.readline() == b"first\n" and process.poll() is None
            Handler.go.set()
            assert process.stdout.read() == b"second\n" and process.wait(PATIENCE) == 0

    with check(f"curl {name}: 60 KiB of headers each way"):
        large = [word for number in range(6) for word in ("--header", f"large-{number}: {str(number) * 10_000}")]
        found = curl(*options, "--dump-header", "-", *large, f"{url}/headers").lower()
        assert all(f"large-{number}: {str(number) * 10_000}\r\n".encode() in found for number in range(6)), found[:200]


def with_nghttp(name, url, files, log):
    """What curl cannot say: trailers, padding, small windows, hundreds of streams."""
    def nghttp(*words):
        return run(["nghttp", "--timeout=30", "--no-verify-peer", *words], patience=40)

    body, small = read(f"{files}/body"), read(f"{files}/small")
    with check(f"nghttp {name}: GET, POST, padding, small windows, 60 KiB of headers"):
        assert nghttp(f"{url}/body") == body
        assert nghttp(f"--data={files}/body", f"{url}/post") == body
        assert nghttp(f"--data={files}/body", "--no-content-length", "--padding=255", f"{url}/post") == body
        assert nghttp("--window-bits=10", "--connection-window-bits=16", f"{url}/medium") == read(f"{files}/medium")
        large = [f"--header=large-{number}: {str(number) * 10_000}" for number in range(6)]
        assert nghttp("--encoder-header-table-size=0", *large, f"{url}/small") == small
        assert nghttp(f"--data={files}/medium", "--expect-continue", f"{url}/post") == read(f"{files}/medium")

    with check(f"nghttp {name}: 500 streams of one connection"):
        assert nghttp("--multiply=500", f"{url}/small") == small * 500

    if log:
        with check(f"nghttp {name}: trailers both ways, but for a forged token"):
            shown = nghttp("--verbose", "--trailer=given: seen", "--trailer=x-auth-token: forged", f"--data={files}/small", f"{url}/post")
            assert b"after: all" in shown, shown[-2000:].decode()
            came = until(lambda: "given: seen" in tail(log) and tail(log), "the trailer did not come")
            assert f"x-auth-token: {TOKEN}" in came and "forged" not in came, came


def with_h2load(name, url, *options, requests=20_000):
    how = " ".join(option.split("=")[0] for option in options) or "GET"
    with check(f"h2load {name}: {requests} requests over ten connections, {how}"):
        shown = run(["h2load", f"--requests={requests}", "--clients=10", "--max-concurrent-streams=50", *options, f"{url}/small"],
                    patience=60)
        assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout".encode() in shown, shown.decode()


def checks(binary):
    needs("curl", "nghttp", "nghttpd", "h2load", "openssl")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        certificates(path, "server")
        files, log = f"{path}/files", f"{path}/verbose.log"
        os.mkdir(files)
        for name, size in (("body", BODY), ("medium", 200_000), ("small", 10)):
            with open(f"{files}/{name}", "wb") as file:
                file.write(os.urandom(size))
        upstreams = {"python": stack.enter_context(python(path)),
                     "nghttpd": stack.enter_context(nghttpd(path, f"{path}/quiet.log")),
                     "verbose": stack.enter_context(nghttpd(path, log, "--verbose"))}
        if not binary:
            trust = ["--cacert", f"{path}/ca.pem", "--header", f"X-Auth-Token: {TOKEN}"]
            url = {name: f"https://127.0.0.1:{port}" for name, port in upstreams.items()}
            versions = [("", trust)]
        else:
            routes = "".join(ROUTE.format(name=name, port=port, path=path, token=TOKEN) for name, port in upstreams.items())
            daemon = stack.enter_context(Daemon(binary, routes))
            url = {name: f"http://127.0.0.1:{port}" for name, port in daemon.own.items()}
            forged = ["--header", "X-Auth-Token: forged"]
            versions = [(f"{version} ", [version, *forged]) for version in ("--http1.0", "--http1.1", "--http2-prior-knowledge")]
        for version, options in versions:
            for upstream in ("python", "nghttpd"):
                with_curl(f"{version}to {upstream}", url[upstream], files, *options)
            of_python(f"{version}to python", url["python"], *options)
        with_nghttp("to nghttpd", url["verbose"], files, binary and log)
        with_h2load("to nghttpd", url["nghttpd"])
        with_h2load("to nghttpd", url["nghttpd"], f"--data={files}/medium", requests=500)
        if binary:
            with_nghttp("to python", url["python"], files, None)
            with_h2load("to python", url["python"], requests=2000)
            with_h2load("to nghttpd", url["nghttpd"], "--h1", requests=5000)


if __name__ == "__main__":
    main(checks)
