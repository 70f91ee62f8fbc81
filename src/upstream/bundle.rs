//! A client identity out of a certificate service's reply in JSON. What services call the parts is a table; what they are
//! known to do to PEM is repaired, and nothing else is.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde_json::Value;

use super::pem::{self, Misfit};

/// Which identity of a reply that holds several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// The first, or the only one.
    #[default]
    Source,
    /// The target's, for management.
    TargetManagement,
    /// The target's, for data.
    TargetData,
}

impl Identity {
    /// Every one by its name in the configuration.
    pub const NAMES: [(&'static str, Self); 3] =
        [("source", Self::Source), ("target_mgmt", Self::TargetManagement), ("target_data", Self::TargetData)];
}

/// What was in a reply.
#[derive(Debug)]
pub struct Bundle {
    /// The trust anchors, if the reply brought any; never a part of the chain.
    pub ca: Vec<CertificateDer<'static>>,
    /// The certificate, its chain in order, and its key.
    pub identity: CertifiedKey,
    key: Zeroizing<PrivateKeyDer<'static>>,
}

impl Bundle {
    /// The trust anchors in well-formed PEM, if there are any.
    #[must_use]
    pub fn ca_pem(&self) -> Option<String> {
        (!self.ca.is_empty()).then(|| written(&self.ca))
    }

    /// The certificate and its chain in well-formed PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        written(&self.identity.cert)
    }

    /// The private key in well-formed PEM, in the form that it came in.
    #[must_use]
    pub fn key_pem(&self) -> SecretString {
        let label = match *self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Zeroizing::new(pem::encode(label, self.key.secret_der())).as_str().into()
    }
}

fn written(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| pem::encode("CERTIFICATE", certificate)).collect()
}

/// What a service calls the parts of an identity.
struct Format {
    identity: Identity,
    certificate: &'static str,
    key: &'static str,
    chain: Option<&'static str>,
    ca: Option<&'static str>,
}

impl Format {
    const fn new(identity: Identity, certificate: &'static str, key: &'static str) -> Self {
        Self { identity, certificate, key, chain: None, ca: Some("ca") }
    }

