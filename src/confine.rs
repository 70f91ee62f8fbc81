//! What the process gives up at its start, so that others get less of it.
//!
//! It keeps its memory to itself, gains no privileges any more, and reads and writes no files but those that it needs
//! (Landlock, landlock(7)). The rules are on folders: one on a file would go with the file when another one is put in its
//! place. They hold for the thread that makes them and for all that it starts, so they are made before any other is
//! started. Nobody can take them back: what a later configuration needs beyond them takes a restart.
//!
//! The network is left as it is, since a reload may name other upstreams and other ports.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use landlock::{
    ABI, Access as _, AccessFs, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
    path_beneath_rules,
};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;
use tracing::{info, warn};

/// Keeps the memory to this process: no core is dumped, and no process of the same user may trace it or read its memory or
/// its environment out of `/proc` (`PR_SET_DUMPABLE` in prctl(2), and ptrace(2)). Root still may.
///
/// # Errors
/// The first of the two steps that failed; the other one has been tried all the same.
pub fn keep_memory_private() -> Result<(), Errno> {
    // A core that is piped to a collector is not kept back by the limit, but by this.
    let dumpable = keep_own_memory_private();
    // The programs that are run for secrets inherit the limit alone.
    let limit = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    dumpable.and(limit)
}

/// The same for this process alone: programs that are started from here inherit nothing of it.
///
/// # Errors
/// What the kernel says.
pub fn keep_own_memory_private() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// What a configuration needs of the system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The files that it names, itself among them.
    pub files: Vec<PathBuf>,
    /// The Unix sockets that are made for it.
    pub sockets: Vec<PathBuf>,
    /// True if it names programs to run, which then read what they like.
    pub runs_programs: bool,
}

/// Confines the process for good, as far as this kernel can, and logs how far that is. Call it before there is another
/// thread.
pub fn confine(needs: &Needs) {
    if let Err(error) = set_no_new_privs(true) {
        warn!(%error, "the process cannot give up new privileges");
    }
    if needs.runs_programs {
        info!("the process may read and write what its user may, since the configuration names programs to run");
        return;
    }
    let reach = Reach::of(needs, |name| std::env::var_os(name));
    match restrict(&reach) {
        Ok(LandlockStatus::Available { effective_abi, .. }) => {
            IS_CONFINED.store(true, Ordering::Relaxed);
            let (read, sockets) = (List(&reach.read), List(&reach.sockets));
            info!(
                %read, %sockets, landlock = %effective_abi,
                "confined: beside what is the system's, it reads and makes sockets only in these folders, and runs nothing"
            );
        }
        Ok(_) => {
            warn!("not confined to its files: this kernel has no Landlock (Linux 5.13, and `landlock` in its lsm=)");
        }
        Err(error) => warn!(%error, "not confined to its files"),
    }
}

fn restrict(reach: &Reach) -> Result<LandlockStatus, RulesetError> {
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(VETTED))?.scope(Scope::Signal)?;
    // A supervisor may listen there.
    if !std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| name.as_bytes().starts_with(b"@")) {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
    }
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let restricted = ruleset
        .create()?
        // What is missing is left out.
        .add_rules(path_beneath_rules(SYSTEM.iter().map(PathBuf::from).chain(reach.system.clone()), read))?
        .add_rules(path_beneath_rules(&reach.read, read))?
        .add_rules(path_beneath_rules(&reach.sockets, AccessFs::MakeSock | AccessFs::RemoveFile))?
        .restrict_self()?;
    Ok(restricted.landlock)
}

/// The places that a confined process still reaches.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reach {
    /// Where it reads what the configuration names.
    read: BTreeSet<PathBuf>,
    /// Where it makes sockets and removes them.
    sockets: BTreeSet<PathBuf>,
    /// Where it finds what the system has for everybody, beside [`SYSTEM`].
    system: BTreeSet<PathBuf>,
}

impl Reach {
    fn of(needs: &Needs, environment: impl Fn(&str) -> Option<OsString>) -> Self {
        let roots = environment("SSL_CERT_FILE").map(PathBuf::from);
        let folders_of_roots = environment("SSL_CERT_DIR").unwrap_or_default();
        let elsewhere = LINKS.iter().map(PathBuf::from).chain(roots);
        // The folder of a socket, not what links to a socket lead to.
        let folder = |socket: &PathBuf| std::path::absolute(socket).ok()?.parent()?.canonicalize().ok();
        Self {
            read: needs.files.iter().flat_map(|file| places(file)).collect(),
            sockets: needs.sockets.iter().filter_map(folder).collect(),
            system: elsewhere.flat_map(|file| places(&file)).chain(std::env::split_paths(&folders_of_roots)).collect(),
        }
    }
}

/// The folders in which a file is found: the one that it is named in, and those that links lead to from there. Kubernetes
/// swaps such a link for another one in the same folder.
fn places(file: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let Ok(mut path) = std::path::absolute(file) else { return found };
    for _ in 0..MOST_LINKS {
        let (Some(name), Some(Ok(folder))) = (path.file_name(), path.parent().map(Path::canonicalize)) else { break };
        let entry = folder.join(name);
        // All that there is lies in the root, so what is there itself is named alone.
        found.insert(if folder.parent().is_none() { entry.clone() } else { folder.clone() });
        let Ok(target) = entry.read_link() else { break };
        path = folder.join(target);
    }
    found
}

struct List<'a>(&'a BTreeSet<PathBuf>);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nowhere");
        }
        for (at, path) in self.0.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { ", " }, path.display())?;
        }
        Ok(())
    }
}

