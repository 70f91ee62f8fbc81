//! References to secrets: an environment variable, a file, a systemd credential, a command's output.

use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::settings::{Place, Remark, Value};

/// Where a secret is kept.
#[derive(Clone, Debug)]
pub struct SecretRef {
    place: Place,
    path: String,
    keeper: Keeper,
}

#[derive(Clone, Debug)]
enum Keeper {
    Here(SecretString),
    Environment(String),
    File(PathBuf),
    SystemdCredential(String),
    Command { argv: Vec<String>, ttl: Option<Duration> },
}

/// A reference that leads nowhere, and where it stands in the configuration file.
pub type Unreadable = Remark;

impl SecretRef {
    /// Reads a reference to a secret. A bare string is taken only where the file is closed to others.
    #[must_use]
    pub fn secret(value: &Value<'_>) -> Option<Self> {
        if value.is_string() {
            let references = "{ env = \"NAME\" }, { file = \"PATH\" } or { credential = \"NAME\" }";
            value.bare_secret("a secret", &format!("refer to the secret with {references}"));
        }
        Self::name(value)
    }

    /// Reads a name that is no secret (an access key, a user), or a reference to one.
    #[must_use]
    pub fn name(value: &Value<'_>) -> Option<Self> {
        let keeper = if value.is_string() { Keeper::Here(value.string()?.into()) } else { Self::keeper(value)? };
        Some(Self { place: value.place(), path: value.path().to_owned(), keeper })
    }

    fn keeper(value: &Value<'_>) -> Option<Keeper> {
        let table =
            value.table_as("a string in quotes, or a reference such as { env = \"NAME\" } or { file = \"PATH\" }")?;
        let environment = table.get("env").map(|v| {
            v.string().map(|name| {
                v.reader().secret_variable(name);
                Keeper::Environment(name.to_owned())
            })
        });
        let file = table.get("file").map(|v| v.string().map(|path| Keeper::File(v.reader().path(path))));
        let credential = table.get("credential").map(|v| {
            v.parse(|name| {
                let is_file_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
                is_file_name.then(|| Keeper::SystemdCredential(name.to_owned())).ok_or("expected a name without `/`")
            })
        });
        let ttl = table.get("ttl").map(|v| v.duration());
        let command =
            table.get("command").map(|v| Some(Keeper::Command { argv: argv(&v)?, ttl: ttl.unwrap_or_default() }));
        let is_command = command.is_some();
        table.finish();
        let mut given = [environment, file, credential, command].into_iter().flatten();
        let (Some(keeper), None) = (given.next(), given.next()) else {
            value.error("expected exactly one of `env`, `file`, `credential`, `command`");
            return None;
        };
        if ttl.is_some() && !is_command {
            value.error("`ttl` belongs to `command`");
            return None;
        }
        keeper
    }

    /// The file that the secret is read from, if it is.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        match &self.keeper {
            Keeper::File(path) => Some(path.clone()),
            Keeper::SystemdCredential(name) => systemd_credential(name).ok(),
            _ => None,
        }
    }

    /// After how long the command that prints the secret is to run again.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        match &self.keeper {
            Keeper::Command { ttl, .. } => *ttl,
            _ => None,
        }
    }

    /// What distinguishes this reference from others, without showing the secret: two that are equal lead to the same.
    #[must_use]
    pub fn identity(&self) -> String {
        match &self.keeper {
            Keeper::Here(secret) => format!("here {}", hex::encode(Sha256::digest(secret.expose_secret()))),
            Keeper::Environment(name) => format!("env {name}"),
            Keeper::File(path) => format!("file {}", path.display()),
            Keeper::SystemdCredential(name) => format!("credential {name}"),
            Keeper::Command { argv, .. } => format!("command {argv:?}"),
        }
    }

    /// Reads the secret. One trailing newline is dropped: editors and `echo` leave it.
    ///
    /// # Errors
    /// Why it cannot be read, and what to do; never a part of it.
    pub fn reveal(&self) -> Result<SecretString, Unreadable> {
        self.read().map_err(|message| Unreadable { place: self.place, message: format!("`{}`: {message}", self.path) })
    }

    fn read(&self) -> Result<SecretString, String> {
        let octets = match &self.keeper {
            Keeper::Here(secret) => return Ok(secret.clone()),
            Keeper::Environment(name) => std::env::var_os(name)
                .map(|value| Zeroizing::new(value.into_vec()))
                .ok_or_else(|| format!("the environment variable {name} is not set"))?,
            Keeper::File(path) => read_file(path)?,
            Keeper::SystemdCredential(name) => read_file(&systemd_credential(name)?)?,
            Keeper::Command { argv, .. } => run(argv, PATIENCE)?,
        };
        let text = str::from_utf8(&octets).map_err(|_| "expected text in UTF-8")?;
        let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
        if text.is_empty() {
            return Err("it leads to nothing: the secret is empty".to_owned());
        }
        Ok(text.into())
    }
}

