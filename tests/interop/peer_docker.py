"""The docker CLI, in plain text, before a dockerd that wants client certificates: the Swarm case. The dockerd is one of our
own, with everything it writes in a folder that goes away; its containers have no network.

Usage: peer_docker.py BINARY | --direct
"""
import concurrent.futures, contextlib, fcntl, hashlib, http.client, io, json, os, pty, select, shutil, signal, ssl, struct
import subprocess, tarfile, termios, time

from websockets.sync.client import connect

from engine import dockerd
from peers import PATIENCE, Daemon, certificates, check, connections, folder, main, needs, read, run, until

BIG = 50 << 20

ROUTE = """
[routes.cluster]
upstream = "https://127.0.0.1:{port}"
listen = ["127.0.0.1:0", "unix:cluster.sock"]
tls = {{ ca = "{path}/ca.pem", cert = "{path}/client.pem", key = "{path}/pkcs1.key", verify = "ca-only" }}
timeouts = {{ pool_idle = "1s" }}
[routes.cluster.mtls]
"""


class Docker:
    """The CLI, with the ways of giving it something to do."""

    def __init__(self, path, name, big, *arguments):
        self.path, self.name, self.arguments = path, name, arguments
        # How much the large pipes carry.
        self.big = f"{path}/{big}"
        with open(self.big, "wb") as file:
            file.write(os.urandom(big))
        # The classic builder: the session of the other asks for `Upgrade: h2c`, which no proxy has to pass on.
        self.environment = {"PATH": os.environ["PATH"], "HOME": path, "DOCKER_CONFIG": f"{path}/cli", "DOCKER_BUILDKIT": "0",
                            "TERM": "xterm"}

    def command(self, *words):
        return ["docker", *self.arguments, *words]

    def __call__(self, *words, **options):
        return run(self.command(*words), env=self.environment, **options)

    def popen(self, *words, **options):
        return subprocess.Popen(self.command(*words), env=self.environment, bufsize=0, **options)

    def check(self, what):
        return check(f"docker {self.name}: {what}")


def context(path):
    """A build's context: busybox, and nothing else."""
    os.makedirs(f"{path}/context/bin")
    shutil.copy(shutil.which("busybox"), f"{path}/context/bin/busybox")
    with open(f"{path}/context/Dockerfile", "w") as file:
        file.write('FROM scratch\nCOPY bin /bin\nRUN ["/bin/busybox", "--install", "/bin"]\nRUN ["mkdir", "/tmp"]\n')


def digest(octets):
    return hashlib.sha256(octets).hexdigest().encode()


class Terminal:
    """A CLI that believes a person sits before it."""

    def __init__(self, docker, *words):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self.process = docker.popen(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = b""

    def type(self, text):
        os.write(self.master, text)

    def await_text(self, text):
        end = time.monotonic() + PATIENCE
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], f"no {text} in {self.seen}"
            self.seen += os.read(self.master, 65536)

    def wait(self):
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def first_line(process):
    """The next line that a process prints, while it runs on."""
    assert select.select([process.stdout], [], [], PATIENCE)[0], "nothing came"
    return process.stdout.readline()


