"""The image as a sidecar: config/compose.yaml run with real containers, an application that calls through it, an upstream that
verifies; config/kubernetes.yaml against the types of Kubernetes's own client, since there is no cluster.

Usage: peer_sidecar.py IMAGE.tar (what peer_image.py made)
"""
import contextlib, http.server, json, os, re, subprocess, sys, time

import kubernetes.client
import yaml
from baidubce.auth import bce_v1_signer
from baidubce.auth.bce_credentials import BceCredentials

from engine import application, engine
from peers import certificates, check, main, read, run, server_context, until

# The one network is the loopback of the sidecar's namespace.
OVERRIDE = """
services:
  countersign:
    network_mode: none
    extra_hosts: ["upstream.test:127.0.0.1"]
  application:
    command: [sh, -c, 'trap "exit 0" TERM; while busybox sleep 0.02; do wget -q -O - $$API_URL/v1/certificate || echo failed; done']
"""
SERVICES = ("application", "countersign")
CONFIGURATION = """
[admin]
listen = "127.0.0.1:9900"
[routes.cert]
upstream = "https://upstream.test:8443"
tls = { ca = "ca.pem" }
[routes.cert.bce]
credentials = { source = "file", path = "credentials.json" }
"""
OLD, NEW = ("old", "old secret"), ("new", "new secret")


class Judge(http.server.BaseHTTPRequestHandler):
    """Answers with the access key, if the vendor's own signer comes to the same signature with its secret."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = self.headers["Authorization"]
        _, access_key, date, expires, names, _ = found.split("/")
        headers = {name.encode(): self.headers[name].encode() for name in names.split(";")}
        with open("keys.json") as file:
            secret = json.load(file).get(access_key)
        is_good = secret and found.encode() == bce_v1_signer.sign(
            BceCredentials(access_key, secret), b"GET", self.path.encode(), headers, {},
            int(time.mktime(time.strptime(date, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone), int(expires), list(headers))
        body = f"{access_key}\n".encode() if is_good else b'{"code":"InvalidAccessKeyId"}'
        self.send_response(200 if is_good else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def judge():
    """The upstream, as a program of its own in the folder that it finds itself in."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Judge)
    server.socket = server_context(".").wrap_socket(server.socket, server_side=True)
    print("judging", flush=True)
    server.serve_forever()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def swap(folder, generation, key):
    """Fills a folder in the way that Kubernetes fills volumes: all files change at once, with a link to a folder."""
    os.mkdir(f"{folder}/..{generation}")
    for name, text in (("countersign.toml", CONFIGURATION), ("ca.pem", read(f"{folder}/../ca.pem").decode()),
                       ("credentials.json", json.dumps(dict(zip(("AccessKeyId", "SecretAccessKey"), key))))):
        write(f"{folder}/..{generation}/{name}", text)
        if not os.path.lexists(f"{folder}/{name}"):
            os.symlink(f"..data/{name}", f"{folder}/{name}")
    os.symlink(f"..{generation}", f"{folder}/..new")
    os.rename(f"{folder}/..new", f"{folder}/..data")


class Compose:
    """A folder with compose.yaml, and the program that reads it."""

    def __init__(self, docker, path):
        self.docker, self.path = docker, f"{path}/sidecar"
        write(f"{self.path}/compose.yaml", read("config/compose.yaml").decode())
        write(f"{self.path}/override.yaml", OVERRIDE)

    def __call__(self, *words, **options):
        command = ["docker-compose", "--file", "compose.yaml", "--file", "override.yaml", *words]
        return run(command, env=self.docker.environment, cwd=self.path, patience=120, **options)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for service in SERVICES if kind else ():
            print(f"-- the end of what {service} said:\n{self.said(service)[-3000:]}", file=sys.stderr)

    def container(self, service):
        return self.docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.service={service}").decode().strip()

    def state(self, service, field):
        return self.docker.inspect(self.container(service), f".State.{field}")

    def said(self, service):
        """What a container has written to both of its streams."""
        return self.docker("logs", self.container(service), stderr=subprocess.STDOUT).decode()

    def calls(self):
        """What came of the application's requests, in their order: the access keys that were accepted, and failures."""
        return self.said("application").split()

    @contextlib.contextmanager
    def upstream(self):
        """The judge, on the loopback that the two containers share."""
        command = ["nsenter", f"--net=/proc/{self.state('countersign', 'Pid')}/ns/net", sys.executable, os.path.abspath(__file__), "judge"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=self.path)
        try:
            assert process.stdout.readline() == b"judging\n"
            yield
        finally:
            process.kill()
            process.wait()


