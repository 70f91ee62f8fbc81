//! A route's `tls`: trust anchors, client identity, how the server's certificate is verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::settings::{Table, Value};
use crate::upstream::Host;
use crate::upstream::bundle::Identity;
use crate::upstream::tls::{ClientIdentity, FileRef, Settings, Verify};

/// Reads a `tls` table.
pub(super) fn read(table: Table<'_>) -> Settings {
    let (ca, bundle) = (table.get("ca"), table.get("bundle"));
    let anchors = match (&ca, &bundle) {
        (Some(ca), _) => Anchors::Named(ca),
        // Whether a bundle brings one is seen when it is opened.
        (None, Some(_)) => Anchors::Brought,
        (None, None) => Anchors::System,
    };
    let settings = Settings {
        verify: verify(&table, Mode::Full, &anchors),
        ca: ca.and_then(|value| file(&value)),
        identity: identity(&table, bundle.as_ref()),
        server_name: table.get("server_name").and_then(|value| value.parse(Host::parse)),
    };
    table.finish();
    settings
}

/// Reads one beside a provider that fetches the client certificate and its CA; `None` if there is no such table.
pub(super) fn read_beside_fetched(table: Option<Table<'_>>) -> Settings {
    let Some(table) = table else { return Settings { verify: Verify::CaOnly, ..Settings::default() } };
    for key in ["ca", "cert", "key", "bundle", "identity"] {
        if let Some(value) = table.get(key) {
            value.error_at_key("the provider fetches the client certificate, its key and the CA: leave this out");
        }
    }
    let settings = Settings {
        verify: verify(&table, Mode::CaOnly, &Anchors::Brought),
        server_name: table.get("server_name").and_then(|value| value.parse(Host::parse)),
        ..Settings::default()
    };
    table.finish();
    settings
}

fn identity(table: &Table<'_>, bundle: Option<&Value<'_>>) -> Option<ClientIdentity> {
    let (cert, key, which) = (table.get("cert"), table.get("key"), table.get("identity"));
    if let Some(bundle) = bundle {
        for value in [cert, key].into_iter().flatten() {
            value.error("`bundle` brings the certificate and its key: leave this out");
        }
        let identity = which.map_or(Some(Identity::default()), |value| value.choice(&Identity::NAMES));
        return Some(ClientIdentity::Bundle { reply: file(bundle)?, identity: identity? });
    }
    if let Some(which) = which {
        which.error("goes with `bundle` alone, and picks one of several identities in it");
    }
    match (&cert, &key) {
        (Some(cert), None) => cert.error("`key` is missing: a certificate is nothing without its private key"),
        (None, Some(key)) => key.error("`cert` is missing: a private key is nothing without its certificate"),
        _ => {}
    }
    let (cert, key) = (cert.and_then(|value| file(&value)), key.and_then(|value| file(&value)));
    Some(ClientIdentity::Files { cert: cert?, key: key? })
}

/// True if a client certificate is given, be it a wrong one.
pub(super) fn names_certificate(table: &Table<'_>) -> bool {
    ["bundle", "cert", "key"].into_iter().any(|key| table.get(key).is_some())
}

#[derive(Clone, Copy)]
enum Mode {
    Full,
    CaOnly,
    Pin,
    Nothing,
}

/// Where trust anchors come from.
enum Anchors<'v, 'a> {
    Named(&'v Value<'a>),
    Brought,
    System,
}

fn verify(table: &Table<'_>, default: Mode, anchors: &Anchors<'_, '_>) -> Verify {
    let (given, pin) = (table.get("verify"), table.get("pin"));
    let pins = pin.as_ref().and_then(|pin| pin.some_of(read_pin)).unwrap_or_default();
    let modes = [("full", Mode::Full), ("ca-only", Mode::CaOnly), ("pin", Mode::Pin), ("none", Mode::Nothing)];
    let mode = given.as_ref().map_or(Some(default), |given| given.choice(&modes));
    // What goes with a mode that is not understood cannot be judged.
    let Some(mode) = mode else { return Verify::Full };
    match (mode, &given, &pin) {
        (Mode::Full | Mode::CaOnly | Mode::Nothing, _, Some(pin)) => pin.error("goes with `verify = \"pin\"` alone"),
        (Mode::Pin, Some(given), None) => given.error("`pin` is missing: [\"sha256/…\"] of the server's public key"),
        _ => {}
    }
    match (mode, &given, anchors) {
        (Mode::CaOnly, Some(given), Anchors::System) => {
            given.error("`ca` is missing: where names are not checked, any server with a public certificate would do");
        }
        (Mode::Pin | Mode::Nothing, _, Anchors::Named(ca)) => {
            ca.warning("not used: with this `verify` no chain of certificates is checked");
        }
        _ => {}
    }
    match mode {
        Mode::Full => Verify::Full,
        Mode::CaOnly => Verify::CaOnly,
        Mode::Pin => Verify::Pin(pins),
        Mode::Nothing => {
            if let Some(given) = given {
                given.warning("the server is not verified: anyone on the way can read and change what is sent");
            }
            Verify::Nothing
        }
    }
}

fn read_pin(value: &Value<'_>) -> Option<[u8; 32]> {
    value.parse(|text| {
        let digest = text.strip_prefix("sha256/").and_then(|encoded| STANDARD.decode(encoded).ok());
        let digest = digest.and_then(|digest| digest.try_into().ok());
        digest.ok_or("expected \"sha256/\" and the base64 of the 32 octets of a public key's SHA-256")
    })
}

/// Reads the path of a file.
pub(super) fn file(value: &Value<'_>) -> Option<FileRef> {
    Some(FileRef { path: value.file()?, place: value.place() })
}