/// Words about why a file cannot be read: the kernel gives the same reason for what its mode forbids and for what the
/// process has given up.
#[must_use]
pub fn unreadable<'a>(error: &'a io::Error, path: &Path) -> impl fmt::Display + use<'a> {
    Explained { error, is_ours: is_ours(error) && access(path, Access::READ_OK).is_ok() }
}

/// The same where a socket cannot be made.
#[must_use]
pub fn unbindable<'a>(error: &'a io::Error, path: &Path) -> impl fmt::Display + use<'a> {
    let folder = path.parent().unwrap_or(path);
    Explained { error, is_ours: is_ours(error) && access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok() }
}

/// The same where a program cannot be run.
#[must_use]
pub fn not_run(error: &io::Error) -> impl fmt::Display {
    Explained { error, is_ours: is_ours(error) }
}

/// True if the error can be of our own making: access(2) knows nothing of it, only of modes.
fn is_ours(error: &io::Error) -> bool {
    IS_CONFINED.load(Ordering::Relaxed) && is_landlocks(error)
}

/// True if that is how Landlock refuses: EPERM comes from what else there is, such as a group that is not ours.
fn is_landlocks(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ACCESS.raw_os_error())
}

struct Explained<'a> {
    error: &'a io::Error,
    is_ours: bool,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ours {
            return f.write_str(
                "restart needed: the process has confined itself to what its configuration needed when it started",
            );
        }
        self.error.fmt(f)
    }
}

static IS_CONFINED: AtomicBool = AtomicBool::new(false);

/// The newest interface whose rights were looked at one by one: none beside those that are given above is needed.
const VETTED: ABI = ABI::V6;

/// How many links the kernel follows on a path.
const MOST_LINKS: usize = 40;

/// What is the system's: how names are resolved, whom everybody trusts, the libraries of both, how many cores there
/// are, and what the kernel tells of callers. `/proc` does not give other processes' memory and environment away: the
/// kernel takes reading them for tracing, which a confined process may not.
const SYSTEM: [&str; 16] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/run/nscd",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/var/lib/ca-certificates",
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
];

/// Files of the system that are links to somewhere else now and then.
const LINKS: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["mount/..2026", "conf", "keys", "run"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["mount/..2026/key", "conf/countersign.toml", "keys/sk"] {
            fs::write(root.join(name), "").unwrap();
        }
        for (target, name) in [
            ("..2026", "mount/..data"),
            ("..data/key", "mount/key"),
            ("../keys/sk", "conf/sk"),
            ("conf", "way"),
            ("circle", "circle"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        (folder, root)
    }

    #[test]
    fn a_file_is_found_where_it_is_named_and_where_links_lead() {
        let (_folder, root) = root();
        for (file, expected) in [
            ("keys/sk", &["keys"][..]),
            ("keys/not-there-yet", &["keys"]),
            ("conf/sk", &["conf", "keys"]),
            ("mount/key", &["mount", "mount/..2026"]),
            // The way itself needs no right, so the folder with a link on the way is not one of them.
            ("way/sk", &["conf", "keys"]),
            ("way/../conf/./countersign.toml", &["conf"]),
            ("no/such/folder", &[]),
        ] {
            let expected = expected.iter().map(|name| root.join(name)).collect();
            assert_eq!(places(&root.join(file)), expected, "{file}");
        }
        assert_eq!(places(&root.join("circle")), BTreeSet::from([root.clone()]));
    }

    #[test]
    fn nothing_opens_all_that_there_is() {
        for file in ["/countersign.toml", "/", "/..", "/etc/.."] {
            assert!(!places(Path::new(file)).contains(Path::new("/")), "{file}");
        }
        assert_eq!(places(Path::new("/countersign.toml")), BTreeSet::from([PathBuf::from("/countersign.toml")]));
    }

    #[test]
    fn what_is_reached_is_what_the_configuration_needs() {
        let (_folder, root) = root();
        let at = |names: &[&str]| names.iter().map(|name| root.join(name)).collect::<BTreeSet<_>>();
        let needs = Needs {
            files: vec![root.join("conf/countersign.toml"), root.join("keys/sk")],
            sockets: vec![root.join("run/cs.sock"), root.join("nowhere/cs.sock")],
            runs_programs: false,
        };
        let environment = |name: &str| match name {
            "SSL_CERT_FILE" => Some(root.join("mount/key").into_os_string()),
            "SSL_CERT_DIR" => Some("/opt/one:/opt/two".into()),
            _ => None,
        };
        let reach = Reach::of(&needs, environment);
        assert_eq!((reach.read, reach.sockets), (at(&["conf", "keys"]), at(&["run"])));
        for folder in [root.join("mount"), root.join("mount/..2026"), "/opt/one".into(), "/opt/two".into()] {
            assert!(reach.system.contains(&folder), "{}", folder.display());
        }
        let bare = Reach::of(&Needs::default(), |_| None);
        assert!(bare.read.is_empty() && bare.sockets.is_empty());
        assert!(bare.system.iter().all(|place| place != Path::new("/")));
    }

    #[test]
    fn the_kernels_reason_stands_where_we_gave_nothing_up() {
        let denied = io::Error::from(Errno::ACCESS);
        assert!(is_landlocks(&denied) && !is_landlocks(&Errno::PERM.into()));
        assert_eq!(unreadable(&denied, Path::new("/")).to_string(), denied.to_string());
        assert_eq!(not_run(&denied).to_string(), denied.to_string());
    }
}
