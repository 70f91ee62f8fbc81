//! The embedded upstream over real sockets, asked by a client that knows nothing of the proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign::clock::{Clock, Timestamp};
use countersign::credential::{AccessKey, ExposeSecret};
use countersign::demo::Stage;
use countersign::demo::certificates::{Authority, Identity, KeyFormat, KeyKind, Purpose, Validity, Wish};
use countersign::demo::service::{Certificates, Service};
use countersign::demo::upstream::{Site, Transport, Upstream};
use countersign::demo::verify::{Bce, ClientCertificate};
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Expected = fn(&CertificateError) -> bool;
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::test]
async fn a_signed_request_is_answered_and_a_forged_one_refused() {
    let clock = Clock::fixed(Timestamp(1_401_663_610_000));
    let mut upstream = Upstream::new(clock.clone());
    let key = AccessKey {
        access_key: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned(),
        secret_key: "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb".into(),
        security_token: None,
    };
    let address = upstream
        .listen(Site {
            name: "certificates",
            transport: Transport::Plain,
            scheme: Box::new(Bce { keys: vec![key].into() }),
            service: Service::Certificates(Certificates::default()),
        })
        .await
        .unwrap();
    let mut client = connect(TcpStream::connect(address).await.unwrap()).await;
    let request = |target: &str| {
        Request::get(target)
            .header("Host", "certificate.baidubce.com")
            .header("x-bce-date", "2014-06-01T23:00:10Z")
            .header(
                "Authorization",
                "bce-auth-v1/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/2014-06-01T23:00:10Z/1800/host;x-bce-date/\
                 09ea41d7af9b0c3a81c87a58f46cd32179d16240676875dc164595db75f797b1",
            )
            .body(Full::default())
            .unwrap()
    };

    let good = exchange(&mut client, request("/v1/certificate")).await.unwrap();
    assert_eq!((good.status().as_u16(), json_of(&good)), (200, json!({ "certs": [] })));
    assert_eq!(good.headers()["date"], "Sun, 01 Jun 2014 23:00:10 GMT");

    let forged = exchange(&mut client, request("/v1/certificate/detail?")).await.unwrap();
    let body = json_of(&forged);
    assert_eq!((forged.status().as_u16(), &body["code"]), (400, &json!("SignatureDoesNotMatch")));
    assert_eq!(body["requestId"], forged.headers()["x-bce-request-id"].to_str().unwrap());
    assert_ne!(forged.headers()["x-bce-request-id"], good.headers()["x-bce-request-id"]);

    clock.set(Timestamp(1_401_663_610_000 + 1_801_000));
    let stale = exchange(&mut client, request("/v1/certificate")).await.unwrap();
    assert_eq!(json_of(&stale)["code"], "RequestExpired");

    let seen = upstream.seen();
    let targets: Vec<_> = seen.iter().map(|request| request.target.as_str()).collect();
    assert_eq!(targets, ["/v1/certificate", "/v1/certificate/detail?", "/v1/certificate"]);
    let names: Vec<_> = seen[0].headers.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["host", "x-bce-date", "authorization"]);
    assert!(seen[0].verdict.as_ref().unwrap().contains("over host, x-bce-date"));
    assert!(seen[1].verdict.as_ref().unwrap_err().starts_with("SignatureDoesNotMatch: "));
}

#[tokio::test]
async fn a_server_of_configurations_refuses_in_plain_text() {
    let stage = Stage::start(Clock::fixed(Timestamp(0))).await.unwrap();
    let mut client = connect(TcpStream::connect(stage.configurations).await.unwrap()).await;
    let request = Request::get("/diamond-server/config.co").header("Host", "acm").body(Full::default()).unwrap();
    let refused = exchange(&mut client, request).await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["content-type"]),
        (403, &"text/plain; charset=utf-8".parse().unwrap())
    );
    assert_eq!(refused.body(), "the header Spas-AccessKey is not there once");
}

#[tokio::test]
async fn a_token_is_wanted_over_tls_and_is_not_echoed() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    let mut client = connect(tls(stage.echo, &stage.authority, None, "127.0.0.1").await.unwrap()).await;
    let request = |token: &str| {
        let request = Request::post("/v3/things?a=b").header("Host", "localhost").header("X-Auth-Token", token);
        request.body(Full::from("hello")).unwrap()
    };
    let token = stage.token.expose_secret();
    let accepted = exchange(&mut client, request(token)).await.unwrap();
    let body = json_of(&accepted);
    assert_eq!((&body["method"], &body["path"], &body["query"]), (&json!("POST"), &json!("/v3/things"), &json!("a=b")));
    assert_eq!(body["body"], "hello");
    assert!(!body.to_string().contains(token));

    let refused = exchange(&mut client, request("guessed")).await.unwrap();
    assert_eq!((refused.status().as_u16(), &json_of(&refused)["error"]["code"]), (401, &json!(401)));
    let seen = stage.upstream.last_seen().unwrap();
    assert_eq!((seen.site, seen.body_len), ("echo", 5));
    assert!(seen.verdict.is_err() && !format!("{seen:?}").contains(token));
}

#[tokio::test]
async fn the_cluster_knows_its_client_by_the_certificate() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    for format in [KeyFormat::Pkcs8, KeyFormat::Traditional] {
        let identity = Some((&stage.client, format));
        let stream = tls(stage.cluster, &stage.authority, identity, "localhost").await.unwrap();
        let reply = exchange(&mut connect(stream).await, get("/projects/")).await.unwrap();
        assert_eq!(json_of(&reply)[0]["client"], "countersign demo client", "{format:?}");
    }
    let seen = stage.upstream.last_seen().unwrap();
    assert_eq!(seen.client.as_deref(), Some("countersign demo client"));
    assert_eq!(seen.verdict.unwrap(), "client certificate of \"countersign demo client\"");
}

