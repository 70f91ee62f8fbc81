"""What `countersign routes` prints, run as it is printed."""
import contextlib, hashlib, os, re, sys, zipfile

import requests
from acm import ACMClient
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.request import CommonRequest
from baidubce.auth.bce_credentials import BceCredentials
from baidubce.bce_client_configuration import BceClientConfiguration
from baidubce.services.cert.cert_client import CertClient
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdksms.v3 import ShowCertKeyRequest, SmsClient

from peers import PATIENCE, check, free_port, is_open, run, service

SDK, DOCKER = "The vendor's SDK for Python, with any keys", "Docker, without --tls"

# Whose lines are run where starting a program takes long; those of the others are of the same form.
SLOWLY = {"cert", "bare"}

PYTHON = 'import requests, sys; [print(requests.get(url, timeout=20).text, end="") for url in sys.argv[1:]]'

JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

class Pasted {
    public static void main(String[] arguments) throws Exception {
        var url = System.getenv("URL");
        var all = url != null ? new HttpRequest.Builder[] { HttpRequest.newBuilder(URI.create(url)) } : new HttpRequest.Builder[] {
            %s
        };
        for (var each : all) {
            var request = each.timeout(Duration.ofSeconds(20)).build();
            System.out.print(HttpClient.newHttpClient().send(request, BodyHandlers.ofString()).body());
        }
    }
}
"""

NODE = """
import http from "node:http";
const text = async (reply) => { let all = ""; for await (const piece of reply) all += piece; return all; };
const answered = (request) => new Promise((reply, failed) => request.on("response", reply).on("error", failed));
const tell = (text) => process.stdout.write(text);
"""

NGINX = """
user root;
daemon off;
pid {path}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {path}/nginx-body;
    proxy_temp_path {path}/nginx-proxy;
    fastcgi_temp_path {path}/nginx-fastcgi;
    uwsgi_temp_path {path}/nginx-uwsgi;
    scgi_temp_path {path}/nginx-scgi;
    {servers}
}}
"""


class Printed:
    """What is printed for each route: `told[route][title]` are lines."""

    def __init__(self, binary, daemon, path):
        self.path, self.told = path, {}
        self.environment = {name: os.environ[name] for name in ("PATH", "JAVA_TOOL_OPTIONS")}
        self.environment |= {"HOME": path, "LC_ALL": "C.UTF-8"}
        # The same configuration at the ports that the daemon was given.
        with open(daemon.path) as file:
            text = file.read().replace("127.0.0.1:0", "127.0.0.1:%d" % daemon.address[1], 1)
        for route, port in daemon.own.items():
            head, table, rest = text.partition(f"[routes.{route}]")
            text = head + table + rest.replace("127.0.0.1:0", f"127.0.0.1:{port}", 1)
        assert "127.0.0.1:0" not in text
        with open(os.open(f"{daemon.folder}/at-its-ports.toml", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)
        for route in re.findall(r"^\[routes\.([\w-]+)\]$", text, re.M):
            output = run([binary, "routes", "-c", f"{daemon.folder}/at-its-ports.toml", route]).decode()
            assert "PORT" not in output, output
            pieces = [piece.strip("\n").split("\n") for piece in output.split("\n\n")[1:]]
            self.told[route] = {lines[0].removeprefix("# "): lines[1:] for lines in pieces}

    def lines(self, title):
        """What stands under a title, of every route."""
        return [(route, line) for route, told in self.told.items() for line in told.get(title, [])]

    def sh(self, line, **more):
        """What a shell prints that runs it."""
        return run(["sh", "-c", line], env={**self.environment, **more}, cwd=self.path, patience=PATIENCE * 2).decode()

    def java(self):
        """The source of a program with every line of Java's in it."""
        lines = [line for _, line in self.lines("Java") if not line.startswith("java ")]
        with open(f"{self.path}/Pasted.java", "w") as file:
            file.write(JAVA % ",\n            ".join(lines))
        return file.name


def seen(method="GET", target="/", body=b""):
    """How the judge answers what it accepted."""
    return f"{method} {target} {hashlib.sha256(body).hexdigest()}\n"


