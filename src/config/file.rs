//! The configuration file: where it is looked for, and how it is read.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;

use crate::confine;
use crate::settings::{BareSecrets, Place, Reader, Remark};

/// No configuration file was named, and none is where it is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    /// Where it was looked for.
    pub looked: Vec<PathBuf>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let looked: Vec<_> = self.looked.iter().map(|path| path.display().to_string()).collect();
        write!(
            f,
            "no configuration: looked for {}; name a file with -c or ${VARIABLE}, or have one written by countersign init",
            looked.join(" and ")
        )
    }
}

impl std::error::Error for NotFound {}

/// The configuration file to read: the one given, else that of `$COUNTERSIGN_CONFIG`, else the user's own, else the
/// machine's. Never one of the working directory: it could run commands.
///
/// # Errors
/// None was named, and there is none.
pub fn locate(given: Option<&Path>) -> Result<PathBuf, NotFound> {
    choose(given, |name| std::env::var_os(name), is_there)
}

/// What a configuration file holds.
pub(super) struct Contents {
    /// Its text.
    pub(super) text: Zeroizing<String>,
    /// What its mode says about secrets in it.
    pub(super) bare_secrets: BareSecrets,
    /// What is wrong with its mode.
    pub(super) warning: Option<Remark>,
}

/// Reads a configuration file.
pub(super) fn read(path: &Path) -> Result<Contents, Remark> {
    let whole = |message: String| Remark { place: Place::default(), message };
    let trouble =
        |error: io::Error| whole(format!("cannot read the configuration: {}", confine::unreadable(&error, path)));
    let file = File::open(path).map_err(trouble)?;
    let metadata = file.metadata().map_err(trouble)?;
    if metadata.is_dir() {
        return Err(whole("cannot read the configuration: it is a folder, expected a file".to_owned()));
    }
    // Room for all of it, so that no copy of a secret is left behind by a vector that grew.
    let expected = usize::try_from(metadata.len().min(MOST)).unwrap_or(0);
    let mut octets = Zeroizing::new(Vec::with_capacity(expected + 1));
    file.take(MOST + 1).read_to_end(&mut octets).map_err(trouble)?;
    if octets.len() as u64 > MOST {
        return Err(whole(format!("cannot read the configuration: it holds more than {MOST} octets")));
    }
    let text = std::str::from_utf8(&octets).map_err(|error| {
        let before = octets.get(..error.valid_up_to()).and_then(|octets| std::str::from_utf8(octets).ok());
        let before = before.unwrap_or_default();
        let place = Reader::new(before, Path::new(""), BareSecrets::Refuse).place(before.len());
        Remark { place, message: "expected text in UTF-8".to_owned() }
    })?;
    let mode = metadata.permissions().mode();
    Ok(Contents {
        text: Zeroizing::new(text.to_owned()),
        bare_secrets: if mode & 0o004 != 0 {
            BareSecrets::Refuse
        } else if mode & 0o040 != 0 {
            BareSecrets::Warn
        } else {
            BareSecrets::Accept
        },
        warning: (mode & 0o002 != 0)
            .then(|| whole("everybody can write this file, which can name commands to run: chmod o-w it".to_owned())),
    })
}

/// The folder that a configuration file's relative paths belong to.
pub(super) fn folder(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.parent().map(Path::to_owned).unwrap_or_default()
}

fn choose(
    given: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
    is_there: impl Fn(&Path) -> bool,
) -> Result<PathBuf, NotFound> {
    let variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = given.map(Path::to_owned).or_else(|| variable(VARIABLE)) {
        return Ok(named);
    }
    // The XDG base directory specification: a relative path is invalid and ignored.
    let absolute = |path: &PathBuf| path.is_absolute();
    let own = variable("XDG_CONFIG_HOME")
        .filter(absolute)
        .or_else(|| variable("HOME").filter(absolute).map(|home| home.join(".config")));
    let folders = own.into_iter().chain([PathBuf::from("/etc")]);
    let looked: Vec<_> = folders.map(|folder| folder.join("countersign/countersign.toml")).collect();
    match looked.iter().find(|path| is_there(path)) {
        Some(found) => Ok(found.clone()),
        None => Err(NotFound { looked }),
    }
}

/// False only if there is certainly no such file: one that may not be looked at should be reported, not passed over.
fn is_there(path: &Path) -> bool {
    match path.metadata() {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

const VARIABLE: &str = "COUNTERSIGN_CONFIG";

/// What a configuration file may measure, in octets.
const MOST: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn choose_with(given: Option<&str>, variables: &[(&str, &str)], there: &[&str]) -> Result<PathBuf, NotFound> {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        choose(given.map(Path::new), variable, |path| there.iter().any(|there| Path::new(there) == path))
    }

    #[test]
    fn the_file_given_comes_first_even_if_it_is_missing() {
        let variables = [(VARIABLE, "/b.toml"), ("HOME", "/home/a")];
        assert_eq!(choose_with(Some("a.toml"), &variables, &[]), Ok("a.toml".into()));
        assert_eq!(choose_with(None, &variables, &[]), Ok("/b.toml".into()));
    }

    #[test]
    fn the_users_own_file_comes_before_the_machines() {
        let (own, xdg) = ("/home/a/.config/countersign/countersign.toml", "/x/countersign/countersign.toml");
        let machine = "/etc/countersign/countersign.toml";
        let home = ("HOME", "/home/a");
        let there = [own, xdg, machine];
        assert_eq!(choose_with(None, &[home], &there), Ok(own.into()));
        assert_eq!(choose_with(None, &[home, ("XDG_CONFIG_HOME", "/x")], &there), Ok(xdg.into()));
        assert_eq!(choose_with(None, &[home, ("XDG_CONFIG_HOME", "."), (VARIABLE, "")], &there), Ok(own.into()));
        assert_eq!(choose_with(None, &[home], &[machine]), Ok(machine.into()));
        assert_eq!(choose_with(None, &[("HOME", ".")], &there), Ok(machine.into()));
    }

    #[test]
    fn where_it_was_looked_for_is_told() {
        let trouble = choose_with(None, &[("HOME", "/home/a")], &["countersign.toml"]).unwrap_err().to_string();
        assert!(trouble.contains("/home/a/.config/countersign/countersign.toml and /etc/countersign/"), "{trouble}");
    }

    #[test]
    fn the_mode_decides_about_secrets_in_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, expected, warned) in [
            (0o600, BareSecrets::Accept, false),
            (0o640, BareSecrets::Warn, false),
            (0o644, BareSecrets::Refuse, false),
            (0o604, BareSecrets::Refuse, false),
            (0o602, BareSecrets::Accept, true),
        ] {
            file.as_file().set_permissions(PermissionsExt::from_mode(mode)).unwrap();
            let contents = read(file.path()).map_err(|remark| remark.message).unwrap();
            assert_eq!((contents.bare_secrets, contents.warning.is_some()), (expected, warned), "{mode:o}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| read(path).err().map(|remark| remark.of(Path::new("f"))).unwrap_or_default();
        assert!(message(folder.path()).contains("it is a folder"));
        assert!(message(&folder.path().join("none")).starts_with("f: cannot read the configuration: No such file"));
        let wrong = folder.path().join("latin1.toml");
        std::fs::write(&wrong, b"[log]\n# caf\xe9\n").unwrap();
        assert_eq!(message(&wrong), "f:2:6: expected text in UTF-8");
    }
}
