"""A container engine of our own, everything it writes in a folder that goes away; and images out of the Debian packages that are
installed here and the Rust in use, since no registry need be within reach."""
import contextlib, os, re, shutil, signal, subprocess, tarfile, tempfile

from peers import needs, read, run, service, tail, until

# What compiles and links, and the roots that go into the image.
BUILDER = ("gcc", "libc6-dev", "ca-certificates")
# Made when packages are installed, so that no package lists them.
MADE = ("/etc/alternatives/cc", "/usr/bin/cc", "/etc/alternatives/awk", "/usr/bin/awk", "/etc/passwd", "/etc/group",
        "/etc/ssl/certs/ca-certificates.crt")
UNREAD = ("/usr/share/doc/", "/usr/share/info/", "/usr/share/locale/", "/usr/share/man/")


@contextlib.contextmanager
def dockerd(path, host, *options):
    """A dockerd that has everything of its own, for containers without a network; gives what it says that it listens on."""
    with open(f"{path}/dockerd.json", "w") as file:
        file.write("{}")
    log = f"{path}/dockerd.log"
    command = ["dockerd", "--config-file", f"{path}/dockerd.json", "--data-root", f"{path}/data", "--exec-root", f"{path}/exec",
               "--pidfile", f"{path}/dockerd.pid", "--shutdown-timeout", "2", "--bridge=none", "--iptables=false",
               "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false", "--host", host, *options]
    try:
        with service(command, log, lambda: "API listen on" in tail(log, 1 << 20), start_new_session=True):
            yield re.search(r'API listen on ([^\s"]+)', tail(log, 1 << 20))[1]
    finally:
        sweep(path)


def sweep(path):
    """Ends what a dockerd that was killed leaves behind, and unmounts what it mounted: all of it names the folder."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{process}/cmdline", "rb") as file:
            if path.encode() in file.read() and int(process) != os.getpid():
                os.kill(int(process), signal.SIGKILL)
    with open("/proc/self/mountinfo") as file:
        mounted = [line.split()[4] for line in file]
    for mount in sorted((mount for mount in mounted if mount.startswith(f"{path}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount])


class Engine:
    """The CLI, before a dockerd of our own at a Unix socket."""

    def __init__(self, path):
        # The classic builder: the other one is a program that Debian 12 does not have.
        self.environment = {"PATH": os.environ["PATH"], "HOME": path, "DOCKER_CONFIG": f"{path}/cli", "DOCKER_BUILDKIT": "0",
                            "DOCKER_HOST": f"unix://{path}/docker.sock"}

    def __call__(self, *words, **options):
        return run(["docker", *words], env=self.environment, **options)

    def inspect(self, name, field):
        return self("inspect", "--format", f"{{{{{field}}}}}", name).decode().strip()

    def load(self, tag, files, *changes):
        """Makes an image out of files: pairs of where they are here and where they will be there."""
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for here, there in files:
                    tar.add(here, there, recursive=False)
            packed.seek(0)
            changes = [word for change in changes for word in ("--change", change)]
            done = subprocess.run(["docker", "import", *changes, "-", tag], env=self.environment, stdin=packed, stdout=subprocess.PIPE,
                                  timeout=240)
            assert done.returncode == 0, done


@contextlib.contextmanager
def engine():
    """An engine, and the folder that is its home."""
    needs("docker", "dockerd", "busybox")
    if os.geteuid() != 0:
        raise SystemExit("a dockerd of our own needs root")
    path = tempfile.mkdtemp(prefix="countersign-engine-")
    try:
        with dockerd(path, f"unix://{path}/docker.sock"):
            yield Engine(path), path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def application():
    """Files of an image for a program that knows nothing of credentials: busybox."""
    busybox = shutil.which("busybox")
    if b"/ld-linux" in read(busybox):
        raise SystemExit("busybox is not linked statically: install busybox-static instead")
    return [(busybox, "/bin/busybox"), (busybox, "/bin/sh"), (busybox, "/bin/wget")]


def packages(*names):
    """These packages, all that they need and what every Debian has."""
    essential = run(["dpkg-query", "--show", "--showformat", "${Essential} ${Package}\n"]).decode().splitlines()
    names = {*names, *(line.removeprefix("yes ") for line in essential if line.startswith("yes "))}
    without = [f"--no-{relation}" for relation in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    needed = run(["apt-cache", "depends", "--recurse", "--installed", *without, *names]).decode()
    installed = set(run(["dpkg-query", "--show", "--showformat", "${Package}\n"]).decode().split())
    if missing := names - installed:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    return sorted(installed & {line.split(":")[0] for line in needed.splitlines()})


def debian(packages):
    """Files of these packages."""
    paths = {*MADE, *run(["dpkg-query", "--listfiles", *packages]).decode().splitlines()}
    # /bin/sh is /usr/bin/sh, but /bin stays a link.
    paths = {os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths if path.startswith("/")}
    return [(path, path) for path in sorted(paths) if os.path.lexists(path) and not path.startswith(UNREAD)]


def rust():
    """Files of the Rust in use, for /opt/rust, and of the crates that it has fetched, for /opt/cargo."""
    sysroot = run(["rustc", "--print", "sysroot"]).decode().strip()
    target = re.search(r"^host: (.*)$", run(["rustc", "--version", "--verbose"]).decode(), re.MULTILINE)[1]
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    found = [(f"{sysroot}/bin/{program}", f"/opt/rust/bin/{program}") for program in ("cargo", "rustc")]
    found += [(f"{home}/config.toml", "/opt/cargo/config.toml")]
    for top, there in ((f"{sysroot}/lib", "/opt/rust/lib"), (f"{home}/registry/index", "/opt/cargo/registry/index"),
                       (f"{home}/registry/cache", "/opt/cargo/registry/cache")):
        for folder, folders, files in os.walk(top):
            if folder == f"{sysroot}/lib/rustlib":
                folders[:] = [target]
            for name in (*folders, *files):
                found.append((f"{folder}/{name}", f"{there}{folder.removeprefix(top)}/{name}"))
    return [(here, there) for here, there in found if os.path.lexists(here)]


def builder(docker):
    """Makes the image `builder`: what stands in for Rust's own, with Rust and the crates but without a network."""
    docker.load("builder", debian(packages(*BUILDER)) + rust(), "ENV PATH=/opt/rust/bin:/usr/bin:/bin", "ENV CARGO_HOME=/opt/cargo",
                "ENV CARGO_NET_OFFLINE=true")