def paste(printed, nasty):
    """Runs everything. `nasty` is a target that whoever rewrites it would spoil."""
    lines, sh = printed.lines, printed.sh
    root = seen()
    titles = {title for told in printed.told.values() for title in told}
    assert titles == {"curl", "Environment variables", "Python, with requests", "Java", "Node", "nginx", SDK, DOCKER}, titles
    with check("routes: curl"):
        for _, line in lines("curl"):
            # These have no say in where it goes.
            assert sh(line.replace("curl ", "curl -sS --max-time 20 ")) == root, line

    with check("routes: environment variables, for curl, wget and Python"):
        for route, told in printed.told.items():
            exports = "\n".join(told["Environment variables"])
            variable = re.search(r"export (COUNTERSIGN_\w+)=", exports)[1]
            urls = [f'"${variable}/v1/x"'] + [f"http://{route}.example.test/v1/x"] * ("http_proxy" in exports)
            commands = ["curl -sS --max-time 20", "wget -nv -O - --tries=1 --timeout=20"]
            commands += [f"{sys.executable} -c '{PYTHON}'"] * (route in SLOWLY)
            for command in commands:
                script = f"{exports}\n{command} {' '.join(urls)}"
                found = sh(script)
                assert found == seen(target="/v1/x") * len(urls), f"{script}: {found}"

    with check("routes: Python, with requests"):
        for _, line in lines("Python, with requests"):
            assert eval(line, {"requests": requests}).text == root, line

    with check("routes: Java"):
        with zipfile.ZipFile(f"{printed.path}/app.jar", "w") as jar:
            jar.writestr("META-INF/MANIFEST.MF", "Main-Class: Pasted\n")
            jar.write(f"{printed.path}/classes/Pasted.class", "Pasted.class")
        starts = {line: route for route, line in lines("Java") if line.startswith("java ")}
        found = run(["java", "-cp", f"{printed.path}/classes", "Pasted"], env=printed.environment, patience=60).decode()
        assert found == root * (len(lines("Java")) - len(starts)), found
        for line in [line for line, route in starts.items() if route in SLOWLY]:
            found = sh(line, URL=re.search(r"# for (.*)", line)[1])
            assert found == root, f"{line}: {found}"

    with check("routes: Node"):
        script = NODE
        for _, line in lines("Node"):
            script += f"tell(await text(await answered({line})));\n" if "http.get" in line else f"tell(await ({line}).text());\n"
        found = run(["node", "--input-type=module"], stdin=script.encode(), env=printed.environment).decode()
        assert found == root * len(lines("Node")), found

    with check("routes: nginx"), nginx(printed) as ports:
        for route, port in ports.items():
            curl, url = "curl -sS --max-time 20", f"http://127.0.0.1:{port}"
            assert sh(f'{curl} "{url}{nasty}"') == seen(target=nasty), route
            assert sh(f"head -c 100000 /dev/zero | {curl} -H 'Transfer-Encoding: chunked' --data-binary @- {url}/v1/x") == \
                seen("POST", "/v1/x", bytes(100_000)), route
            found = sh(f"{curl} --location --dump-header - {url}/v1/redirect?q")
            assert found.endswith(seen(target="/v1/landed?q")), f"{route}: {found}"

    with check("routes: the vendors' SDKs"):
        for route, use in SDKS.items():
            text = "\n".join(printed.told[route][SDK])
            use(text)

    with check("routes: DOCKER_HOST"):
        for _, line in lines(DOCKER):
            assert sh(f"{line}\ndocker version --format '{{{{.Server.Version}}}}'") == "the-judge\n", line


@contextlib.contextmanager
def nginx(printed):
    """An nginx with a server for each location that is printed; gives the ports, by their routes."""
    ports, servers = {}, ""
    for route, told in printed.told.items():
        ports[route] = free_port()
        location = "\n".join(told["nginx"])
        servers += f"server {{ listen 127.0.0.1:{ports[route]}; {location} }}\n"
    with open(f"{printed.path}/nginx.conf", "w") as file:
        file.write(NGINX.format(path=printed.path, servers=servers))
    command = ["nginx", "-p", printed.path, "-c", file.name]
    with service(command, f"{printed.path}/nginx.log", lambda: all(map(is_open, ports.values())), env=printed.environment):
        yield ports


def with_baidu(text):
    configuration = eval(text)
    assert CertClient(configuration).list_user_certs().certs[0].cert_id == "cert-1"


def with_acm(text):
    client = eval(text)
    client.set_options(no_snapshot=True)
    assert client.get("app.yaml", "DEFAULT_GROUP") == "\u914d\u7f6e: 1"


def with_acs(text):
    *before, last = text.split("\n")
    names = {"CommonRequest": CommonRequest, "AcsClient": AcsClient}
    exec("\n".join(before), names)
    assert b"192.0.2.1" in eval(last, names)


def with_huawei(text):
    client = eval(text, {"builder": SmsClient.new_builder(), "BasicCredentials": BasicCredentials})
    assert client.show_cert_key(ShowCertKeyRequest(task_id="7a9941f6-3dc4-4ac2-8d3f-3b5b39f12a3c")).ca == "CA"


SDKS = {"cert": with_baidu, "acm": with_acm, "clusters": with_acs, "sms": with_huawei}
