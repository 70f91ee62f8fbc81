"""Random nasty requests through the daemon; the upstream recomputes each signature from the octets that it received,
with the vendor's own signer where there is one.

Usage: judges.py BINARY [REQUESTS [SEED]]
"""
import base64, hashlib, hmac, os, random, re, shlex, socket, subprocess, sys, time
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from stage import PATIENCE, Daemon, Received, Upstream, read_message

AK, SK, TOKEN = "interop-access-key", "interop/secret+key=", "interop/security+token=="
os.environ["DIAMOND_SERVER_IPS"] = ""

from acm.client import ACMClient
import acm.client
from aliyunsdkcore.auth.algorithm import sha_hmac1
from aliyunsdkcore.auth.composer import roa_signature_composer
from baidubce.auth import bce_v1_signer
from baidubce.auth.bce_credentials import BceCredentials
from baidubce import utils as bce_utils
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import DerivationAKSKSigner, Signer

RESERVED = "!$&'()*,;:@"
UNRESERVED = "abcXYZ019-._~"
UNWISE = '{}|^[]\\'
ESCAPES = ["%41", "%7e", "%20", "%25", "%e4%b8%ad", "%E6%96%87", "%c3%a9", "%252F", "%3d", "%26", "%2B", "%3a", "%23", "%2F", "%00",
           "%zz", "%4g", "%%20"]
OCTETS = ["%D6%D0", "%ce%c4", "%ff", "%80"]


def pairs(query):
    """The pairs of a raw query: empty pieces skipped, split at the first equals sign, nothing decoded."""
    pieces = [piece.partition(b"=") for piece in query.split(b"&") if piece]
    return [(name, value if equals else None) for name, equals, value in pieces]


