//! What signing costs a request.

#[path = "../tests/support/signing.rs"]
mod signing;

use countersign::clock::Timestamp;
use countersign::provider::{Fields, Request};
use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

fn main() {
    divan::main();
}

#[divan::bench]
fn bce_typical_get(bencher: Bencher<'_, '_>) {
    bce(bencher, "/v1/certificate", Some("certName=testcert"), HeaderMap::new());
}

#[divan::bench]
fn bce_ten_own_headers(bencher: Bencher<'_, '_>) {
    let name = |index| HeaderName::try_from(format!("x-bce-meta-{index}")).expect("a name");
    let headers = (0..10).map(|index| (name(index), HeaderValue::from_static("some value/of ordinary length")));
    bce(
        bencher,
        "/v1/bucket/folder/object%20name.txt",
        Some("partNumber=9&append&uploadId=a44cc9bab1"),
        headers.collect(),
    );
}

#[divan::bench]
fn tem_typical_get(bencher: Bencher<'_, '_>) {
    tem(bencher, &Method::GET, b"");
}

#[divan::bench]
fn tem_post_of_1_kib(bencher: Bencher<'_, '_>) {
    tem(bencher, &Method::POST, &[b'x'; 1024]);
}

#[divan::bench]
fn acs_roa_typical_get(bencher: Bencher<'_, '_>) {
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "cs.aliyuncs.com"), ("accept", "*/*"), ("user-agent", "curl/8.5.0")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let credentials = "credentials = { access_key = 'LTAItestAccessKeyId', secret_key = 'bbbbbbbbbbbbbbbb' }";
    let query = Some("name=my%20cluster&page_size=10");
    sign(bencher, "acs-roa", credentials, "/api/v1/clusters", query, &headers, b"");
}

#[divan::bench]
fn acm_typical_get(bencher: Bencher<'_, '_>) {
    let query = "dataId=com.example.app.properties&group=DEFAULT_GROUP&tenant=04754ad1-4f67-4d67-b2bf-1f73a04a0001";
    sign(bencher, "acm", ACM, "/diamond-server/config.co", Some(query), &HeaderMap::new(), b"");
}

#[divan::bench]
fn acm_form_of_64_kib_in_gbk(bencher: Bencher<'_, '_>) {
    let form = HeaderValue::from_static("application/x-www-form-urlencoded; charset=GBK");
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, form)]);
    let body = format!("dataId=d&content={}&group=%C5%E4%D6%C3%D7%E9&tenant=t", "%D6%D0".repeat(10_900));
    let path = "/diamond-server/basestone.do";
    sign(bencher, "acm", ACM, path, Some("method=syncUpdateAll"), &headers, body.as_bytes());
}

const ACM: &str =
    "credentials = { access_key = '8c5cbb849ae04682ad9f455a96aa0001', secret_key = 'lwO5T7vfPJu27FclPa+/CyIG0001' }";

#[divan::bench]
fn huawei_typical_get(bencher: Bencher<'_, '_>) {
    huawei(bencher, "");
}

#[divan::bench]
fn huawei_derived(bencher: Bencher<'_, '_>) {
    huawei(bencher, "derived = { region = 'cn-north-4', service = 'iotda' }");
}

#[divan::bench]
fn header(bencher: Bencher<'_, '_>) {
    sign(bencher, "header", "headers = { X-Auth-Token = 'token' }", "/v1/thing", None, &HeaderMap::new(), b"");
}

fn tem(bencher: Bencher<'_, '_>, method: &Method, body: &[u8]) {
    let credentials = "credentials = { access_key = '5e685006656cfc80', secret_key = 'bbbbbbbbbbbbbbbb' }";
    let (_, signer) = signing::configure("tem", credentials);
    let (path, query, headers) = ("/api/v1/resource/monitor", Some("ip=172.17.0.15"), &HeaderMap::new());
    let request = Request { method, path, query, headers, body, time: Timestamp(1_650_000_000_123), nonce: "" };
    bencher.bench(|| -> Result<Fields, String> { signer.sign(black_box(&request), None) });
}

fn bce(bencher: Bencher<'_, '_>, path: &str, query: Option<&str>, mut headers: HeaderMap) {
    headers.insert("host", HeaderValue::from_static("certificate.baidubce.com"));
    headers.insert("user-agent", HeaderValue::from_static("curl/8.5.0"));
    headers.insert("accept", HeaderValue::from_static("*/*"));
    headers.insert("content-type", HeaderValue::from_static("application/json; charset=utf-8"));
    let credentials =
        "credentials = { access_key = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', secret_key = 'bbbbbbbbbbbbbbbb' }";
    sign(bencher, "bce", credentials, path, query, &headers, b"");
}

fn huawei(bencher: Bencher<'_, '_>, keys: &str) {
    let headers = [("host", "sms.cn-north-4.myhuaweicloud.com"), ("user-agent", "curl/8.5.0"), ("accept", "*/*")];
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let table = format!(
        "credentials = {{ access_key = 'QTWAOYTTINDUT2QVKYUC', secret_key = 'bbbbbbbbbbbbbbbb' }}\n\
         domain_id = '1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e'\n{keys}"
    );
    let path = "/v3/tasks/7a9941f6-3dc4-4ac2-8d3f-3b5b39f12a3c/certkey";
    sign(bencher, "huawei-aksk", &table, path, Some("enable_ca_cert=true"), &HeaderMap::from_iter(headers), b"");
}

fn sign(
    bencher: Bencher<'_, '_>,
    provider: &str,
    table: &str,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) {
    let (_, signer) = signing::configure(provider, table);
    let request = Request {
        method: &Method::GET,
        path,
        query,
        headers,
        body,
        time: Timestamp(1_401_663_610_000),
        nonce: "0123456789abcdef0123456789abcdef",
    };
    bencher.bench(|| -> Result<Fields, String> { signer.sign(black_box(&request), None) });
}