def images(docker):
    with docker.check("version and info"):
        server = docker("version", "--format", "{{.Server.Version}} {{.Server.APIVersion}}")
        assert docker("info", "--format", "{{.ServerVersion}}").strip() == server.split()[0], server
        assert b"vfs" in docker("info")

    with docker.check("build with the classic builder"):
        docker("build", "--tag", "built", f"{docker.path}/context", patience=60)

    with docker.check(f"import of {BIG >> 20} MB from a pipe"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(f"{docker.path}/context/bin", "bin")
            tar.add(docker.big, "big")
        docker("import", "-", "imported", stdin=packed.getvalue(), patience=60)
        found = docker("run", "--rm", "--network=none", "imported", "/bin/busybox", "sha256sum", "/big", patience=60)
        assert found.split()[0] == digest(read(docker.big))

    with docker.check("save, rmi, load"):
        saved = docker("save", "built")
        docker("rmi", "--force", "built", "imported")
        docker("load", stdin=saved)
        assert docker("image", "ls", "--quiet", "built").strip()


def containers(docker):
    once = ["run", "--rm", "--network=none", "--log-driver=none"]

    with docker.check("run, its output on both streams, its exit code"):
        assert docker(*once, "built", "echo", "hello") == b"hello\n"
        done = subprocess.run(docker.command(*once, "built", "sh", "-c", "echo out; echo err >&2; exit 7"), env=docker.environment,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n"), done

    with docker.check("run -i ends by itself when its input does"):
        assert docker(*once, "-i", "built", "cat", stdin=b"data\n") == b"data\n"
        assert docker(*once, "-i", "built", "cat") == b""

    big = read(docker.big)
    with docker.check(f"run -i carries {len(big) >> 20} MB in, out, and both ways at once"):
        assert docker(*once, "-i", "built", "sha256sum", stdin=big, patience=60).split()[0] == digest(big)
        assert docker(*once, "built", "head", "-c", str(len(big)), "/dev/zero", patience=60) == bytes(len(big))
        assert digest(docker(*once, "-i", "built", "cat", stdin=big, patience=60)) == digest(big)

    with docker.check("run -i whose input outlives the container"):
        assert docker(*once, "-i", "built", "head", "-c", "5", stdin=b"12345" + bytes(1 << 20)) == b"12345"


def running(docker):
    docker("run", "--detach", "--interactive", "--network=none", "--name=runs", "built", "cat")

    with docker.check("exec, its input, its exit code"):
        assert docker("exec", "runs", "echo", "hello") == b"hello\n"
        assert docker("exec", "-i", "runs", "wc", "-c", stdin=bytes(1000)) == b"1000\n"
        docker("exec", "runs", "sh", "-c", "exit 5", expect=5)

    with docker.check("twenty exec -i at once, 1 MB each"):
        def one(number):
            data = bytes([number]) * (1 << 20)
            assert docker("exec", "-i", "runs", "cat", stdin=data, patience=60) == data
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(one, range(20)))

    with docker.check("exec -it with a terminal, its size, its exit code"), Terminal(docker, "exec", "-it", "runs", "sh") as terminal:
        terminal.type(b"until [ \"$(stty size)\" = '33 101' ]; do sleep 0.1; done; echo sized $((6*7))\n")
        terminal.await_text(b"sized 42")
        terminal.type(b"exit 3\n")
        assert terminal.wait() == 3, terminal.seen

    with docker.check("exec -it left with the detach keys"), Terminal(docker, "exec", "-it", "runs", "cat") as terminal:
        terminal.type(b"echoed\n")
        terminal.await_text(b"echoed\r\nechoed")
        terminal.type(b"\x10\x11")
        terminal.wait()

    with docker.check("cp both ways"):
        docker("cp", docker.big, "runs:/tmp/big", patience=60)
        docker("cp", "runs:/tmp/big", f"{docker.path}/back", patience=60)
        assert digest(read(f"{docker.path}/back")) == digest(read(docker.big))
        os.remove(f"{docker.path}/back")

    with docker.check("stats --no-stream, and a stream of them that the caller leaves"):
        assert docker("stats", "--no-stream", "--format", "{{.Name}}", "runs") == b"runs\n"
        stats = docker.popen("stats", "--format", "{{.Name}}", "runs", stdout=subprocess.PIPE)
        assert b"runs" in first_line(stats)
        stats.kill()
        stats.wait()

    with docker.check("attach carries what is typed, and ends with the container"):
        attached = docker.popen("attach", "runs", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        attached.stdin.write(b"attached\n")
        assert first_line(attached) == b"attached\n"
        docker("kill", "runs")
        attached.communicate(timeout=PATIENCE)
        assert attached.returncode == 137, attached.returncode
    docker("rm", "runs")


def streams(docker):
    script = "echo first; until [ -e /tmp/go ]; do sleep 0.05; done; echo last; exit 5"

    with docker.check("events and logs -f stream at once, wait and logs end with the container"):
        with contextlib.ExitStack() as stack:
            def start(*words):
                process = stack.enter_context(docker.popen(*words, stdout=subprocess.PIPE))
                stack.callback(process.kill)
                return process

            docker("create", "--network=none", "--name=ticks", "built", "sh", "-c", script)
            events = start("events", "--filter", "container=ticks", "--format", "{{.Action}}", "--since", str(int(time.time())))
            docker("start", "ticks")
            until(lambda: first_line(events) == b"start\n", "no event of the start")
            logs, waiting = start("logs", "--follow", "ticks"), start("wait", "ticks")
            assert first_line(logs) == b"first\n"
            assert logs.poll() is None and waiting.poll() is None
            docker("exec", "ticks", "touch", "/tmp/go")
            assert logs.communicate(timeout=PATIENCE)[0] == b"last\n" and logs.returncode == 0
            assert waiting.communicate(timeout=PATIENCE)[0] == b"5\n" and waiting.returncode == 0
            until(lambda: first_line(events) == b"die\n", "no event of the end")
            assert events.poll() is None
            events.send_signal(signal.SIGINT)
            events.communicate(timeout=PATIENCE)
    docker("rm", "--force", "ticks")


def by_hand(docker, port, tls=None):
    """What other clients send: no Upgrade at all, so that the reply itself is the stream; a WebSocket."""
    def ask(target, body):
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=tls) if tls else \
            http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()

    docker("run", "--detach", "--interactive", "--network=none", "--name=runs", "built", "cat")
    with docker.check("exec for a client that asks for no Upgrade"):
        made = ask("/containers/runs/exec", {"AttachStdout": True, "Tty": True, "Cmd": ["sh", "-c", "echo old; echo way"]})
        reply = ask(f"/exec/{json.load(made)['Id']}/start", {"Detach": False, "Tty": True})
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/vnd.docker.raw-stream"), reply.headers
        assert reply.read() == b"old\r\nway\r\n"

    with docker.check("attach over a WebSocket"):
        address = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/containers/runs/attach/ws?stream=1&stdin=1&stdout=1"
        with connect(address, ssl=tls, proxy=None, open_timeout=PATIENCE) as connection:
            connection.send(b"typed\n")
            came = b""
            while not came.endswith(b"typed\n"):
                came += connection.recv(PATIENCE)
            docker("kill", "runs")
    docker("rm", "--force", "runs")


def checks(binary):
    needs("docker", "dockerd", "busybox", "openssl")
    if os.geteuid() != 0:
        raise SystemExit("a dockerd of our own needs root")
    if b"/ld-linux" in read(shutil.which("busybox")):
        raise SystemExit("busybox is not linked statically: install busybox-static instead")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        certificates(path, "nameless", "client")
        # PKCS#1, the form in which the provider hands keys out.
        run(["openssl", "rsa", "-traditional", "-in", f"{path}/client.key", "-out", f"{path}/pkcs1.key"])
        context(path)
        with check("docker: a dockerd of our own is up, and wants a certificate"):
            address = stack.enter_context(dockerd(
                path, "tcp://127.0.0.1:0", "--storage-driver", "vfs", "--tlsverify", "--tlscacert", f"{path}/ca.pem", "--tlscert",
                f"{path}/nameless.pem", "--tlskey", f"{path}/nameless.key"))
            port = int(address.rpartition(":")[2])
            Docker(path, "", 0, "--host", f"tcp://127.0.0.1:{port}", "--tls")("version", expect=1)
        if not binary:
            pair = f"{path}/client.pem", f"{path}/client.key"
            tls = ssl.create_default_context(cafile=f"{path}/ca.pem")
            tls.check_hostname = False
            tls.load_cert_chain(*pair)
            docker = Docker(path, "without a proxy", BIG, "--host", f"tcp://127.0.0.1:{port}", "--tls", "--tlscacert", f"{path}/ca.pem",
                            "--tlscert", pair[0], "--tlskey", pair[1])
            for part in (images, containers, running, streams):
                part(docker)
            by_hand(docker, port, tls)
            return
        with Daemon(binary, ROUTE.format(port=port, path=path), access=True) as daemon:
            own, shared = daemon.own["cluster"], daemon.address[1]
            at_port = Docker(path, "at the route's port", BIG, "--host", f"tcp://127.0.0.1:{own}")
            at_socket = Docker(path, "at the route's Unix socket", 1 << 20, "--host", f"unix://{daemon.folder}/cluster.sock")
            at_path = Docker(path, "at the route's path", 1 << 20, "--host", f"tcp://127.0.0.1:{shared}/cluster")
            for docker, parts in ((at_port, (images, containers, running, streams)), (at_socket, (containers, running)),
                                  (at_path, (containers,))):
                for part in parts:
                    part(docker)
            by_hand(at_port, own)
            with check("docker: nothing is left open when all have gone"):
                until(lambda: not connections(port), "connections to the dockerd are still open")


if __name__ == "__main__":
    main(checks)