/// Reads a program and its arguments.
pub(super) fn argv(value: &Value<'_>) -> Option<Vec<String>> {
    let argv: Vec<String> = value.list_of(|word| word.string().map(str::to_owned))?;
    if argv.is_empty() {
        value.error("expected a program and its arguments");
        return None;
    }
    Some(argv)
}

fn systemd_credential(name: &str) -> Result<PathBuf, &'static str> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
        .ok_or("CREDENTIALS_DIRECTORY is not set: systemd sets it for a unit with LoadCredential= or SetCredential=")?;
    Ok(PathBuf::from(folder).join(name))
}

pub(super) fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot open {shown}: {error}"))?;
    let octets = read_all(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    octets.ok_or_else(|| format!("{shown} holds more than {MOST} octets"))
}

/// All that there is, unless that is too much.
fn read_all(source: impl Read) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    // Room for all of it at once: what grows leaves copies behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(MOST + 1));
    source.take(MOST as u64 + 1).read_to_end(&mut octets)?;
    Ok((octets.len() <= MOST).then_some(octets))
}

/// Runs a program that has to end within `patience`, and returns what it printed. Its standard error goes where ours goes.
pub(super) fn run(argv: &[String], patience: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
    let deadline = Instant::now() + patience;
    let Some((program, arguments)) = argv.split_first() else { return Err("expected a program".to_owned()) };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let output = child.stdout.take();
    let (sender, receiver) = mpsc::sync_channel(1);
    // The reader ends with the child's standard output, which ends at the latest when the child is killed.
    std::thread::spawn(move || {
        let _ = sender.send(match output.map(read_all) {
            Some(Ok(Some(octets))) => Ok(octets),
            Some(Ok(None)) => Err(format!("it printed more than {MOST} octets")),
            _ => Err("its output could not be read".to_owned()),
        });
    });
    let output = receiver.recv_timeout(patience);
    // A program may close its output and go on all the same.
    while output.is_ok() && Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let is_late = output.is_err() || matches!(child.try_wait(), Ok(None));
    if is_late {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("cannot wait for {program}: {error}"))?;
    let late = format!("{program} took longer than {} seconds", patience.as_secs());
    match output {
        // First, since a program whose output nobody reads any more may well end badly.
        Ok(Err(trouble)) => Err(format!("{program}: {trouble}")),
        Ok(Ok(octets)) if !is_late && status.success() => Ok(octets),
        Ok(Ok(_)) if !is_late => Err(format!("{program} ended with {status}")),
        Ok(Ok(_)) | Err(_) => Err(late),
    }
}

/// What a secret may measure, in octets; tokens of 16 KiB exist.
const MOST: usize = 65536;

/// How long a command may take: a password manager may ask somebody to touch a key.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
        run(&["sh", "-c", script].map(str::to_owned), patience)
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let began = Instant::now();
        for script in ["sleep 60", "echo secret; exec >&-; sleep 60"] {
            let error = shell(script, Duration::from_millis(300)).unwrap_err();
            assert_eq!(error, "sh took longer than 0 seconds", "{script}");
        }
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_a_program_prints_counts_only_if_it_ends_well() {
        assert_eq!(shell("echo secret", PATIENCE).unwrap().as_slice(), b"secret\n");
        assert_eq!(shell("echo secret; exit 3", PATIENCE).unwrap_err(), "sh ended with exit status: 3");
        for (script, patience) in [
            ("head -c 70000 /dev/zero", PATIENCE),
            ("head -c 70000 /dev/zero; exit 3", PATIENCE),
            ("trap '' PIPE; yes; sleep 60", Duration::from_secs(5)),
        ] {
            let error = shell(script, patience).unwrap_err();
            assert_eq!(error, "sh: it printed more than 65536 octets", "{script}");
        }
    }
}
