"""What .ci/release packs: the archive, and the package for Debian, which is installed, started, upgraded and purged in a container
of Debian's packages.

Usage: peer_package.py IMAGE.tar (what peer_image.py made)
"""
import glob, os, shutil, subprocess, tarfile

from engine import debian, engine, packages
from peers import check, main, read, run, until

CONFIGURATION = """
[admin]
listen = "127.0.0.1:9900"
[routes.git]
upstream = "https://git.example.com"
[routes.git.header]
headers = { "PRIVATE-TOKEN" = { file = "token" } }
"""
# The wait for a cargo-deb that has to be built, and a release.
LONG = 1500


def release(docker, *words):
    environment = {**os.environ, **docker.environment, "HOME": os.environ["HOME"]}
    return run([".ci/release", *words], env=environment, patience=LONG).decode().strip()


def archive(docker, path):
    with check("package: the archive is the same each time, and what it holds runs by itself"):
        made = release(docker, "archive")
        first = read(made)
        assert release(docker, "archive") == made and read(made) == first
        with tarfile.open(made) as tar:
            names = {name.partition("/")[2] for name in tar.getnames()}
            tar.extractall(f"{path}/archive", filter="data")
        for name in ("countersign", "LICENSE", "README.md", "share/man/countersign.1", "share/_countersign", "config/compose.yaml",
                     "systemd/countersign.service"):
            assert name in names, (name, names)
        binary, = glob.glob(f"{path}/archive/*/countersign")
        run([binary, "demo", "--once"], patience=60)


def deb(docker, path):
    shared = f"{path}/shared"
    os.mkdir(shared)
    with check("package: two revisions are built"):
        for revision in ("1", "2"):
            release(docker, "deb", "--deb-revision", revision)
            made, = glob.glob(f"target/package/countersign_*-{revision}_*.deb")
            shutil.copy(made, f"{shared}/{revision}.deb")
    for name, text in (("countersign.toml", CONFIGURATION), ("token", "secret")):
        with open(f"{shared}/{name}", "w") as file:
            file.write(text)

    inside = packages("dpkg", "systemd", "libc6", "libgcc-s1", "ca-certificates")
    with open(f"{path}/status", "wb") as file:
        file.write(run(["dpkg-query", "--status", *inside]))
    docker.load("debian", debian(inside) + [(f"{path}/status", "/var/lib/dpkg/status")], "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin")
    docker("run", "--detach", "--init", "--name=debian", "--network=none", "--volume", f"{shared}:/shared:ro", "debian", "sleep", "1000")

    def do(*words, **options):
        return docker("exec", "debian", *words, patience=60, **options).decode()

    with check("package: it is installed, with a user of its own, its manual and its units, and starts nothing"):
        do("dpkg", "--install", "/shared/1.deb")
        assert do("countersign", "--version").startswith("countersign ")
        do("id", "countersign")
        for file in ("man/man1/countersign.1.gz", "man/man5/countersign.toml.5.gz", "zsh/vendor-completions/_countersign",
                     "bash-completion/completions/countersign", "doc/countersign/examples/countersign.toml"):
            do("test", "-s", f"/usr/share/{file}")
        for unit in ("system/countersign.service", "system/countersign.socket", "user/countersign.service"):
            do("test", "-s", f"/usr/lib/systemd/{unit}")
        assert "countersign" not in do("find", "/etc/systemd")

    with check("package: its user runs it, and an upgrade leaves the configuration and the user alone"):
        do("mkdir", "/etc/countersign")
        do("cp", "/shared/countersign.toml", "/shared/token", "/etc/countersign")
        docker("exec", "--detach", "--user", "countersign", "debian", "countersign", "run")
        def is_healthy():
            words = ["docker", "exec", "debian", "countersign", "health"]
            return subprocess.run(words, env=docker.environment, capture_output=True, timeout=60).returncode == 0
        until(is_healthy, "it does not become ready", patience=60)
        before = do("id", "countersign")
        do("dpkg", "--install", "/shared/2.deb")
        assert do("dpkg-query", "--show", "--showformat", "${Version}", "countersign").endswith("-2")
        assert do("id", "countersign") == before
        do("countersign", "check")

    with check("package: what is purged is gone, but for what somebody else wrote"):
        do("dpkg", "--purge", "countersign")
        do("test", "!", "-e", "/usr/bin/countersign", "-a", "!", "-e", "/usr/lib/systemd/system/countersign.service")
        do("test", "-e", "/etc/countersign/countersign.toml")


def checks(image):
    with engine() as (docker, path):
        os.chmod(path, 0o755)
        docker("load", "--input", image, patience=60)
        archive(docker, path)
        deb(docker, path)


if __name__ == "__main__":
    main(checks)