class Scheme:
    """A scheme under test: how its route is configured, which requests are sent, how one is judged."""

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PROPFIND"]
    octets = False
    rewrites_plus = False
    # A route each, and one more with the first of them and a key that lasts.
    options = [""]

    def text(self, rng, most=8):
        pool = list(RESERVED + UNRESERVED + UNWISE) + ESCAPES + (OCTETS if self.octets else [])
        return "".join(rng.choice(pool) for _ in range(rng.randint(0, most)))

    def path(self, rng):
        segments = [rng.choice([self.text(rng), self.text(rng), "", ".", "v1"]) for _ in range(rng.randint(1, 5))]
        return "/" + "/".join(segments)

    def name(self, rng):
        return self.text(rng, 5).replace("&", "").replace("=", "")

    def query(self, rng):
        pieces = []
        for _ in range(rng.randint(0, 5)):
            name, value = self.name(rng), self.text(rng).replace("&", "")
            pieces.append(rng.choice(["", name, name + "=", f"{name}={value}", f"{name}={value}", f"{name}={value}=x"]))
        query = "&".join(pieces).replace(",", rng.choice([",", "+", "?"]))
        return rng.choice(["", "?"]) if not pieces else "?" + query

    kinds = ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/bson", "text/plain", "",
             "application/octet-stream", "application/x-www-form-urlencoded", "multipart/form-data; boundary=\"x\"", None, None]

    def headers(self, rng):
        headers = [("User-Agent", "curl/8"), ("X-Custom", self.text(rng) or "x"), ("authorization", "forged"),
                   ("Connection", "x-hop, X-Custom-2"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"),
                   ("X-Auth-Token", "forged"), ("X_Auth-Token", "forged")]
        some = [("Accept", rng.choice(["*/*", "application/xml", ""])), ("X-Empty", ""), ("X-Blank", "\t  a  b\t "),
                ("x-a-b", "1"), ("X-A", "\u4e2d\u3000\u6587"), ("x_under", "1"), ("Range", "bytes=0-9"),
                ("Content-MD5", "NFzcPqhviddjRNnSOGo4rw==")]
        kind = rng.choice(self.kinds)
        headers += [header for header in some if rng.random() < 0.4] + ([] if kind is None else [("Content-Type", kind)])
        return headers

    def body(self, rng, method):
        if method in ("GET", "HEAD", "OPTIONS") and rng.random() < 0.9:
            return None
        return rng.randbytes(rng.choice([0, 1, 100, 70000]))

    def request(self, rng):
        method = rng.choice(self.methods)
        headers, body = self.headers(rng), self.body(rng, method)
        framed = b""
        if body is not None and rng.random() < 0.3:
            headers.append(("Transfer-Encoding", "chunked"))
            middle = len(body) // 2
            for chunk in (body[:middle], body[middle:]):
                framed += b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunk else b""
            framed += b"0\r\n\r\n"
        elif body is not None:
            headers.append(("Content-Length", str(len(body))))
            framed = body
        rng.shuffle(headers)
        return method, self.path(rng) + self.query(rng), headers, body, framed

    @property
    def routes(self):
        return [f"r{index}" for index in range(len(self.options))] + ["plain"]

    def toml(self, upstream):
        return "".join(f"""
[routes.{route}]
upstream = "http://127.0.0.1:{upstream}"
[routes.{route}.{self.table}]
credentials = {{ access_key = "{AK}", secret_key = "{SK}"{"" if route == "plain" else self.token} }}
{option}
""" for route, option in zip(self.routes, self.options + self.options[:1]))

    def option(self, received):
        """What the request's route is configured with, and its security token."""
        route = received.header(b"x-route").decode()
        return dict(zip(self.routes, self.options + self.options[:1]))[route], None if route == "plain" else TOKEN.encode()

    def check(self, received):
        """What holds for every scheme: the request goes on as it came, and nothing of what must not."""
        target = base64.b64decode(received.header(b"x-target"))
        if self.rewrites_plus:
            path, mark, query = target.partition(b"?")
            target = path + mark + query.replace(b"+", b"%2B" if "literal" in self.option(received)[0] else b"%20")
        assert received.target == target, f"the target was {target}"
        assert hashlib.md5(received.body).hexdigest() == received.header(b"x-body").decode(), "the body differs"
        for name, value in received.headers:
            assert value != b"forged" and name not in (b"connection", b"x-hop", b"keep-alive"), f"{name} came through"

    token = f', security_token = "{TOKEN}"'


class Bce(Scheme):
    """bce-python-sdk: baidubce.auth.bce_v1_signer"""

    table, octets, rewrites_plus = "bce", True, True
    default = {b"content-length", b"content-md5", b"content-type"}
    options = ["", 'signed_headers = "default"', 'signed_headers = "default-unlisted"',
               'signed_headers = ["X-Custom", "accept", "x-a-b", "x-a", "x-empty", "range"]', 'expires_in = "60s"',
               'signed_headers = ["x-bce-date", "Host", "content-length", "x-bce-request-id"]', 'signed_headers = []', 'plus = "literal"']

    class Parameters(list):
        """Pairs that the SDK takes for a map, so that a name may come twice."""

        def items(self):
            return list(self)

    def headers(self, rng):
        headers = super().headers(rng) + [("x-bce-date", "forged"), ("X-BCE-Security-Token", "forged")]
        if rng.random() < 0.5:
            headers += [("X-Bce-Meta-A", rng.choice(["1", "", "  a  b ", "\u4e2d\u6587/+", "\udcd6\udcd0"])), ("x-bce-meta-a-b", "2")]
        if rng.random() < 0.2:
            headers += [("x-bce-request-id", "3"), ("x-bce-meta!#$'*^|~", "a:b;c/d%41")]
        return headers

    def query(self, rng):
        return super().query(rng) + rng.choice(["", "", "&Authorization=x", "&%61uthorization"]) if rng.random() < 0.5 else ""

    def judge(self, received):
        option, token = self.option(received)
        found = received.header(b"authorization")
        version, ak, timestamp, expires, names, _ = found.split(b"/")
        assert received.header(b"x-bce-date") == timestamp, "the dates differ"
        when = time.mktime(time.strptime(timestamp.decode(), "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
        assert abs(time.time() - when) < 60, "the date is not now"
        assert int(expires) == (60 if "60s" in option else 1800)
        assert received.header(b"x-bce-security-token") == token, "the security token is not the route's"
        headers = dict(received.headers)
        is_listed = "unlisted" not in option
        if is_listed:
            # It signs this one whether it is listed or not.
            headers.pop(b"x-bce-request-id", None)
        chosen = self.default if "default" in option else set(re.findall(r'"([^"]+)"', option.lower().partition("[")[2]))
        chosen = {b"host"} | {name if isinstance(name, bytes) else name.encode() for name in chosen}
        expected = sorted(name for name, value in headers.items() if value and (name in chosen or name.startswith(b"x-bce-")))
        assert names == (b";".join(expected) if is_listed else b""), f"the list should be {expected}"
        path = bce_utils.normalize_string(unquote_to_bytes(received.path), False)
        # The SDK drops no key of this name, though the others do.
        parameters = self.Parameters((unquote_to_bytes(k), unquote_to_bytes(v or b"")) for k, v in pairs(received.query)
                                     if unquote_to_bytes(k).lower() != b"authorization")
        expected = bce_v1_signer.sign(
            BceCredentials(AK, SK), received.method, path, headers, parameters, int(when), int(expires),
            expected if is_listed else None)
        return found, expected


class Huawei(Scheme):
    """huaweicloudsdkcore: signer.Signer and DerivationAKSKSigner"""

    table, rewrites_plus = "huawei-aksk", True
    methods = Scheme.methods + ["Report"]
    options = ["", 'project_id = "interop-project"', 'domain_id = "interop-domain"', 'payload = "unsigned"', 'payload = "auto"',
               'signed_headers = ["X-Custom", "content-type", "x-a-b", "x-a", "x-empty", "x_under"]', 'signed_headers = "all"',
               'derived = { region = "cn-north-4", service = "sms" }\nsigned_headers = []',
               'derived = { region = "globe", service = "iam" }\npayload = "auto"\nsigned_headers = "all"',
               'project_id = "p"\ndomain_id = "d"\nplus = "literal"']

    def headers(self, rng):
        headers = super().headers(rng) + [("X-Sdk-Date", "forged"), ("X-Security-Token", "forged"), ("X-Sdk-Content-Sha256", "forged")]
        return headers + ([("X-Project-Id", "callers"), ("x-domain-id", "")] if rng.random() < 0.3 else [])

    def judge(self, received):
        option, token = self.option(received)
        found = received.header(b"authorization").decode()
        names = found.split("SignedHeaders=")[1].split(",")[0].split(";")
        signed = {name: received.header(name.encode()).decode() for name in names}
        assert received.header(b"x-security-token") == token, "the security token is not the route's"
        for key, name in (("project_id", b"x-project-id"), ("domain_id", b"x-domain-id")):
            configured = re.search(rf'{key} = "(.*)"', option)
            assert not configured or received.header(name) == configured[1].encode(), f"{name} is not the route's"
        kind = received.header(b"content-type") or b""
        is_hashed = '"auto"' in option and (not kind or kind.startswith((b"application/json", b"application/bson")))
        is_unsigned = not is_hashed and "payload" in option and received.body != b""
        assert received.header(b"x-sdk-content-sha256") == (b"UNSIGNED-PAYLOAD" if is_unsigned else None), "the payload's header"
        always = {"host", "x-sdk-date", "x-project-id", "x-domain-id", "x-security-token", "x-sdk-content-sha256"}
        listed = set(re.findall(r'"([^"]+)"', option.lower().partition("signed_headers = [")[2]))
        given = {name.decode() for name, _ in received.headers} - {"authorization", "transfer-encoding"}
        chosen = given - {"content-type"} if '"all"' in option else given & (always | listed)
        assert names == sorted(name for name in chosen if "_" not in name), f"the list should be {chosen}"
        parameters = [(unquote(k.decode()), unquote((v or b"").decode())) for k, v in pairs(received.query)]
        request = SdkRequest(received.method.decode(), "http", signed["host"], received.path.decode(),
                             query_params=parameters, header_params=signed, body=received.body)
        credentials = BasicCredentials(AK, SK)
        if scope := re.search('region = "(.*)", service = "(.*)"', option):
            DerivationAKSKSigner(credentials).sign(request, scope[2], scope[1])
        else:
            Signer(credentials).sign(request)
        return found, request.header_params["Authorization"]


class Acm(Scheme):
    """acm-sdk-python: acm.client.ACMClient"""

    table = "acm"
    methods = ["GET", "POST"]
    options = ["rate_limit = false", 'charset = "utf-8"', 'charset = "auto"', 'listen_sign = "first-entry"']
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-"
    forms = ["application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded ; a=b"]

    def words(self, rng, charset, is_form):
        hanzi = "".join(chr(rng.randint(0x4e00, 0x9fa5)) for _ in range(rng.randint(1, 4)))
        word = rng.choice(["DEFAULT_GROUP", "a.b:c-d_e", hanzi, hanzi + "F\uff0c", "x y", "", "k+v", "%41", "a=b?c", b"\xe9F".decode("gbk")])
        everything, raw = rng.random() < 0.3, is_form and rng.random() < 0.2
        return "".join(chr(o) if o in self.plain and not everything else "+" if o == 32 and rng.random() < 0.5 else
                       chr(o) if raw and o > 127 else "%%%02x" % o if rng.random() < 0.5 else "%%%02X" % o
                       for o in word.encode(charset))

    def fields(self, rng, charset, is_form=False):
        names = [rng.choice(["tenant", "%74enant", "Tenant"]), rng.choice(["group", "%67%72%6F%75%70", "groups"]), "dataId",
                 "content", "tenant", "group"]
        pieces = [f"{name}={self.words(rng, charset, is_form)}" for name in names if rng.random() < 0.5]
        pieces += rng.choice([[], [], ["tenant"], ["", "group"], ["other=%zz%ff"]])
        rng.shuffle(pieces)
        if is_form and rng.random() < 0.3:
            fields = [self.words(rng, charset, False).replace("+", "%20") for _ in range(3)] + ["md5"]
            entries = [f"dataId%02{fields[0]}%02{fields[3]}" + rng.choice(["", f"%02{fields[1]}"]) + "%01" for _ in range(2)]
            pieces.append(rng.choice(["Probe-Modify-Request=", "Probe%2dModify-Request="]) + "".join(entries))
        return "&".join(pieces)

    def path(self, rng):
        return rng.choice(["/diamond-server/config.co", "/diamond-server/basestone.do", "/diamond-server//datum.do"])

    def request(self, rng):
        # Which charset its route has is known here alone; the words are the same for all who decide by the form.
        self.charset = rng.choice(["gbk", "utf-8"])
        return super().request(rng)

    def query(self, rng):
        return "?" + self.fields(rng, "gbk" if self.route != "r1" else "utf-8")

    def headers(self, rng):
        self.kind = rng.choice(self.forms + ["text/plain", "application/x-www-form-urlencoded2", None])
        charset = {"gbk": rng.choice(["; charset=GBK", ";charset=\"gb2312\"", ""]), "utf-8": ";x=y; Charset=UTF-8 "}[self.charset]
        kind = [] if self.kind is None else [("Content-Type", self.kind + charset)]
        own = [(name, value) for name, value in super().headers(rng) if name != "Content-Type"]
        return own + kind + [("Timestamp", "forged"), ("spas-signature", "forged"), ("SPAS_SecurityToken", "forged")]

    def body(self, rng, method):
        charset = {"r1": "utf-8", "r2": self.charset}.get(self.route, "gbk")
        return None if method == "GET" and rng.random() < 0.7 else self.fields(rng, charset, True).encode("latin-1")

    def judge(self, received):
        option, token = self.option(received)
        kind = (received.header(b"content-type") or b"").lower()
        is_form = kind.split(b";")[0].strip() == b"application/x-www-form-urlencoded"
        charset = "utf-8" if "utf-8" in option else "gbk"
        form = "utf-8" if '"auto"' in option and b"utf-8" in kind else charset
        parameters = {}
        for octets, charset in [(received.query, charset)] + ([(received.body, form)] if is_form else []):
            for name, value in parse_qsl(octets.decode("latin-1"), encoding="latin-1", keep_blank_values=True):
                parameters.setdefault(name, (value.encode("latin-1"), charset))
        probe, charset = parameters.pop("Probe-Modify-Request", (b"", ""))
        parameters = {name: value.decode(charset) for name, (value, charset) in parameters.items() if name in ("tenant", "group")}
        if probe and "first-entry" in option:
            entry = probe.split(b"\1")[0].split(b"\2") + [b""]
            parameters = {"group": entry[1].decode(charset), "tenant": entry[3].decode(charset)}
        moment = received.header(b"timestamp").decode()
        found = received.header(b"spas-signature").decode()
        assert abs(time.time() - int(moment) / 1000) < 60, "the time is not now"
        assert received.header(b"spas-accesskey") == AK.encode() and received.header(b"spas-securitytoken") == token
        if not parameters.get("tenant") and not parameters.get("group"):
            # The SDK signs nothing here; the Java client, and the server as far as is known, sign the moment alone.
            return found, base64.b64encode(hmac.new(SK.encode(), moment.encode(), hashlib.sha1).digest()).decode()
        acm.client.time = type("Frozen", (), {"time": staticmethod(lambda: (int(moment) + 0.5) / 1000)})
        return found, ACMClient("unused", "", AK, SK)._get_common_headers(parameters, None)["Spas-Signature"]


class Acs(Scheme):
    """aliyun-python-sdk-core: auth.composer.roa_signature_composer"""

    table = "acs-roa"
    options = ["", "content_md5 = true", 'version = "2018-01-01"', "sts_accesskey_id_header = true"]

    def path(self, rng):
        # The SDK takes an ampersand at the end of the path for one that it put there itself.
        return super().path(rng).rstrip("&")

    def headers(self, rng):
        headers = super().headers(rng) + [("Date", "forged"), ("x-acs-signature-nonce", "forged"), ("x-acs-security-token", "forged"),
                                          ("x-acs-accesskey-id", "forged"), ("x-acs-date", "forged"), ("Content_MD5", "forged")]
        some = [("x-acs-region-id", "cn-hangzhou"), ("X-Acs-Action", "Describe  It"), ("x-acs-a-b", "\u4e2d\u6587"), ("x-acs-a", ""),
                ("x-acs-version", "2001-01-01"), ("x-acs-A1", "b:c")]
        return headers + [header for header in some if rng.random() < 0.4]

    def query(self, rng):
        pieces, seen = [], set()
        for piece in super().query(rng).lstrip("?").split("&"):
            name, equals, value = piece.partition("=")
            name = unquote(name.replace("+", " "))
            # The clients differ on an empty value, and take a map.
            if piece and name not in seen and (value or not equals):
                pieces.append(piece)
            seen.add(name)
        # The SDK takes an ampersand at the end of the query too for its own.
        while pieces and unquote(pieces[-1]).endswith("&"):
            pieces.pop()
        return "?" + "&".join(pieces) if pieces else rng.choice(["", "?"])

    def judge(self, received):
        option, token = self.option(received)
        found = received.header(b"authorization").decode()
        headers = {name.decode(): value.decode() for name, value in received.headers if name.startswith(b"x-acs-")}
        for name in ("Accept", "Content-MD5", "Content-Type", "Date"):
            value = received.header(name.lower().encode())
            headers[name] = None if value is None else value.decode()
        md5 = base64.b64encode(hashlib.md5(received.body).digest()).decode() if "md5" in option and received.body else None
        assert headers["Content-MD5"] == md5, "the body's digest"
        assert len(headers["x-acs-signature-nonce"]) == 32 and headers["x-acs-signature-nonce"] not in self.nonces
        self.nonces.add(headers["x-acs-signature-nonce"])
        assert received.header(b"x-acs-security-token") == token
        assert headers.get("x-acs-accesskey-id") == (AK if "accesskey" in option and token else None)
        assert headers["x-acs-version"] in ("2001-01-01", "2018-01-01" if "version" in option else "2015-12-15")
        assert "x-acs-date" not in headers and headers["Accept"] is not None
        queries = {unquote(k.decode().replace("+", " ")): v if v is None else unquote(v.decode().replace("+", " "))
                   for k, v in pairs(received.query)}
        text = roa_signature_composer.compose_string_to_sign(
            received.method.decode(), queries, received.path.decode(), headers, None, sha_hmac1)
        return found, f"acs {AK}:{sha_hmac1.get_sign_string(text, SK)}"

    nonces = set()


class Tem(Scheme):
    """the rules of its page: it has no SDK"""

    table, octets, token = "tem", True, ""
    options = ["", 'algorithm = "L3.SHA1"', 'algorithm = "L0.SHA1"', 'algorithm = "L0.PLAINTEXT"', 'algorithm = "L0.PAINTEXT"',
               'hex = "upper"', 'url_form = "path"', 'url_form = "decoded"', 'params_methods = ["DELETE", "GET"]',
               'params_methods = []']

    def judge(self, received):
        option, _ = self.option(received)
        found = received.header(b"authorization").decode()
        fields = found.removeprefix("Bearer TEM-AUTH:").split(":")
        if "L0" in option:
            return found, f"Bearer TEM-AUTH:{AK}:" + (SK if "TEXT" in option else hashlib.sha1(SK.encode()).hexdigest())
        moment = fields[2]
        assert abs(time.time() - int(moment)) < 60, "the time is not now"
        url = received.path if '"path"' in option else received.target
        url = unquote_to_bytes(url) if "decoded" in option else url
        methods = re.findall('"(.*?)"', option) if "methods" in option else ["POST", "PUT", "PATCH"]
        params = received.body if received.method.decode() in methods else b""
        text = b"ak:%s|sk:%s|time:%s|method:%s|url:%s|params:%s" % (
            AK.encode(), SK.encode(), moment.encode(), received.method, url, params)
        digest = (hashlib.sha1 if "SHA1" in option else hashlib.sha256)(text).hexdigest()
        return found, f"Bearer TEM-AUTH:{AK}:{digest.upper() if 'upper' in option else digest}:{moment}"


SCHEMES = [Bce(), Huawei(), Acm(), Acs(), Tem()]


def sign(binary, file, method, url, headers, body):
    """The request as `countersign sign` would have it sent, without sending it."""
    arguments = [binary, "sign", "-c", file, "-X", method, url, "--at", str(int(time.time() * 1000)), "--nonce", os.urandom(16).hex()]
    for name, value in headers:
        arguments += ["-H", f"{name}: {value}" if value else f"{name};"]
    if body is not None:
        with open(file + ".body", "wb") as data:
            data.write(body)
        arguments += ["-d", f"@{file}.body"]
    run = lambda more: subprocess.run([os.fsencode(word) for word in arguments + more], check=True, capture_output=True).stdout
    sent = []
    words = iter(shlex.split(os.fsdecode(run(["--curl"]))))
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(":")
            sent.append((name, value) if value or name.endswith(";") else ("", ""))
        elif word.startswith("http://"):
            authority, slash, target = word.removeprefix("http://").partition("/")
    sent = [(os.fsencode(name.removesuffix(";")), os.fsencode(value.strip(" "))) for name, value in sent if name]
    if body is not None and b"transfer-encoding" not in dict(sent):
        # Left to curl.
        sent.append((b"content-length", b"%d" % len(body)))
    sent.append((b"host", authority.encode()))
    printed = [tuple(line.split(b": ", 1)) for line in run([]).removesuffix(b"\n").split(b"\n")]
    callers = {name.lower().encode(): value.strip(" \t").encode(errors="surrogateescape") for name, value in headers}
    own = [field for field in sent if callers.get(field[0]) != field[1] and field[0] not in (b"content-length", b"transfer-encoding")]
    missing = set(own) ^ {(name.lower(), value) for name, value in printed}
    assert not missing, f"printed {printed}, set {own}"
    return Received(method.encode(), os.fsencode("/" + target), sent, body or b"")


def try_scheme(binary, scheme, count, seed):
    def answer(received):
        # Kept beside the reply, which to HEAD has no body.
        try:
            scheme.check(received)
            found, expected = scheme.judge(received)
            scheme.said = "" if found == expected else f"found {found}, expected {expected}"
        except Exception as error:  # a judge that stumbles is a finding like any other
            scheme.said = f"{type(error).__name__}: {error}"
        if scheme.said:
            scheme.said += f" for {received.method} {received.target} {received.headers}"
        return 400 if scheme.said else 200, [], b""

    rng = random.Random(f"{seed} {scheme.table}")
    upstream = Upstream(answer)
    began = time.time()
    with Daemon(binary, scheme.toml(upstream.port)) as daemon:
        connection = socket.create_connection(daemon.address, PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        for number in range(count):
            scheme.route = scheme.routes[number % len(scheme.routes)]
            method, target, headers, body, framed = scheme.request(rng)
            target_in_base64 = base64.b64encode(target.encode(errors="surrogateescape")).decode()
            headers += [("X-Route", scheme.route), ("X-Target", target_in_base64),
                        ("X-Body", hashlib.md5(body or b"").hexdigest())]
            lines = [f"{method} {target} HTTP/1.1", f"Host: {scheme.route}.localhost"]
            lines += [f"{name}: {value}" for name, value in headers]
            what = f"{scheme.table}, seed {seed}, request {number}: {lines} {(body or b'')[:300]}"
            scheme.said = ""
            connection.sendall("\r\n".join(lines).encode(errors="surrogateescape") + b"\r\n\r\n" + framed)
            if method == "HEAD":
                reply, content = stream.readline(), b""
                while stream.readline() not in (b"\r\n", b""):
                    pass
            else:
                reply, _, content = read_message(stream)
            if b" 200 " not in reply:
                raise SystemExit(f"{what}\n{reply.decode()} {content.decode(errors='replace')}{scheme.said}")
            if number % 40 < len(scheme.routes) and number % 200 < 40:
                url = f"http://{scheme.route}.localhost:8080{target}"
                received = sign(binary, daemon.path, method, url, headers, body)
                answer(received)
                if scheme.said:
                    raise SystemExit(f"{what}\nsign: {scheme.said}")
    print(f"{scheme.table}: {count} random requests accepted by {scheme.__doc__} in {time.time() - began:.1f} s (seed {seed})")


def main():
    binary, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    seed = sys.argv[3] if len(sys.argv) > 3 else str(int(time.time()))
    for scheme in SCHEMES:
        try_scheme(binary, scheme, count, seed)


if __name__ == "__main__":
    main()