def runs(docker, path):
    folder = f"{path}/sidecar/countersign"
    os.makedirs(folder)
    certificates(f"{path}/sidecar", "server")
    swap(folder, "first", OLD)
    write(f"{path}/sidecar/keys.json", json.dumps(dict([OLD, NEW])))

    with Compose(docker, path) as compose, contextlib.ExitStack() as stack:
        with check("sidecar: an application without credentials reaches an upstream that verifies"):
            compose("up", "--detach", "countersign")
            stack.enter_context(compose.upstream())
            compose("up", "--detach")
            until(lambda: compose.calls().count("old") > 20, "the upstream has accepted nothing", patience=60)

        with check("sidecar: a swapped secret is taken up, and the old one retired, without a failed request"):
            swap(folder, "second", NEW)
            until(lambda: "new" in compose.calls(), "the new key is not taken up", patience=60)
            write(f"{path}/sidecar/keys.json", json.dumps(dict([NEW])))
            accepted = compose.calls().count("new")
            until(lambda: compose.calls().count("new") > accepted + 20, "the new key is not used any more", patience=60)
            assert set(compose.calls()) == {"old", "new"}, compose.calls()

        with check("sidecar: the application ends first, both with 0, and no request fails meanwhile"):
            compose("stop")
            ended = [compose.state(service, "FinishedAt") for service in SERVICES]
            assert ended == sorted(ended), ended
            codes = [compose.state(service, "ExitCode") for service in SERVICES]
            assert codes == ["0", "0"], codes
            assert set(compose.calls()) == {"old", "new"}, compose.calls()
        compose("down")


def manifest():
    """Reads config/kubernetes.yaml strictly: unknown fields, wrong types and missing ones are errors."""
    text = read("config/kubernetes.yaml").decode()
    # The client takes Python's spellings too.
    assert not re.findall(r"^[ -]*\w*_\w*:", text, re.MULTILINE)
    documents = yaml.safe_load_all(text)
    return {one["kind"]: getattr(kubernetes.client, f"V1{one['kind']}").model_validate(one) for one in documents}


def kubernetes_checks(docker, path):
    with check("sidecar: the manifest is what Kubernetes's client takes, and its names and paths fit together"):
        found = manifest()
        pod = found["Job"].spec.template.spec
        sidecar, = pod.init_containers
        assert sidecar.restart_policy == "Always" and sidecar.startup_probe.var_exec.command == ["countersign", "health"], sidecar
        volume, = pod.volumes
        assert [mount.name for mount in sidecar.volume_mounts] == [volume.name]
        assert not pod.containers[0].volume_mounts
        sources = volume.projected.sources
        assert (sources[0].config_map.name, sources[1].secret.name) == (found["ConfigMap"].metadata.name, found["Secret"].metadata.name)

    with check("sidecar: the manifest's configuration is a good one, in the image, as the manifest's user"):
        folder = f"{path}/manifest"
        os.mkdir(folder)
        for name, text in (found["ConfigMap"].data | found["Secret"].string_data).items():
            write(f"{folder}/{name}", text)
        context = sidecar.security_context
        assert context.read_only_root_filesystem and context.capabilities.drop == ["ALL"]
        docker("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--user", str(context.run_as_user), "--volume",
               f"{folder}:{sidecar.volume_mounts[0].mount_path}:ro", "countersign", "check")


def checks(image):
    with engine() as (docker, path):
        os.chmod(path, 0o755)
        docker("load", "--input", image, patience=60)
        docker.load("application", application(), "ENV PATH=/bin")
        kubernetes_checks(docker, path)
        runs(docker, path)


if __name__ == "__main__":
    judge() if sys.argv[1:] == ["judge"] else main(checks)
