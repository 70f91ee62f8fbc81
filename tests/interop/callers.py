"""The vendors' own SDKs as callers: they hold wrong keys and are pointed at the daemon; the upstream accepts what the right
keys sign, and nothing else.

Usage: callers.py BINARY
"""
import json, logging, os, re, sys

os.environ["DIAMOND_SERVER_IPS"] = ""

from judges import Acm, Acs, Bce, Huawei
from stage import Daemon, Upstream

from acm import ACMClient
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.request import CommonRequest
from baidubce.auth.bce_credentials import BceCredentials
from baidubce.bce_client_configuration import BceClientConfiguration
from baidubce.services.cert.cert_client import CertClient
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdksms.v3 import ShowCertKeyRequest, SmsClient

WRONG = "a-wrong-key"


def answer_with(scheme, replies, seen):
    """Judges each request, and answers the good ones with the first reply whose part of the target is in theirs."""

    def answer(received):
        found, expected = scheme.judge(received)
        if found != expected:
            return 403, [], f"found {found}, expected {expected}".encode()
        seen.append(received)
        for part, kind, content in replies:
            if part in received.target:
                return 200, [("Content-Type", kind), ("x-bce-request-id", "interop")], content
        return 404, [], b""

    return answer


def certificates(port):
    credentials = BceCredentials(WRONG, WRONG)
    client = CertClient(BceClientConfiguration(credentials=credentials, endpoint=f"http://127.0.0.1:{port}".encode()))
    listed = client.list_user_certs()
    assert [certificate.cert_id for certificate in listed.certs] == ["cert-1"], listed
    client.get_cert_info("cert-1")
    client.delete_cert("cert-1")
    return 3


def cert_key(port):
    credentials = BasicCredentials(WRONG, WRONG, "interop-project")
    client = SmsClient.new_builder().with_credentials(credentials).with_endpoint(f"http://127.0.0.1:{port}").build()
    reply = client.show_cert_key(ShowCertKeyRequest(task_id="7a9941f6-3dc4-4ac2-8d3f-3b5b39f12a3c", enable_ca_cert=True))
    assert reply.ca == "CA" and reply.private_key == "KEY", reply
    return 1


def configurations(port):
    client = ACMClient(f"127.0.0.1:{port}", "interop-namespace", WRONG, WRONG)
    client.set_options(no_snapshot=True)
    content = "\u914d\u7f6e: 1"
    assert client.get("app.yaml", "DEFAULT_GROUP") == content
    assert client.publish("app.yaml", "DEFAULT_GROUP", content)
    assert client.remove("app.yaml", "DEFAULT_GROUP")
    assert client.list()["totalCount"] == 0
    # The watcher polls from processes that outlive it, so its own call is made here instead.
    probe = {"Probe-Modify-Request": "app.yaml\x02DEFAULT_GROUP\x02\x02interop-namespace\x01"}
    client._do_sync_req("/diamond-server/config.co", {"longPullingTimeout": 30000}, None, probe, 40)
    return 5


def clusters(port):
    client = AcsClient(WRONG, WRONG, "cn-hangzhou")
    request = CommonRequest(domain=f"127.0.0.1:{port}", version="2015-12-15", action_name="DescribeClusterDetail",
                            uri_pattern="/clusters/[ClusterId]")
    request.set_protocol_type("http")
    request.set_method("GET")
    request.add_path_param("ClusterId", "Cccfd68c474454665ace07efce924f75f")
    assert json.loads(client.do_action_with_exception(request))["master_url"] == "https://192.0.2.1:1234"
    return 1


JSON = "application/json"
CALLERS = [
    ("bce-python-sdk", Bce(), 0, certificates, [
        (b"/v1/certificate/cert-1", JSON, b'{"certId": "cert-1"}'),
        (b"/v1/certificate", JSON, b'{"certs": [{"certId": "cert-1"}]}')]),
    ("huaweicloudsdksms", Huawei(), 1, cert_key, [
        (b"/v3/tasks/", JSON, b'{"cert": "CERT", "private_key": "KEY", "ca": "CA"}')]),
    ("acm-sdk-python", Acm(), 0, configurations, [
        (b"/diamond-server/config.co", "text/plain", "\u914d\u7f6e: 1".encode("gbk")),
        (b"method=getAllConfigByTenant", JSON, b'{"totalCount": 0, "pageItems": [], "pagesAvailable": 0}'),
        (b"/diamond-server/", "text/plain", b"true")]),
    ("aliyun-python-sdk-core", Acs(), 0, clusters, [
        (b"/clusters/", JSON, b'{"master_url": "https://192.0.2.1:1234"}')]),
]


def main():
    logging.disable(logging.CRITICAL)
    for name, scheme, option, call, replies in CALLERS:
        seen = []
        upstream = Upstream(answer_with(scheme, replies, seen))
        own = r'\g<0>listen = ["127.0.0.1:0"]\nheaders = { X-Route = "\1" }\n'
        routes = re.sub(r"\[routes\.(\w+)\]\n", own, scheme.toml(upstream.port))
        with Daemon(sys.argv[1], routes) as daemon:
            expected = call(daemon.own[f"r{option}"])
            assert len(seen) == expected, f"{name}: {len(seen)} of {expected} calls arrived"
        print(f"{name}: {len(seen)} calls made with wrong keys, signed with the right ones and accepted")
    # The SDK's refreshing thread would keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    main()
