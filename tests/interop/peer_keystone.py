"""OpenStack's Keystone, whose API Huawei's IAM speaks, with Fernet tokens in SQLite: it hands out the tokens, and wants them.

Usage: peer_keystone.py BINARY | --direct
"""
import contextlib, json, os, re, shutil, socketserver, sys, threading, time, urllib.error, urllib.request
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cryptography.fernet import Fernet

from peers import Daemon, check, folder, free_port, is_open, main, read, run, service, until
from stage import Upstream

PASSWORD, OTHER = "pass \"word\" \\ \u4e2d", "another"
# Of tokens, in seconds.
LONG, SHORT = 3600, 10

CONFIGURATION = """
[DEFAULT]
log_file = {path}/keystone.log
[database]
connection = sqlite:///{path}/{life}.db
[fernet_tokens]
key_repository = {path}/fernet
[fernet_receipts]
key_repository = {path}/receipts
[identity]
password_hash_rounds = 4
[token]
expiration = {life}
"""

ROUTE = """
[routes.{name}]
upstream = "http://127.0.0.1:{upstream}"
listen = ["127.0.0.1:0"]
{keys}
[routes.{name}.huawei-token]
iam = "http://127.0.0.1:{port}"
account = "Default"
user = "interop"
password = {{ file = "{password}" }}
scope = {scope}
"""

PROJECT = '{ project = "admin", domain = "Default" }'


def keystone(path, life):
    """The configuration of one with tokens of this life."""
    configuration = f"{path}/keystone-{life}.conf"
    with open(configuration, "w") as file:
        file.write(CONFIGURATION.format(path=path, life=life))
    return configuration


