//! `countersign import`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use rustls_pki_types::CertificateDer;
use secrecy::ExposeSecret;
use tempfile::NamedTempFile;

use crate::canonical::time;
use crate::clock::Clock;
use crate::upstream::bundle::{self, Identity};
use crate::upstream::pem;
use crate::upstream::x509::{self, Certificate};

use super::{Failed, complain, print};

/// Write ca.pem, cert.pem and key.pem out of a certificate service's reply
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Which identity of a reply that holds several
    #[arg(long, value_name = "NAME", default_value = "source", value_parser = identity())]
    identity: Identity,
    /// The reply in JSON; - reads it from standard input
    #[arg(value_name = "REPLY.json or -")]
    reply: PathBuf,
    /// The folder to write into, made if it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

fn identity() -> impl TypedValueParser<Value = Identity> {
    PossibleValuesParser::new(Identity::NAMES.map(|(name, _)| name)).map(|given| {
        let found = Identity::NAMES.into_iter().find(|(name, _)| *name == given);
        found.map(|(_, identity)| identity).unwrap_or_default()
    })
}

/// Unpacks the reply, and writes nothing unless all of it is right.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    import(arguments).map_err(|trouble| {
        complain(trouble);
        Failed::Running
    })
}

fn import(Arguments { identity, reply, folder }: &Arguments) -> Result<(), String> {
    let is_stdin = reply.as_os_str() == "-";
    let name = if is_stdin { "standard input".to_owned() } else { reply.display().to_string() };
    let content = if is_stdin { pem::read_all(io::stdin().lock()) } else { File::open(reply).and_then(pem::read_all) };
    let content = content.map_err(|error| format!("cannot read {name}: {error}"))?;
    let bundle = bundle::unpack(&content, *identity).map_err(|trouble| format!("{name}: {trouble}"))?;

    let (ca, chain, key) = (bundle.ca_pem(), bundle.chain_pem(), bundle.key_pem());
    // The certificate last: until its key is there, it would not fit the old one.
    let files = [
        ca.as_deref().map(|pem| (CA, PUBLIC, pem, format!("CA {}", described(&bundle.ca)))),
        Some((KEY, PRIVATE, key.expose_secret(), format!("the private key of {CERT}"))),
        Some((CERT, PUBLIC, chain.as_str(), described(&bundle.identity.cert))),
    ];
    let files: Vec<_> = files.into_iter().flatten().collect();
    let cannot = |error| format!("cannot write into {}: {error}", folder.display());
    if folder.is_file() {
        return Err(format!("cannot write into {}: it is a file, expected a folder or nothing", folder.display()));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
    let staged: io::Result<Vec<_>> = files.iter().map(|(name, mode, pem, _)| stage(folder, name, *mode, pem)).collect();
    for ((name, ..), file) in files.iter().zip(staged.map_err(cannot)?) {
        file.persist(folder.join(name)).map_err(|error| cannot(error.error))?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)?;

    for (name, _, _, what) in &files {
        print(format!("{}: {what}\n", folder.join(name).display()));
    }
    let stale = folder.join(CA);
    if ca.is_none() && stale.exists() {
        let stale = stale.display();
        complain(format!(
            "warning: the reply holds no CA, so that {stale} is what it was: delete it if it is another's"
        ));
    }
    Ok(())
}

/// Writes a file that has everything but its name.
fn stage(folder: &Path, name: &str, mode: u32, content: &str) -> io::Result<NamedTempFile> {
    if fs::symlink_metadata(folder.join(name)).is_ok_and(|there| there.is_dir()) {
        return Err(io::Error::other(format!("{name} is a folder there, expected a file or nothing")));
    }
    let prefix = format!(".{name}.");
    // Nobody else can read it for now, whatever it will be.
    let mut file =
        tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(PRIVATE)).tempfile_in(folder)?;
    file.write_all(content.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The first certificate in words, and how many follow.
fn described(certificates: &[CertificateDer<'_>]) -> String {
    let Some(certificate) = certificates.first().and_then(|first| Certificate::parse(first)) else {
        return "of an unknown form".to_owned();
    };
    // With escapes, since anything may stand in a name.
    let subject =
        x509::common_name(certificate.subject).map_or("without a name".to_owned(), |name| format!("{name:?}"));
    let is_over = certificate.not_after < Clock::system().now();
    let validity = if is_over { "expired on" } else { "valid until" };
    let more = match certificates.len() {
        1 => String::new(),
        count => format!(", and {} more", count - 1),
    };
    format!("{subject}, {validity} {}{more}", time::iso(certificate.not_after))
}

const CA: &str = "ca.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

const EXAMPLES: &str = "\
Examples:
  countersign import reply.json ~/certificates
  curl URL | countersign import --identity target_data - ~/certificates";
