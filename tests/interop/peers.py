"""What the checks with real peers share: results a line each, commands with an end, certificates, free ports."""
import contextlib, os, shutil, signal, socket, ssl, subprocess, sys, tempfile, time

from stage import PATIENCE, Daemon

OPENSSL = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = keyCertSign, cRLSign
[server]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost, DNS:upstream.test
[nameless]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
"""


@contextlib.contextmanager
def check(what):
    """A line for what went well, with the time it took; what fails is named, and ends everything."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"FAILED: {what} (after {time.monotonic() - began:.1f} s)", flush=True)
        raise
    print(f"{what} ({time.monotonic() - began:.1f} s)", flush=True)


@contextlib.contextmanager
def folder():
    """A folder of our own, which others may enter: some peers drop their rights."""
    path = tempfile.mkdtemp(prefix="countersign-peers-")
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(command, stdin=b"", patience=PATIENCE, expect=0, **options):
    """Runs a command to its end and returns what it printed; one that ends otherwise than expected is a failure."""
    options = {"stderr": subprocess.PIPE, **options}
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, timeout=patience, **options)
    if done.returncode != expect:
        shown = (done.stdout[-500:] + b"\n" + (done.stderr or b"")[-1000:]).decode(errors="replace").strip()
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode} instead of {expect}:\n{shown}")
    return done.stdout


@contextlib.contextmanager
def service(command, log, is_ready, **options):
    """A peer's server for as long as it is needed; its output goes to the file `log`, and tells when it is ready."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
    try:
        until(lambda: is_ready() or process.poll() is not None, f"{command[0]} does not get ready")
        if process.poll() is not None:
            raise AssertionError(f"{command[0]} cannot run here: what it said last is above")
        yield process
    except BaseException:
        print(f"-- the end of the log of {command[0]}:\n{tail(log)}", file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(path, octets=4000):
    """The end of a file, as text."""
    return read(path)[-octets:].decode(errors="replace")


def read(path):
    """A file's octets."""
    with open(path, "rb") as file:
        return file.read()


def until(condition, what, patience=PATIENCE):
    """Waits until a condition holds, and returns what it said."""
    end = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(0.02)
    return found


def free_port():
    """A port that nobody listens on just now, for servers that cannot be given port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port):
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def connections(port):
    """How many TCP connections to a local port somebody holds open, not counting what the kernel alone still knows of."""
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    # proc(5): the remote address, and the inode of the socket, 0 once it is closed.
    return sum(row[2].endswith(f":{port:04X}") and row[9] != "0" for row in rows)


def certificates(path, *names):
    """Writes ca.pem, and NAME.pem and NAME.key for each of these names, sections of the above, into a folder."""
    with open(f"{path}/openssl.cnf", "w") as file:
        file.write(OPENSSL)
    for name in ("ca", *names):
        # An RSA key for clients, as the providers hand them out.
        key = ["rsa:2048"] if name == "client" else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        issuer = [] if name == "ca" else ["-CA", f"{path}/ca.pem", "-CAkey", f"{path}/ca.key"]
        run(["openssl", "req", "-x509", "-config", f"{path}/openssl.cnf", "-extensions", name, "-subj", f"/CN={name}", "-days", "2",
             "-nodes", "-newkey", *key, "-keyout", f"{path}/{name}.key", "-out", f"{path}/{name}.pem", *issuer])


def server_context(path):
    """What a server of Python's needs to speak TLS with what `certificates` wrote for `server`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{path}/server.pem", f"{path}/server.key")
    return context


def needs(*programs):
    """Ends with a clear message where a program is missing."""
    if missing := [program for program in programs if not shutil.which(program)]:
        raise SystemExit(f"not installed: {', '.join(missing)}; tests/interop/install says what is needed")


def main(checks):
    """Runs a module's checks: with the daemon that the first argument names, or with `--direct` without any in between."""
    # What `timeout` sends ends us in the way that cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    checks(None if sys.argv[1] == "--direct" else sys.argv[1])
