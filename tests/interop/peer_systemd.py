"""systemd: what its tools say of the units in systemd/, and what becomes of them under a systemd that runs as the first process
of a container: this machine's files under a layer that goes away, with processes, mounts, users' names and a network of its own.

Usage: peer_systemd.py BINARY [--units-only] | --direct
"""
import contextlib, os, re, signal, subprocess, sys, time

from peers import PATIENCE, check, folder, main, needs, read, run, service, until

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
UNITS = f"{ROOT}/systemd"

# What keeps a container alive and no more: units start at once, without those that look after a machine.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs layer "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
rm -rf etc/systemd/system etc/systemd/user etc/countersign
mkdir -p etc/systemd/system etc/systemd/user usr/local/bin root/.cargo/bin home/app src
echo 0123456789abcdef0123456789abcdef >etc/machine-id
for unit in sysinit basic bare; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >"etc/systemd/system/$unit.target"
done
cp -R "$2" src/systemd
cp "$2"/user/countersign.service etc/systemd/user/
install -m 755 "$3" root/.cargo/bin/countersign
for name in app:991 other:992; do
    echo "${name%:*}:x:${name#*:}:${name#*:}::/home/${name%:*}:/bin/sh" >>etc/passwd
    echo "${name%:*}:x:${name#*:}:" >>etc/group
done
pivot_root . .
umount -l .
# Credentials are mounted by a child.
mount --make-rshared /
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    "$4" --system --unit=bare.target --log-target=null --show-status=no
"""

# Answers with the token that came.
UPSTREAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from stage import Upstream
upstream = Upstream(lambda request: (200, [], request.header(b"authorization") or b"none"))
print(upstream.port, flush=True)
time.sleep(3600)
"""

CONFIGURATION = """
[server]
listen = [{listen}]
drain_timeout = "5s"
[routes.up]
upstream = "http://127.0.0.1:{port}"
plaintext = true
{more}
[routes.up.bearer]
token = {token}
"""

# How the units differ here.
DROP_IN = """
[Service]
LoadCredential=token:/etc/countersign/token
StandardError=append:/run/countersign.log
Environment=NO_COLOR=1
{more}
"""

# A user's service manager, without a session that starts it.
USER_MANAGER = """
[Service]
User=app
Type=notify
ExecStart={systemd} --user --unit=basic.target
Environment=XDG_RUNTIME_DIR=/run/user/991 HOME=/home/app
Delegate=yes
KillMode=mixed
"""


class Container:
    """A systemd of its own."""

    def __init__(self, process, path):
        [self.systemd] = map(int, until(lambda: children(process.pid), "no first process"))
        self.path = path
        until(lambda: process.poll() is not None or self.answers(), "systemd does not answer")

    def answers(self):
        return not subprocess.run(self.inside("systemctl", "show"), capture_output=True, timeout=PATIENCE).returncode

    def inside(self, *command, namespaces="-mpuinC"):
        return ["nsenter", "-t", str(self.systemd), *(f"-{letter}" for letter in namespaces[1:]), *command]

    def __call__(self, *command, **options):
        return run(self.inside(*command), **options).decode()

    def write(self, path, text, mode=0o644, owner="root"):
        self("sh", "-c", 'mkdir -p "${1%/*}"; umask 077; cat >"$1"; chmod "$2" "$1"; chown "$3" "$1"', "sh", path, f"{mode:o}", owner,
             stdin=text.encode())

    def show(self, name):
        return self("systemctl", "show", "--value", "--property", name, "countersign.service").strip()

    def get(self, *where, user="root"):
        """The status and the body of a reply."""
        uid = {"root": 0, "app": 991, "other": 992}[user]
        command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "curl", "-s", "-m", str(PATIENCE), "-w", " %{http_code}"]
        body, status = self(*command, *where).rsplit(" ", 1)
        return int(status), body

    def log(self):
        return self("sh", "-c", "cat /run/countersign.log 2>/dev/null || true")


def children(pid):
    return read(f"/proc/{pid}/task/{pid}/children").split()


@contextlib.contextmanager
def container(path, binary):
    """Boots one, and ends it with all that runs in it."""
    systemd = next(path for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if os.path.exists(path))
    os.mkdir(f"{path}/container")
    command = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "--kill-child", "sh", "-c", BOOT, "sh",
               f"{path}/container", UNITS, os.path.abspath(binary), systemd]
    log = f"{path}/container.log"
    with service(command, log, lambda: True) as process:
        booted = Container(process, path)
        try:
            yield booted
        except BaseException:
            with contextlib.suppress(Exception):
                print(booted("systemctl", "status", "--no-pager", "--lines=0", "countersign.service", "countersign.socket", expect=3))
            with contextlib.suppress(Exception):
                print(booted.log()[-4000:])
            raise
        finally:
            # With the first process all others end; what started it waits for it, whatever it is told.
            os.kill(booted.systemd, signal.SIGKILL)