def prepare(path):
    """What Keystone needs before it is served: its tables, its keys, an administrator."""
    for keys in ("fernet", "receipts"):
        os.mkdir(f"{path}/{keys}", 0o700)
        for number in "01":
            with open(os.open(f"{path}/{keys}/{number}", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(Fernet.generate_key())
    manage = [os.path.join(os.path.dirname(sys.executable), "keystone-manage"), "--config-file", keystone(path, LONG)]
    run([*manage, "db_sync"], patience=90)
    run([*manage, "bootstrap", "--bootstrap-password", PASSWORD], patience=90)


def serve(port, configuration):
    """Serves until it is ended."""
    class Server(socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads, request_queue_size = True, 128

    class Handler(WSGIRequestHandler):
        def log_message(self, form, *values):
            print(form % values, flush=True)

    from keystone.server.flask import core
    application = core.initialize_application(name="public", config_files=[configuration])
    # Of two transactions at a time SQLite refuses one.
    turn = threading.Lock()

    def one_by_one(*arguments):
        with turn:
            return application(*arguments)
    make_server("127.0.0.1", int(port), one_by_one, Server, Handler).serve_forever()


class Keystone:
    """A running one, and what it was asked."""

    def __init__(self, port, log):
        self.port, self.log = port, log

    def count(self, pattern):
        return len(re.findall(pattern, read(self.log).decode()))

    @property
    def logins(self):
        return self.count(r'"POST /v3/auth/tokens\?nocatalog=true ')


@contextlib.contextmanager
def serving(path, life):
    port, log = free_port(), f"{path}/serving-{life}.log"
    command = [sys.executable, os.path.abspath(__file__), "--serve", str(port), keystone(path, life)]
    with service(command, log, lambda: is_open(port)):
        yield Keystone(port, log)


def ask(port, method, path, body=None, headers={}):
    """Status, headers and JSON of a reply."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as reply:
            status, fields, content = reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        status, fields, content = error.code, error.headers, error.read()
    return status, fields, json.loads(content or b"null")


def login(user, password):
    """What a token is asked for with."""
    domain = {"name": "Default"}
    user = {"name": user, "password": password, "domain": domain}
    scope = {"project": {"name": "admin", "domain": domain}}
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}


class Admin:
    """The administrator, who asks without countersign."""

    def __init__(self, port):
        self.port = port
        status, headers, body = ask(port, "POST", "/v3/auth/tokens", login("admin", PASSWORD))
        assert status == 201, body
        self.token, self.project = headers["X-Subject-Token"], body["token"]["project"]["id"]
        role, = (role["id"] for role in body["token"]["roles"] if role["name"] == "admin")
        user = {"name": "interop", "domain_id": "default", "password": PASSWORD}
        self.user = self.do("POST", "/v3/users", {"user": user})["user"]["id"]
        for place in (f"projects/{self.project}", "domains/default"):
            self.do("PUT", f"/v3/{place}/users/{self.user}/roles/{role}")

    def do(self, method, path, body=None, **headers):
        status, _, reply = ask(self.port, method, path, body, {"X-Auth-Token": self.token, **headers})
        assert status < 300, f"{method} {path}: {status} {reply}"
        return reply

    def revoke(self, token):
        self.do("DELETE", "/v3/auth/tokens", **{"X-Subject-Token": token})

    def change(self, **fields):
        """Changes the user, which ends its tokens; also those that are made later in the same second, of which Keystone keeps no
        fraction."""
        self.do("PATCH", f"/v3/users/{self.user}", {"user": fields})
        second = int(time.time())
        until(lambda: int(time.time()) > second, "the next second does not come")


def direct(path):
    with serving(path, LONG) as long:
        with check("keystone: a token is good until it is revoked, or its user changed"):
            admin = Admin(long.port)
            for end in (admin.revoke, lambda _: (admin.change(enabled=False), admin.change(enabled=True))):
                status, headers, _ = ask(long.port, "POST", "/v3/auth/tokens", login("interop", PASSWORD))
                token = headers["X-Subject-Token"]
                assert (status, ask(long.port, "GET", "/v3/users", None, {"X-Auth-Token": token})[0]) == (201, 200)
                end(token)
                assert ask(long.port, "GET", "/v3/users", None, {"X-Auth-Token": token})[0] == 401


def good(port, method="GET", path="/v3/users", body=None):
    """Asks, expects success, and says whether it took a second attempt."""
    status, headers, reply = ask(port, method, path, body, {"X-Auth-Token": "forged"})
    assert status in (200, 201), f"{status} {dict(headers)} {reply}"
    return headers["X-Countersign-Retry"]


def unavailable(port):
    """Asks, expects that there is no token, and says why."""
    status, headers, reply = ask(port, "GET", "/v3/users")
    assert (status, headers["X-Countersign-Error"]) == (503, "credential_unavailable"), f"{status} {reply}"
    return reply["error"]["message"]


def write(path, text):
    """Renames into place, as whoever changes a password should."""
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def through(binary, path, admin, long, short):
    password, steady, wrong = f"{path}/password", f"{path}/steady", f"{path}/wrong"
    write(password, PASSWORD)
    write(steady, PASSWORD)
    write(wrong, "not it")
    shown = []

    def show(request):
        shown.append(request.header(b"x-auth-token").decode())
        return 200, [], b"{}"

    def route(name, upstream=long.port, port=long.port, keys="", password=password, scope=PROJECT):
        return ROUTE.format(**locals())

    by_id = f'{{ project_id = "{admin.project}" }}'
    routes = [route("project"), route("shown", upstream=Upstream(show).port), route("open", keys='expose = ["x-subject-token"]'),
              route("id", scope=by_id), route("domain", scope='{ domain = "Default" }'),
              route("nameless", scope='{ project = "admin" }'), route("wrong", password=wrong), route("short", upstream=short.port, port=short.port, password=steady)]
    with Daemon(binary, "".join(routes)) as daemon:
        port = daemon.own

        def latest():
            """The token that the routes of the project send just now."""
            ask(port["shown"], "GET", "/")
            return shown[-1]

        with check("keystone: tokens for a project by its name and its id, and for a domain"):
            for name in ("project", "id", "domain"):
                assert good(port[name]) is None
            project = {"name": "made", "domain_id": "default"}
            assert good(port["project"], "POST", "/v3/projects", {"project": project}) is None

        with check("keystone: a scope that Keystone does not take, and a wrong password, are told and not tried again"):
            message = unavailable(port["nameless"])
            assert "400" in message and "`scope`" in message, message
            before = long.logins
            for _ in range(20):
                message = unavailable(port["wrong"])
            assert "401" in message and "requires authentication" in message, message
            assert long.logins == before

        with check("keystone: its fresh tokens are shown to nobody unless that is wanted"):
            for name, is_shown in (("project", False), ("open", True)):
                status, headers, _ = ask(port[name], "POST", "/v3/auth/tokens", login("interop", PASSWORD))
                assert (status, headers["X-Subject-Token"] is not None) == (201, is_shown), f"{status} {headers}"

        with check("keystone: callers do not notice that a token was revoked, which makes for one more"):
            count = 0
            for method, target, body in (("GET", "/v3/users", None), ("POST", "/v3/projects", {"project": {"name": "once"}})):
                before, token = long.logins, latest()
                admin.revoke(token)
                assert (good(port["project"], method, target, body), latest() != token) == ("credential", True)
                assert (good(port["project"]), long.logins) == (None, before + 1)
            names = [project["name"] for project in admin.do("GET", "/v3/projects")["projects"]]
            assert names.count("once") == 1, names

        with check("keystone: twenty callers at the moment of the revocation make for one token"):
            before, failed = long.logins, []
            admin.revoke(latest())

            def one():
                try:
                    good(port["project"])
                except BaseException as error:
                    failed.append(error)
            callers = [threading.Thread(target=one) for _ in range(20)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            assert (failed, long.logins) == ([], before + 1), f"{failed} {long.logins - before}"

        with check("keystone: callers do not notice that the user was disabled and enabled again"):
            admin.change(enabled=False)
            admin.change(enabled=True)
            assert (good(port["project"]), good(port["project"])) == ("credential", None)

        with check("keystone: a changed password works as soon as its file says so"):
            admin.change(password=OTHER)
            assert ask(port["project"], "GET", "/v3/users")[0] == 401
            before = long.logins
            for _ in range(20):
                assert ask(port["project"], "GET", "/v3/users")[0] == 401
            assert long.logins == before
            write(password, OTHER)
            until(lambda: ask(port["project"], "GET", "/v3/users")[0] == 200, "the new password does not work")
            assert good(port["project"]) is None

        with check(f"keystone: tokens of {SHORT} s are renewed in time, whether somebody asks or nobody"):
            good(port["short"])
            before, refused, end = short.logins, long.count('" 401 '), time.monotonic() + 2.2 * SHORT
            while time.monotonic() < end:
                assert good(port["short"]) is None
                time.sleep(0.05)
            assert long.count('" 401 ') == refused
            assert 2 <= short.logins - before <= 10, short.logins - before
            before = short.logins
            until(lambda: short.logins > before, "nobody renews what nobody asks for")
            assert good(port["short"]) is None
        log = "".join(daemon.log)
        assert not any(secret in log for secret in (PASSWORD, OTHER, *shown)), "the log tells a secret"


def checks(binary):
    with folder() as path:
        with check("keystone: it is set up"):
            prepare(path)
        if not binary:
            direct(path)
            return
        with serving(path, LONG) as long:
            admin = Admin(long.port)
            shutil.copy(f"{path}/{LONG}.db", f"{path}/{SHORT}.db")
            with serving(path, SHORT) as short:
                through(binary, path, admin, long, short)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        port, configuration = sys.argv[2:]
        sys.argv[1:] = []
        serve(port, configuration)
    else:
        main(checks)