    const fn chained(certificate: &'static str, key: &'static str, chain: &'static str) -> Self {
        Self { identity: Identity::Source, certificate, key, chain: Some(chain), ca: None }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        [Some(self.certificate), Some(self.key), self.chain, self.ca].into_iter().flatten()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` with `{}`", self.certificate, self.key)
    }
}

const FORMATS: [Format; 6] = [
    Format::new(Identity::Source, "cert", "key"),
    Format::new(Identity::Source, "cert", "private_key"),
    Format::new(Identity::TargetManagement, "target_mgmt_cert", "target_mgmt_private_key"),
    Format::new(Identity::TargetData, "target_data_cert", "target_data_private_key"),
    Format::chained("certServerData", "certPrivateKey", "certLinkData"),
    Format::chained("certServerData", "certPrivateData", "certLinkData"),
];

/// Unpacks a reply: finds the identity, repairs its PEM, and checks that it is one.
///
/// # Errors
/// What is wrong with the reply, with the name of the field, never with what it holds.
pub fn unpack(reply: &[u8], identity: Identity) -> Result<Bundle, String> {
    let fields = fields(reply)?;
    let format = format(&fields, identity)?;
    let certificates = |name: Option<&'static str>| match name.and_then(|name| Some((name, fields.get(name)?))) {
        Some((name, text)) => read(name, text, pem::certificates),
        None => Ok(Vec::new()),
    };
    let wrong = |name: &str, trouble: &dyn fmt::Display| format!("`{name}`: {trouble}");
    let ca = certificates(format.ca)?;
    let name = format.ca.unwrap_or_default();
    pem::trust(&ca, &mut RootCertStore::empty()).map_err(|trouble| wrong(name, &trouble))?;
    let mut chain = certificates(Some(format.certificate))?;
    chain.extend(certificates(format.chain)?);
    let leaf = chain.first().cloned();
    let is_extra = |certificate| Some(certificate) == leaf.as_ref() || ca.contains(certificate);
    let above = chain.iter().skip(1).filter(|certificate| !is_extra(certificate)).cloned();
    let chain = leaf.iter().cloned().chain(above).collect();
    let key = fields.get(format.key).map_or("", |text| text.as_str());
    let key = Zeroizing::new(read(format.key, key, pem::private_key)?);
    let identity = pem::certified_key(chain, key.clone_key()).map_err(|misfit| match misfit {
        Misfit::NoCertificate => wrong(format.certificate, &misfit),
        Misfit::UnknownKey | Misfit::AnothersKey => wrong(format.key, &misfit),
    })?;
    Ok(Bundle { ca, identity, key })
}

/// The fields of a reply that hold something, under the names that they are known by.
fn fields(reply: &[u8]) -> Result<BTreeMap<&'static str, Zeroizing<String>>, String> {
    let reply = serde_json::from_slice(reply)
        .map_err(|error| format!("not well-formed JSON at line {}, column {}", error.line(), error.column()))?;
    let Value::Object(reply) = reply else { return Err("expected an object in JSON".to_owned()) };
    let reply = reply.into_iter().map(|(name, value)| match value {
        Value::String(text) => (name, Some(Zeroizing::new(text))),
        Value::Null => (name, Some(Zeroizing::default())),
        _ => (name, None),
    });
    // All of them first, so that none is left in memory.
    let reply: Vec<_> = reply.collect();
    let mut fields = BTreeMap::new();
    for (name, text) in reply {
        let mut known = FORMATS.iter().flat_map(Format::names);
        let Some(name) = known.find(|known| known.eq_ignore_ascii_case(&name)) else { continue };
        let text = text.ok_or_else(|| format!("`{name}`: expected a string"))?;
        if !text.is_empty() && fields.insert(name, text).is_some() {
            return Err(format!("`{name}` is there twice, differing in letter case"));
        }
    }
    Ok(fields)
}

/// The one format that a reply has the identity in.
fn format(fields: &BTreeMap<&'static str, Zeroizing<String>>, identity: Identity) -> Result<&'static Format, String> {
    let has = |name| fields.contains_key(name);
    let is_whole = |format: &&Format| has(format.certificate) && has(format.key);
    let of = |identity| FORMATS.iter().filter(move |format: &&Format| format.identity == identity);
    let mut whole = of(identity).filter(is_whole);
    let (first, second) = (whole.next(), whole.next());
    if let (Some(first), Some(second)) = (first, second) {
        return Err(format!("two identities, {first} and {second}: leave only one of them"));
    }
    first.ok_or_else(|| {
        let halves: Vec<_> = of(identity).filter(|format| has(format.certificate) || has(format.key)).collect();
        let expected = if halves.is_empty() { of(identity).collect() } else { halves };
        let expected: Vec<_> = expected.into_iter().map(ToString::to_string).collect();
        let others = Identity::NAMES.iter().filter(|(_, other)| of(*other).any(|format| is_whole(&format)));
        let others: Vec<_> = others.map(|(name, _)| format!("`{name}`")).collect();
        let other =
            if others.is_empty() { String::new() } else { format!("; choose the identity {}", others.join(" or ")) };
        format!("no certificate with its key: expected {}{other}", expected.join(", or "))
    })
}

/// What `read` makes of a field's PEM.
fn read<T>(name: &str, text: &str, read: impl FnOnce(&[u8]) -> Result<T, &'static str>) -> Result<T, String> {
    let text = repair(text);
    let found = if is_well_marked(&text) {
        read(text.as_bytes())
    } else {
        Err(
            "its markers are damaged: expected `-----BEGIN …-----` and the `-----END …-----` to it, in lines of their own",
        )
    };
    found.map_err(|error| format!("`{name}`: {error}"))
}

/// Repairs what services are known to do to PEM, in this order.
fn repair(text: &str) -> Zeroizing<String> {
    let text = replace(&replace(&decode(text), "\\n", "\n"), "\r\n", "\n");
    let text = set_off_markers(&text);
    let mut repaired = Zeroizing::new(String::with_capacity(text.len() + 1));
    for line in text.split_terminator('\n') {
        repaired.push_str(line.trim_matches(' '));
        repaired.push('\n');
    }
    repaired
}

/// The same with something shorter in place of `old`. The library's own starts small, and leaves copies behind as it grows.
fn replace(text: &str, old: &str, new: &str) -> Zeroizing<String> {
    let mut replaced = Zeroizing::new(String::with_capacity(text.len()));
    for (index, part) in text.split(old).enumerate() {
        replaced.extend([if index > 0 { new } else { "" }, part]);
    }
    replaced
}

/// What is behind base64, where that is PEM and the text itself is not.
fn decode(text: &str) -> Zeroizing<String> {
    let behind = || {
        let octets = Zeroizing::new(STANDARD.decode(text).ok()?);
        let decoded = str::from_utf8(&octets).ok()?;
        decoded.contains(BEGIN).then(|| Zeroizing::new(decoded.to_owned()))
    };
    let decoded = if text.contains(BEGIN) { None } else { behind() };
    decoded.unwrap_or_else(|| Zeroizing::new(text.to_owned()))
}

/// Breaks the line after every BEGIN marker and before every END marker, where that is missing.
fn set_off_markers(text: &str) -> Zeroizing<String> {
    let breaks = text.matches(BEGIN).count() + text.matches(END).count();
    let mut broken = Zeroizing::new(String::with_capacity(text.len() + breaks));
    let mut sections = text.split(BEGIN);
    let before = sections.next().unwrap_or_default();
    push_ending(&mut broken, before);
    for section in sections {
        broken.push_str(BEGIN);
        let section = match section.split_once(DASHES) {
            Some((label, rest)) if !label.contains('\n') => {
                broken.extend([label, DASHES]);
                if !rest.starts_with('\n') {
                    broken.push('\n');
                }
                rest
            }
            _ => section,
        };
        push_ending(&mut broken, section);
    }
    broken
}

/// Appends a section, and breaks the line before its END marker.
fn push_ending(broken: &mut String, section: &str) {
    let mut parts = section.split(END);
    broken.push_str(parts.next().unwrap_or_default());
    for part in parts {
        if !broken.ends_with('\n') {
            broken.push('\n');
        }
        broken.extend([END, part]);
    }
}

/// Whether markers stand alone in their lines, every BEGIN with the END to it before the next.
fn is_well_marked(text: &str) -> bool {
    let mut open = None;
    for line in text.lines().filter(|line| line.contains(DASHES)) {
        let label = |start| line.strip_prefix(start)?.strip_suffix(DASHES);
        match (open, label(BEGIN), label(END)) {
            (None, Some(label), None) => open = Some(label),
            (Some(begun), None, Some(label)) if label == begun => open = None,
            _ => return false,
        }
    }
    open.is_none()
}

const DASHES: &str = "-----";
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;
    use crate::demo::certificates::{Authority, KeyFormat, KeyKind, Purpose, Wish};

    /// A CA, a certificate of its own in PEM, and the key to that.
    fn issue() -> [String; 3] {
        let authority = Authority::new("a CA").unwrap();
        let client =
            authority.issue(&Wish { key: KeyKind::Rsa2048, ..Wish::new(Purpose::Client, "a client") }).unwrap();
        [authority.pem(), client.certificate_pem(), client.key_pem(KeyFormat::Traditional)]
    }

    fn unpacked(reply: &Value, identity: Identity) -> Result<[String; 3], String> {
        let bundle = unpack(reply.to_string().as_bytes(), identity)?;
        let key = bundle.key_pem().expose_secret().to_owned();
        Ok([bundle.ca_pem().unwrap_or_default(), bundle.chain_pem(), key])
    }

    #[test]
    fn every_services_reply_is_read() {
        let ([ca, cert, key], [_, other, other_key]) = (issue(), issue());
        let [link, root, _] = issue();
        let (source, none) = (Identity::Source, String::new());
        let three = json!({
            "id": 7, "ca": ca, "cert": other, "private_key": other_key, "target_mgmt_cert": cert,
            "target_mgmt_private_key": key, "target_data_cert": null, "target_data_private_key": "",
        });
        let together = format!("{cert}{link}{root}");
        let cases = [
            (json!({ "ca": ca, "cert": cert, "key": key }), source, [&ca, &cert, &key]),
            (json!({ "ca": ca, "cert": cert, "private_key": key }), source, [&ca, &cert, &key]),
            (json!({ "cert": cert, "private_key": key }), source, [&none, &cert, &key]),
            (json!({ "CA": ca, "Cert": cert, "kEy": key }), source, [&ca, &cert, &key]),
            (three.clone(), source, [&ca, &other, &other_key]),
            (three, Identity::TargetManagement, [&ca, &cert, &key]),
            (
                json!({ "target_data_cert": cert, "target_data_private_key": key }),
                Identity::TargetData,
                [&none, &cert, &key],
            ),
            (json!({ "certServerData": cert, "certPrivateKey": key }), source, [&none, &cert, &key]),
            (
                json!({ "certserverdata": cert, "certprivatedata": key, "certlinkdata": null }),
                source,
                [&none, &cert, &key],
            ),
            (
                json!({ "certServerData": cert, "certPrivateData": key, "certLinkData": format!("{link}{root}") }),
                source,
                [&none, &together, &key],
            ),
            // The leaf stands first, and nowhere else; the order of the others is kept.
            (
                json!({ "certServerData": cert, "certPrivateKey": key, "certLinkData": format!("{link}{cert}{root}") }),
                source,
                [&none, &together, &key],
            ),
            (json!({ "ca": ca, "cert": format!("{together}{ca}"), "key": key }), source, [&ca, &together, &key]),
            (
                json!({ "ca": format!("{ca}{root}"), "cert": together, "key": key }),
                source,
                [&format!("{ca}{root}"), &format!("{cert}{link}"), &key],
            ),
        ];
        for (reply, identity, expected) in cases {
            let found = unpacked(&reply, identity).unwrap_or_else(|error| panic!("{error}: {reply:#}"));
            assert_eq!(found.each_ref(), expected, "{reply:#}");
        }
    }

    type Damage<'a> = &'a dyn Fn(&str) -> String;

    #[test]
    fn known_damage_is_repaired() {
        let [ca, cert, key] = issue();
        let damages: [(&str, Damage<'_>); 9] = [
            ("base64", &|pem| STANDARD.encode(pem)),
            ("base64 of the next", &|pem| STANDARD.encode(pem.replace('\n', "\\n"))),
            ("escaped twice", &|pem| pem.replace('\n', "\\n")),
            ("CRLF", &|pem| pem.replace('\n', "\r\n")),
            ("no break after BEGIN", &|pem| pem.replacen("-----\n", "-----", 1)),
            ("no break before END", &|pem| pem.replace("\n-----END", "-----END")),
            ("a space for each of them", &|pem| {
                pem.replacen("-----\n", "----- ", 1).replace("\n-----END", " -----END")
            }),
            ("spaces", &|pem| format!("  {} ", pem.trim_end().replace('\n', "  \n "))),
            ("no newline at the end", &|pem| pem.trim_end().to_owned()),
        ];
        for (name, damage) in damages {
            let reply = json!({ "ca": damage(&ca), "cert": damage(&cert), "key": damage(&key) });
            let found = unpacked(&reply, Identity::Source).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found, [ca.clone(), cert.clone(), key.clone()], "{name}");
        }
    }

    #[test]
    fn all_other_damage_is_refused_with_the_fields_name_alone() {
        let [ca, cert, key] = issue();
        let [_, other, _] = issue();
        let weak = Authority::new("a CA").unwrap().client("another").unwrap();
        let marker = "its markers are damaged";
        let cases = [
            (json!({ "cert": cert.to_lowercase(), "key": key }), format!("`cert`: {marker}")),
            (json!({ "cert": cert.replace("BEGIN ", "BEGIN"), "key": key }), format!("`cert`: {marker}")),
            (json!({ "cert": cert, "key": key.replace("-----END", "----END") }), format!("`key`: {marker}")),
            (json!({ "cert": format!("{}{ca}", cert.trim_end()), "key": key }), format!("`cert`: {marker}")),
            (json!({ "cert": cert, "key": format!("-----BEGIN X-----\n{key}") }), format!("`key`: {marker}")),
            (
                json!({ "cert": STANDARD.encode(STANDARD.encode(&cert)), "key": key }),
                "`cert`: no certificate".to_owned(),
            ),
            (json!({ "cert": cert.replace('\n', "\\r\\n"), "key": key }), format!("`cert`: {marker}")),
            (json!({ "cert": "hunter2", "key": key }), "`cert`: no certificate in PEM".to_owned()),
            (json!({ "cert": key, "key": key }), "`cert`: no certificate in PEM".to_owned()),
            (json!({ "cert": cert, "key": cert }), "`key`: no private key in PEM".to_owned()),
            (
                json!({ "cert": cert, "key": weak.key_pem(KeyFormat::Pkcs8) }),
                "`key`: not the key of the certificate".to_owned(),
            ),
            (json!({ "cert": other, "key": key }), "`key`: not the key of the certificate".to_owned()),
            (
                json!({ "cert": pem::encode("CERTIFICATE", b"hunter2"), "key": key }),
                "`cert`: not a well-formed".to_owned(),
            ),
            (
                json!({ "cert": cert, "key": pem::encode("PRIVATE KEY", b"hunter2") }),
                "`key`: a key of a kind".to_owned(),
            ),
            (
                json!({ "cert": cert, "key": pem::encode("ENCRYPTED PRIVATE KEY", b"hunter2") }),
                "`key`: encrypted".to_owned(),
            ),
            (
                json!({ "cert": cert, "key": key, "ca": pem::encode("CERTIFICATE", b"hunter2") }),
                "`ca`: no usable CA".to_owned(),
            ),
            (json!({ "cert": cert, "key": 1234 }), "`key`: expected a string".to_owned()),
            (json!({ "cert": cert, "key": key, "KEY": "hunter2" }), "`key` is there twice".to_owned()),
            (
                json!({ "cert": cert, "key": key, "private_key": key }),
                "two identities, `cert` with `key` and".to_owned(),
            ),
            (
                json!({ "cert": cert }),
                "no certificate with its key: expected `cert` with `key`, or `cert` with `private_key`".to_owned(),
            ),
            (
                json!({ "target_data_cert": cert, "target_data_private_key": key }),
                "; choose the identity `target_data`".to_owned(),
            ),
            (json!({ "body": { "cert": cert, "key": key } }), "no certificate with its key: expected".to_owned()),
            (json!(["hunter2"]), "expected an object in JSON".to_owned()),
        ];
        for (reply, expected) in cases {
            let error = unpacked(&reply, Identity::Source).unwrap_err();
            assert!(error.contains(&expected), "{error} is not {expected}");
            assert!(!error.contains("hunter2") && !error.contains("MII") && !error.contains("1234"), "{error}");
        }
        let error = unpack(b"{\"cert\":\n hunter2}", Identity::Source).unwrap_err();
        assert_eq!(error, "not well-formed JSON at line 2, column 2");
    }

    #[test]
    fn a_key_keeps_its_form_and_shows_itself_to_nobody() {
        let client = Authority::new("a CA").unwrap().client("a client").unwrap();
        for (format, label) in
            [(KeyFormat::Pkcs8, "-----BEGIN PRIVATE"), (KeyFormat::Traditional, "-----BEGIN EC PRIVATE")]
        {
            let (cert, key) = (client.certificate_pem(), client.key_pem(format));
            let bundle = unpack(json!({ "cert": cert, "key": key }).to_string().as_bytes(), Identity::Source).unwrap();
            assert!(bundle.key_pem().expose_secret().starts_with(label));
            assert_eq!(bundle.key_pem().expose_secret(), key);
            let octets = format!("{:?}", bundle.key.secret_der());
            assert!(!format!("{bundle:?}").contains(octets.trim_matches(['[', ']'])));
        }
    }
}