@contextlib.contextmanager
def upstream(booted):
    here = os.path.dirname(os.path.abspath(__file__))
    process = subprocess.Popen(booted.inside(sys.executable, "-c", UPSTREAM, here, namespaces="-n"), stdout=subprocess.PIPE)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def units(path, binary):
    """What systemd's tools say without running anything."""
    for name in ("countersign.service", "countersign.socket", "user/countersign.service"):
        unit = f"{path}/units/{name}"
        os.makedirs(os.path.dirname(unit), exist_ok=True)
        with open(f"{UNITS}/{name}") as file, open(unit, "w") as copy:
            # Where it will be found is where it is not yet.
            copy.write(file.read().replace("ExecStart=countersign", f"ExecStart={os.path.abspath(binary)}"))
    with check("systemd-analyze verify finds nothing"):
        environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": path, "HOME": path}
        for scope, names in (("--system", ["countersign.service", "countersign.socket"]), ("--user", ["user/countersign.service"])):
            command = ["systemd-analyze", "verify", "--man=no", scope, *(f"{path}/units/{name}" for name in names)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
            assert (done.returncode, done.stdout + done.stderr) == (0, ""), done
    with check("systemd-analyze security: 1.0 at most"):
        run(["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=10", f"{path}/units/countersign.service"])


def lives(booted, port):
    def configure(token='{ credential = "token" }', listen='"systemd:countersign"', more=""):
        text = CONFIGURATION.format(port=port, token=token, listen=listen, more=more)
        booted.write("/etc/countersign/countersign.toml", text, 0o640, "root:countersign")

    def differ(more=""):
        booted.write("/etc/systemd/system/countersign.service.d/test.conf", DROP_IN.format(more=more))
        booted("systemctl", "daemon-reload")

    def status(text):
        until(lambda: booted.show("StatusText").startswith(text), f"the status is not {text}")

    url = "http://127.0.0.1:8080/up/"
    with check("systemd: the lines of the README install it"):
        text = CONFIGURATION.format(port=port, token='{ command = ["echo", "first"] }', listen='"127.0.0.1:8080"', more="")
        booted.write("/src/countersign.toml", text)
        lines = [line for block in re.findall(r"^```console\n(.+?)^```", read(f"{ROOT}/README.md").decode(), re.M | re.S)
                 for line in re.findall(r"^\$ sudo (.+)$", block, re.M)]
        assert len(lines) > 5, lines
        for line in lines:
            booted("sh", "-c", f"export HOME=/root; cd /src; {line}")
        assert booted.get(url) == (200, "Bearer first")
        booted("systemctl", "disable", "--now", "countersign.service")

    configure()
    booted.write("/etc/countersign/token", "the-token\n", 0o600)
    differ()
    with check("systemd: a caller at the socket starts the daemon, with a credential that root alone can read"):
        booted("systemctl", "start", "countersign.socket")
        assert booted.show("ActiveState") == "inactive"
        assert booted.get(url) == (200, "Bearer the-token"), booted.get(url)
        assert booted.get("http://[::1]:8080/up/") == (200, "Bearer the-token")
        assert booted.show("StatusText") == "serving 1 route"
        assert not re.search("WARN|ERROR", booted.log()), booted.log()

    with check("systemd: it is confined"):
        first = booted.show("MainPID")
        facts = dict(re.findall(r"(\w+):\s+(.+)", booted("cat", f"/proc/{first}/status")))
        assert (facts["CapBnd"], facts["NoNewPrivs"], facts["Seccomp"]) == ("0" * 16, "1", "2"), facts
        assert booted("nsenter", "-t", first, "-m", "sh", "-c", "touch /etc/x /home/x 2>/dev/null; echo $?").strip() == "1"

    with check("systemd: a reload takes over what has changed, and says what it refuses"):
        booted.write("/etc/countersign/another", "another\n", 0o640, "root:countersign")
        configure('{ file = "another" }')
        booted("systemctl", "reload", "countersign.service")
        until(lambda: booted.get(url) == (200, "Bearer another"), "no other token")
        until(lambda: booted.show("ActiveState") == "active", "the reload does not end")
        booted.write("/etc/countersign/countersign.toml", "nonsense\n", 0o640, "root:countersign")
        booted("systemctl", "reload", "countersign.service")
        status("reload refused: /etc/countersign/countersign.toml:1:")
        assert booted.get(url) == (200, "Bearer another")
        # It has confined itself to run none.
        configure('{ command = ["echo", "a third"] }')
        until(lambda: "restart needed" in booted.log(), "a program runs, or nobody says why it does not")
        assert booted.get(url) == (200, "Bearer another")
        configure()
        status("serving 1 route")
        assert (booted.show("MainPID"), booted.show("NRestarts"), booted.show("ActiveState")) == (first, "0", "active")

    with check("systemd: a restart refuses nobody"):
        calls = 'for i in $(seq 60); do curl -s -m 20 -o /dev/null -w "%{http_code}\\n" "$0" || echo $?; done'
        with subprocess.Popen(booted.inside("sh", "-c", calls, url), stdout=subprocess.PIPE, text=True) as calling:
            assert calling.stdout.readline() == "200\n"
            for _ in range(3):
                booted("systemctl", "restart", "countersign.service")
            assert set(calling.stdout.read().split()) == {"200"}
        assert booted.show("MainPID") != first

    with check("systemd: a daemon that hangs is replaced"):
        differ("WatchdogSec=4\nRestartSec=0")
        booted("systemctl", "restart", "countersign.service")
        time.sleep(6)
        hung = booted.show("MainPID")
        assert booted.show("NRestarts") == "0", "it has given signs of life"
        booted("kill", "-STOP", hung)
        until(lambda: booted.show("NRestarts") == "1" and booted.show("ActiveState") == "active", "nobody notices")
        assert booted.get(url) == (200, "Bearer the-token") and booted.show("MainPID") != hung

    with check("systemd: one that waits for a program to print a secret does not hang"):
        configure('{ command = ["echo", "early"] }')
        booted("systemctl", "restart", "countersign.service")
        assert booted.get(url) == (200, "Bearer early")
        configure('{ command = ["sh", "-c", "sleep 6; echo late"] }')
        until(lambda: booted.get(url) == (200, "Bearer late"), "no other token")
        assert booted.show("NRestarts") == "0"
        configure()
        until(lambda: booted.get(url) == (200, "Bearer the-token"), "no other token")
        differ()

    with check("systemd: callers are known by their users with callers.conf alone"):
        booted.write("/etc/systemd/system/countersign.socket.d/unix.conf", "[Socket]\nListenStream=/run/countersign.sock\nSocketMode=0666\n")
        booted("systemctl", "stop", "countersign.service", "countersign.socket")
        booted("systemctl", "daemon-reload")
        configure(more="callers = { uid = [991] }")
        booted("systemctl", "start", "countersign.socket")
        where = "--unix-socket", "/run/countersign.sock", "http://localhost/up/"
        assert [booted.get(*where, user=user)[0] for user in ("app", "other")] == [403, 403]
        booted("cp", "/src/systemd/callers.conf", "/etc/systemd/system/countersign.service.d/")
        booted("systemctl", "daemon-reload")
        booted("systemctl", "restart", "countersign.service")
        assert [booted.get(*where, user=user)[0] for user in ("app", "other")] == [200, 403]
        differ("SupplementaryGroups=app")
        configure(more='listen = ["unix:/run/countersign/cs.sock?mode=0660&group=app"]')
        booted("systemctl", "restart", "countersign.service")
        assert booted("stat", "-c", "%G %a", "/run/countersign/cs.sock").split() == ["app", "660"]
        differ()
        booted("rm", "/etc/systemd/system/countersign.service.d/callers.conf")

    with check("systemd: what is stopped ends well, and does not start again by itself"):
        booted("systemctl", "stop", "countersign.socket", "countersign.service")
        assert (booted.show("ActiveState"), booted.show("Result")) == ("inactive", "success")
        booted("systemctl", "daemon-reload")

    with check("systemd: a configuration that is wrong is not tried again, a port in use is"):
        configure(listen="1")
        booted("systemctl", "start", "countersign.service", expect=1)
        facts = [booted.show(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
        assert facts == ["failed", "78", "0"], facts
        configure(listen='"systemd:nobody"')
        booted("systemctl", "start", "countersign.service", expect=1)
        assert booted.show("ExecMainStatus") == "1" and "start the daemon through a .socket unit" in booted.log()
        until(lambda: booted.show("NRestarts") != "0", "it is not tried again")
        booted("systemctl", "stop", "countersign.service")

    with check("systemd: it serves one user, under a service manager of theirs"):
        systemd = booted("readlink", "/proc/1/exe").strip()
        booted.write("/etc/systemd/system/app.service", USER_MANAGER.format(systemd=systemd))
        booted.write("/home/app/.config/countersign/countersign.toml", CONFIGURATION.format(
            port=port, token='"mine"', listen='"unix:/run/user/991/countersign/cs.sock"', more=""), 0o600)
        booted("sh", "-c", "mkdir -p /run/user/991; chown -R app:app /run/user/991 /home/app; chmod 700 /run/user/991")
        booted("systemctl", "daemon-reload")
        booted("systemctl", "start", "app.service")
        user = "setpriv", "--reuid=991", "--regid=991", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/991", "systemctl", "--user"
        booted(*user, "start", "countersign.service")
        where = "--unix-socket", "/run/user/991/countersign/cs.sock", "http://localhost/up/"
        assert booted.get(*where, user="app") == (200, "Bearer mine")
        shown = booted(*user, "show", "--property=StatusText,ActiveState", "countersign.service")
        assert "StatusText=serving 1 route" in shown, shown
        booted(*user, "stop", "countersign.service")


def checks(binary):
    needs("systemd-analyze", "systemctl")
    if not binary:
        return
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        units(path, binary)
        if "--units-only" in sys.argv:
            return
        needs("unshare", "nsenter", "setpriv", "pivot_root", "curl")
        booted = stack.enter_context(container(path, binary))
        port = stack.enter_context(upstream(booted))
        lives(booted, port)


if __name__ == "__main__":
    main(checks)
