//! Handshakes that fail, and what is said about them: which rule was broken, and which setting would help.

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::upstream::tls::provider;
use countersign::upstream::x509::Certificate;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256,
    PublicKeyData, SanType, date_time_ymd,
};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::caller;
use super::script::{Conn, Http, Reply, Upstream};
use crate::daemon::Daemon;

fn serve(mut conn: Conn) {
    while conn.request().is_some() {
        conn.ok("ok");
    }
}

/// Shows a chain, whatever it is like.
fn server(chain: &[&[u8]], key: Arc<dyn SigningKey>) -> Upstream {
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    Upstream::start_tls(builder.with_no_client_auth().with_cert_resolver(Arc::new(shown)), serve)
}

fn signing(key: &KeyPair) -> Arc<dyn SigningKey> {
    provider().key_provider.load_private_key(PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
}

fn named(common_name: &str, names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// Nothing wrong with it.
fn good() -> CertificateParams {
    named("good", &["127.0.0.1"])
}

fn authority(common_name: &str) -> CertificateParams {
    with(&named(common_name, &[]), |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
}

fn with(params: &CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = params.clone();
    change(&mut params);
    params
}

/// An RSA key of so many bits that nobody ever made, and signatures to match.
#[derive(Debug)]
struct Sham {
    key: Vec<u8>,
    signature: Vec<u8>,
}

impl Sham {
    fn new(bits: usize) -> Self {
        let modulus = vec![0xc5; bits / 8];
        let modulus = wrap(0x02, &[&[0], modulus.as_slice()].concat());
        Self { key: wrap(0x30, &[modulus.as_slice(), &[2, 3, 1, 0, 1]].concat()), signature: vec![7; bits / 8] }
    }
}

impl PublicKeyData for Sham {
    fn der_bytes(&self) -> &[u8] {
        &self.key
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

impl rcgen::SigningKey for Sham {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.signature.clone())
    }
}

impl SigningKey for Sham {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self { key: self.key.clone(), signature: self.signature.clone() }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl Signer for Sham {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(self.signature.clone())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::RSA_PSS_SHA256
    }
}

fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&[tag, 0x84], &length[4..], content].concat()
}

/// The certificate as version 1 has it: without its version and its extensions.
fn as_version_1(certificate: &[u8]) -> Vec<u8> {
    let elements = |mut rest: &[u8]| {
        let mut found = Vec::new();
        while let [tag, first, ..] = *rest {
            let octets = if first < 0x80 { 0 } else { usize::from(first & 0x7f) };
            let length = rest[2..2 + octets].iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
            let length = if octets == 0 { usize::from(first) } else { length };
            let (element, after) = rest.split_at(2 + octets + length);
            found.push((tag, element.to_vec(), element[2 + octets..].to_vec()));
            rest = after;
        }
        found
    };
    let whole = elements(&elements(certificate)[0].2);
    let body: Vec<u8> = elements(&whole[0].2)
        .into_iter()
        .filter(|(tag, ..)| ![0xa0, 0xa3].contains(tag))
        .flat_map(|(_, e, _)| e)
        .collect();
    wrap(0x30, &[wrap(0x30, &body), whole[1].1.clone(), whole[2].1.clone()].concat())
}

/// The certificate with every `from` in it replaced by as many octets.
fn patched(certificate: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut patched = certificate.to_vec();
    while let Some(at) = patched.windows(from.len()).position(|window| window == from) {
        patched[at..at + to.len()].copy_from_slice(to);
    }
    patched
}

fn pin(certificate: &[u8]) -> String {
    format!("sha256/{}", STANDARD.encode(Sha256::digest(Certificate::parse(certificate).unwrap().public_key)))
}

struct Case {
    name: &'static str,
    upstream: String,
    keys: &'static str,
    /// What the message must say, with ` … ` between its parts.
    says: String,
}

fn case(name: &'static str, upstream: &Upstream, keys: &'static str, says: &str) -> Case {
    Case { name, upstream: upstream.url().replace("http://", "https://"), keys, says: says.to_owned() }
}

/// A daemon with a route a case, its CA files in `folder`.
fn start(folder: tempfile::TempDir, cases: &[Case]) -> Daemon {
    let mut configuration = "server = { listen = [\"127.0.0.1:0\"], extra_ca = [\"extra.pem\"] }\n".to_owned();
    for Case { name, upstream, keys, .. } in cases {
        writeln!(configuration, "[routes.{name}]\nupstream = \"{upstream}\"\n{keys}\n[routes.{name}.header]").unwrap();
        writeln!(configuration, "headers = {{ X-Auth-Token = \"hunter2\" }}").unwrap();
    }
    Daemon::start_in(folder, &configuration, |_| {})
}

fn ask(daemon: &Daemon, route: &str) -> Reply {
    let mut http: Http<_> = caller(daemon);
    http.send(format!("GET /{route}/ HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    http.reply()
}

/// Every route's message must say all of its case's words.
fn judge(daemon: &Daemon, cases: &[Case]) {
    let mut wrong = String::new();
    for Case { name, says, .. } in cases {
        let message = ask(daemon, name).expect(502, "upstream_tls");
        let missing: Vec<_> = says.split(" … ").filter(|part| !message.contains(part)).collect();
        if !missing.is_empty() || message.contains("hunter2") {
            writeln!(wrong, "{name}: {missing:?} not in: {message}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

const FULL: &str = "tls.ca = \"ca.pem\"";
const CA_ONLY: &str = "tls = { ca = \"ca.pem\", verify = \"ca-only\" }";
const NONE: &str = "tls.verify = \"none\"";
const PIN: &str = "tls = { verify = \"pin\", pin = [\"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"] }";

/// A CA, and a key for servers' certificates.
struct Scene {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
}

impl Scene {
    /// With further CAs that `tls.ca` is to name.
    fn new(further: &[String]) -> Self {
        let (ca, ca_key) = (authority("ours"), KeyPair::generate().unwrap());
        let (folder, pem) = (tempfile::tempdir().unwrap(), ca.self_signed(&ca_key).unwrap().pem());
        std::fs::write(folder.path().join("extra.pem"), &pem).unwrap();
        std::fs::write(folder.path().join("ca.pem"), pem + &further.concat()).unwrap();
        Self { folder, issuer: Issuer::new(ca, ca_key), key: KeyPair::generate().unwrap() }
    }

    fn issue(&self, params: &CertificateParams) -> Vec<u8> {
        self.issue_by(params, &self.issuer)
    }

    fn issue_by(&self, params: &CertificateParams, issuer: &Issuer<'_, impl rcgen::SigningKey>) -> Vec<u8> {
        params.signed_by(&self.key, issuer).unwrap().der().to_vec()
    }

    fn show(&self, chain: &[&[u8]]) -> Upstream {
        server(chain, signing(&self.key))
    }
}

#[test]
fn a_certificate_for_another_name_is_told_the_names_that_it_is_for() {
    let scene = Scene::new(&[]);
    let show = |params: &CertificateParams| scene.show(&[&scene.issue(params)]);
    let other = show(&named("other", &["a.test", "*.b.test", "10.0.0.7"]));
    let many = show(&named("many", &["a1.test", "a2.test", "a3.test", "a4.test", "a5.test", "a6.test", "a7.test"]));
    let nameless = show(&named("legacy\u{1b}[31m master", &[]));
    let odd = |name| show(&with(&named("odd", &[]), |params| params.subject_alt_names = vec![name]));
    let text = |text: &str| Ia5String::try_from(text).unwrap();
    let as_name = odd(SanType::DnsName(text("127.0.0.1")));
    let mail = odd(SanType::Rfc822Name(text("a@b.test")));
    let cases = [
        case(
            "other",
            &other,
            FULL,
            "is for a.test, *.b.test, 10.0.0.7, not for 127.0.0.1: set `tls.server_name` … ca-only",
        ),
        case("other-system", &other, "", "own CA in `tls.ca`, and set `tls.verify = \"ca-only\"`"),
        case("many", &many, FULL, "a4.test, a5.test, 2 more, not for"),
        case(
            "nameless",
            &nameless,
            FULL,
            "no subjectAltName … \"legacy?[31m master\" … ca-only … `tls.verify = \"pin\"`",
        ),
        case("mail", &mail, FULL, "names no host and no address … ca-only … `tls.verify = \"pin\"`"),
        case("as-name", &as_name, FULL, "127.0.0.1 as a name (dNSName) … iPAddress … ca-only"),
    ];
    judge(&start(scene.folder, &cases), &cases);
}

#[test]
fn a_certificate_that_will_not_do_is_told_its_rule_and_the_setting() {
    let old = || Issuer::new(authority("old"), Sham::new(2048));
    let short = || Issuer::new(authority("short"), Sham::new(1024));
    let further = [("old", Sham::new(2048)), ("short", Sham::new(1024))];
    let scene = Scene::new(&further.map(|(name, key)| authority(name).self_signed(&key).unwrap().pem()));
    let issue = |change: &dyn Fn(&mut CertificateParams)| scene.issue(&with(&good(), change));
    let mut cases = Vec::new();
    // The pin that a message offers is the very one of what the server showed.
    let mut add = |name, chain: &[&[u8]], keys, says: &str| {
        let pin = format!("{says} … `tls.verify = \"pin\"` and `tls.pin = [\"{}\"]`", pin(chain[0]));
        cases.push(case(name, &scene.show(chain), keys, &pin));
    };

    let expired = issue(&|params| params.not_after = date_time_ymd(2001, 1, 1));
    add("expired", &[&expired], FULL, "the server's certificate expired on 2001-01-01T00:00:00Z, … days ago … clock");
    add("expired-ca-only", &[&expired], CA_ONLY, "the server's certificate expired on 2001-01-01T00:00:00Z");
    let early = issue(&|params| params.not_before = date_time_ymd(4095, 1, 1));
    add("early", &[&early], FULL, "valid from 4095-01-01T00:00:00Z only … set the clock right");

    let middle = with(&authority("the middle"), |params| params.not_after = date_time_ymd(2002, 1, 1));
    let middle_key = KeyPair::generate().unwrap();
    let above = middle.signed_by(&middle_key, &scene.issuer).unwrap().der().to_vec();
    let below = scene.issue_by(&good(), &Issuer::new(middle, middle_key));
    add("expired-above", &[&below, &above], FULL, "the CA \"the middle\" in the server's chain expired on 2002-01-01");
    add("no-chain", &[&below], FULL, "leads to the CA \"the middle\", which is not in `tls.ca`: name it in `tls.ca`");

    let stranger = Issuer::new(authority("a stranger"), KeyPair::generate().unwrap());
    let foreign = scene.issue_by(&good(), &stranger);
    add("stranger", &[&foreign], FULL, "leads to the CA \"a stranger\", which is not in `tls.ca`: name it in `tls.ca`");
    add("stranger-system", &[&foreign], "", "\"a stranger\", which is not in this system's roots: name it in `tls.ca`");
    let self_signed = good().self_signed(&scene.key).unwrap().der().to_vec();
    add("self-signed", &[&self_signed], FULL, "is self-signed, and not in `tls.ca`: name it in `tls.ca`");
    let remade = scene.issue_by(&good(), &Issuer::new(authority("ours"), KeyPair::generate().unwrap()));
    add("remade", &[&remade], FULL, "names the CA \"ours\" of `tls.ca`, but another key signed it … made anew");

    let as_ca = issue(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    add("ca", &[&as_ca], FULL, "is a CA's own");
    let purposes = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::CodeSigning];
    let for_clients = issue(&|params| params.extended_key_usages.clone_from(&purposes));
    add("purpose", &[&for_clients], FULL, "is meant for client authentication, 1.3.6.1.5.5.7.3.3, not for servers");
    let sha1 = patched(&scene.issue_by(&good(), &old()), &[0xf7, 0x0d, 1, 1, 11], &[0xf7, 0x0d, 1, 1, 5]);
    add("sha1", &[&sha1], FULL, "is signed with SHA-1 and RSA, which is not accepted");
    add("short-ca", &[&scene.issue_by(&good(), &short())], FULL, "an RSA key of 1024 bits, and 2048 are the least");
    judge(&start(scene.folder, &cases), &cases);
}

#[test]
fn a_certificate_that_no_setting_helps_is_told_so() {
    let scene = Scene::new(&[]);
    let other = scene.issue(&good());
    let version_1 = scene.show(&[&as_version_1(&other)]);
    let short = good().signed_by(&Sham::new(1024), &scene.issuer).unwrap();
    let short = server(&[short.der()], Arc::new(Sham::new(1024)));
    let garbage = scene.show(&[b"certificate"]);
    let anothers = server(&[&other], signing(&KeyPair::generate().unwrap()));
    let helpless = "whatever `tls.verify` says";
    let cases = [
        case("version-1", &version_1, FULL, &format!("X.509 version 1 … {helpless} … version 3")),
        case("version-1-pin", &version_1, PIN, &format!("X.509 version 1 … {helpless}")),
        case("version-1-none", &version_1, NONE, &format!("X.509 version 1 … {helpless}")),
        case("garbage", &garbage, NONE, &format!("cannot be read … {helpless}")),
        case("short", &short, NONE, &format!("RSA with 1024 bits … {helpless}")),
        case("not-its-key", &anothers, NONE, "did not prove"),
        case("pin", &scene.show(&[&other]), PIN, &format!("\"{}\", which is none of `tls.pin`", pin(&other))),
    ];
    judge(&start(scene.folder, &cases), &cases);
}

/// Answers whatever comes first with these octets, and waits for the end.
fn says(octets: Vec<u8>) -> Upstream {
    Upstream::start(move |mut conn| {
        conn.send(&octets);
        conn.await_end();
    })
}

/// A fatal alert in a record of its own (RFC 5246, section 7.2).
fn alerts(description: u8) -> Upstream {
    says(vec![21, 3, 1, 0, 2, 2, description])
}

/// Chooses a version and a cipher suite (RFC 5246, section 7.4.1.3).
fn chooses(version: u8, suite: u16) -> Upstream {
    let suite = suite.to_be_bytes();
    let hello = [&[3, version], [7; 32].as_slice(), &[0], &suite, &[0]].concat();
    let length = u8::try_from(hello.len()).unwrap();
    says([&[22, 3, version, 0, length + 4, 2, 0, 0, length], hello.as_slice()].concat())
}

#[test]
fn a_server_that_has_nothing_in_common_with_us_is_told_from_one_that_speaks_no_tls() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority("ours").self_signed(&KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.path().join("extra.pem"), ca.pem()).unwrap();
    let plain = says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec());
    let closes = Upstream::start(|_| {});
    let resets = Upstream::start(|mut conn| {
        conn.octets(1);
        conn.reset();
    });
    let (version, suite, certificate) =
        ("TLS 1.2 is the least", "RSA key exchange, DHE and CBC", "a client certificate");
    let cases = [
        case("version", &alerts(70), "", &format!("ProtocolVersion … {version}")),
        case("old", &chooses(1, 0x002f), "", version),
        case(
            "suite",
            &alerts(40),
            "",
            &format!("HandshakeFailure … either it wants {certificate} (`tls.cert` … or it shares … {suite}"),
        ),
        case("cbc", &chooses(3, 0x002f), "", suite),
        case("weak", &alerts(71), "", &format!("InsufficientSecurity … {suite}")),
        case("name", &alerts(112), "", "UnrecognisedName … `tls.server_name`"),
        case("certificate", &alerts(116), "", &format!("CertificateRequired … {certificate} … `tls.cert`")),
        case("certificate-12", &alerts(42), "", &format!("BadCertificate … {certificate} … `tls.cert` … `tls.bundle`")),
        case("internal", &alerts(80), "", "InternalError … its log"),
        case("plain", &plain, "", "is not TLS … plain HTTP … `upstream`"),
        case("closes", &closes, "", "without a word … `tls.server_name` … `tls.cert`"),
        case("resets", &resets, "", "without a word … right port"),
    ];
    judge(&start(folder, &cases), &cases);
}

#[test]
fn a_server_that_refuses_our_certificate_is_told_what_for() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = authority("ours").self_signed(&key).unwrap();
    write("extra.pem", certificate.pem());
    write("cert.pem", certificate.pem());
    write("key.pem", key.serialize_pem());
    let keys = "tls = { cert = \"cert.pem\", key = \"key.pem\" }";
    let cases = [
        case("unknown", &alerts(48), keys, "UnknownCA … of a CA that it does not trust … `tls.cert` and `tls.key`"),
        case("expired", &alerts(45), keys, "has expired … `tls.cert` … clock"),
        case("revoked", &alerts(44), keys, "is revoked … `tls.cert` and `tls.key`"),
        case("bad", &alerts(42), keys, "will not do … `tls.cert` and `tls.key` … meant for clients"),
        case("unknown-why", &alerts(46), keys, "will not do … `tls.cert` and `tls.key`"),
        case("denied", &alerts(49), keys, "will not do … `tls.cert` and `tls.key`"),
        case("suite", &alerts(40), keys, "cipher suite"),
    ];
    judge(&start(folder, &cases), &cases);
}
