"""The image that Dockerfile describes, built for real, and what it promises: one static binary and the roots of trust, for a
user without rights, on a read-only root.

Usage: peer_image.py IMAGE.tar (where the image is put, for peer_sidecar.py)
"""
import io, json, os, subprocess, tarfile

from engine import builder, engine
from peers import check, main, until

MOST = 12_000_000
COMMIT = "0123abc"
# How many seconds a build may take, with all that a release is built with.
LONG = 1500
# As tight as it gets, but for the folder that a demonstration writes its keys into.
TIGHT = ["--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--log-driver=json-file"]

CONFIGURATION = """
[admin]
listen = "127.0.0.1:9900"

[routes.git]
upstream = "https://git.example.com"
[routes.git.header]
headers = { "PRIVATE-TOKEN" = { file = "token" } }
"""


def contents(saved):
    """The files of an image, by their paths: what its layers hold, without what an engine adds."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(saved)) as image:
        for layer in json.load(image.extractfile("manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=io.BytesIO(image.extractfile(layer).read())) as files:
                found |= {file.name: files.extractfile(file).read() for file in files if not file.isdir()}
    return found


def built(docker, saved):
    with check("image: it is built without a network, out of Debian's packages and the Rust in use"):
        builder(docker)
        # Where it takes long, what it says is worth seeing.
        subprocess.run(["docker", "build", "--network=none", "--build-arg", "BUILDER=builder", "--build-arg",
                        f"COUNTERSIGN_COMMIT={COMMIT}", "--tag", "countersign", "."], env=docker.environment, check=True, timeout=LONG)

    size = int(docker.inspect("countersign", ".Size"))
    with check(f"image: {size / 1e6:.1f} MB, and nothing in it but the binary and the roots"):
        assert size <= MOST, size
        image = docker("save", "countersign")
        files = contents(image)
        assert set(files) == {"usr/bin/countersign", "etc/ssl/certs/ca-certificates.crt"}, set(files)
        assert b"-----BEGIN CERTIFICATE-----" in files["etc/ssl/certs/ca-certificates.crt"]

    with check("image: the binary is static, and names no folder of its builder's"):
        binary = files["usr/bin/countersign"]
        for foreign in (b"/ld-linux", b"/opt/cargo", b"/opt/rust", b"/root"):
            at = binary.find(foreign)
            assert at < 0, binary[max(at - 100, 0):at + 100]
    with open(saved, "wb") as file:
        file.write(image)


def runs(docker, path):
    with check("image: it knows its commit, and runs as nobody in particular"):
        assert f"({COMMIT})".encode() in docker("run", "--rm", *TIGHT, "countersign", "--version")
        assert docker.inspect("countersign", ".Config.User") == "65532:65532"

    with check("image: the demonstration, on a read-only root, without a network or any capability"):
        assert b"All were accepted" in docker("run", "--rm", *TIGHT, "--tmpfs=/tmp", "countersign", "demo", "--once", patience=60)

    with check("image: without a configuration it says so"):
        docker("run", "--rm", *TIGHT, "countersign", expect=78)

    os.mkdir(f"{path}/configuration")
    for name, text in (("countersign.toml", CONFIGURATION), ("token", "secret")):
        with open(f"{path}/configuration/{name}", "w") as file:
            file.write(text)
    with check("image: the health check sees that it is ready, and it ends with 0 when it is told to"):
        docker("run", "--detach", "--name=proxy", *TIGHT, "--volume", f"{path}/configuration:/etc/countersign:ro", "countersign")
        until(lambda: docker.inspect("proxy", ".State.Health.Status") == "healthy", "it does not become healthy", patience=120)
        assert b"ready" in docker("exec", "proxy", "countersign", "health")
        docker("stop", "--time=60", "proxy", patience=90)
        assert docker.inspect("proxy", ".State.ExitCode") == "0", docker("logs", "proxy")
        docker("rm", "proxy")


def checks(saved):
    with engine() as (docker, path):
        os.chmod(path, 0o755)
        built(docker, os.path.abspath(saved))
        runs(docker, path)


if __name__ == "__main__":
    main(checks)