#[tokio::test]
async fn the_cluster_takes_no_certificate_but_a_valid_one_of_its_own_authority() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    let stranger = Authority::new("another CA").unwrap().client("countersign demo client").unwrap();
    let expired = Wish { validity: Validity::Expired, ..Wish::new(Purpose::Client, "countersign demo client") };
    let expired = stage.authority.issue(&expired).unwrap();
    let server = stage.authority.server(&["localhost"]).unwrap();
    for identity in [None, Some(&stranger), Some(&expired), Some(&server)] {
        let identity = identity.map(|identity| (identity, KeyFormat::Pkcs8));
        // With TLS 1.3 the refusal arrives only at the first read.
        let outcome: Fallible<_> = async {
            let stream = tls(stage.cluster, &stage.authority, identity, "localhost").await?;
            exchange(&mut connect(stream).await, get("/projects/")).await
        }
        .await;
        assert!(outcome.is_err());
    }
    assert!(stage.upstream.seen().is_empty());
}

#[tokio::test]
async fn bad_certificates_are_bad_in_the_way_that_was_asked_for() {
    let authority = Authority::new("a CA").unwrap();
    let names = ["127.0.0.1"].as_slice();
    let good = Wish { names, ..Wish::new(Purpose::Server, "127.0.0.1") };
    let expired = Wish { validity: Validity::Expired, ..good };
    let not_yet = Wish { validity: Validity::NotYet, ..good };
    let nameless = Wish { names: &[], ..good };
    let rsa = Wish { key: KeyKind::Rsa2048, ..good };
    let cases: [(&str, Wish<'_>, Expected); 3] = [
        ("expired", expired, |error| matches!(error, CertificateError::ExpiredContext { .. })),
        ("not yet valid", not_yet, |error| matches!(error, CertificateError::NotValidYetContext { .. })),
        ("common name only", nameless, |error| matches!(error, CertificateError::NotValidForNameContext { .. })),
    ];
    let mut upstream = Upstream::new(Clock::system());
    for (what, wish, is_expected) in cases {
        let address = serve(&mut upstream, authority.issue(&wish).unwrap()).await;
        let trouble = tls(address, &authority, None, "127.0.0.1").await.unwrap_err();
        let Some(Error::InvalidCertificate(error)) = trouble.get_ref().and_then(|error| error.downcast_ref()) else {
            panic!("{what}: {trouble:?}");
        };
        assert!(is_expected(error), "{what}: {error:?}");
    }
    for wish in [good, rsa] {
        let address = serve(&mut upstream, authority.issue(&wish).unwrap()).await;
        assert!(tls(address, &authority, None, "127.0.0.1").await.is_ok(), "{:?}", wish.key);
        let stranger = Authority::new("a CA").unwrap();
        assert!(tls(address, &stranger, None, "127.0.0.1").await.is_err(), "{:?}", wish.key);
    }
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused_unread() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    let mut client = connect(TcpStream::connect(stage.certificates).await.unwrap()).await;
    let large = Full::from(vec![0; (1 << 20) + 1]);
    let request = Request::post("/v1/certificate").header("Host", "localhost").body(large).unwrap();
    let refused = exchange(&mut client, request).await.unwrap();
    assert_eq!((refused.status().as_u16(), &json_of(&refused)["code"]), (413, &json!("EntityTooLarge")));
    assert!(stage.upstream.last_seen().unwrap().verdict.is_err());
}

#[tokio::test]
async fn it_stops_when_dropped() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    let address = stage.certificates;
    let mut client = connect(TcpStream::connect(address).await.unwrap()).await;
    assert_eq!(exchange(&mut client, get("/")).await.unwrap().status(), 403);
    drop(stage);
    assert!(exchange(&mut client, get("/")).await.is_err());
    assert!(TcpStream::connect(address).await.is_err());
}

async fn serve(upstream: &mut Upstream, identity: Identity) -> SocketAddr {
    let (scheme, service) = (Box::new(ClientCertificate), Service::Projects);
    let site = Site { name: "test", transport: Transport::Tls(identity), scheme, service };
    upstream.listen(site).await.expect("a listener")
}

async fn tls(
    address: SocketAddr,
    authority: &Authority,
    identity: Option<(&Identity, KeyFormat)>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM")).expect("a trust anchor");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((identity, format)) => {
            let certificate = CertificateDer::from_pem_slice(identity.certificate_pem().as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem(format).as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![certificate], key).expect("an identity")
        }
    };
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TcpStream::connect(address).await?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    tokio::time::timeout(PATIENCE, handshake).await?
}

async fn connect(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> http1::SendRequest<Full<Bytes>> {
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await.expect("nothing is sent yet");
    tokio::spawn(connection);
    client
}

async fn exchange(
    client: &mut http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Fallible<Response<Bytes>> {
    let whole = async {
        client.ready().await?;
        let (head, body) = client.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    tokio::time::timeout(PATIENCE, whole).await?
}

fn get(target: &str) -> Request<Full<Bytes>> {
    Request::get(target).header("Host", "localhost").body(Full::default()).expect("a request")
}

fn json_of(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("JSON")
}

const PATIENCE: Duration = Duration::from_secs(60);
