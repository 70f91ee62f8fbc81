//! Notices that files have changed: secrets, certificates, the configuration.
//!
//! What is watched are folders, since whoever changes a file well puts another one in its place, or swaps a link on the way
//! to it as Kubernetes does with `..data`. Where a file is found is looked up anew after every change, so that the watch
//! follows the links. Whoever is told compares what the files hold: what counts here is that no change is missed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, FileType};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use secrecy::zeroize::Zeroizing;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::warn;

/// What a file holds, in so far as to notice a change; `None` if it cannot be read. It may be a secret, so its digest is for
/// comparing alone.
#[must_use]
pub fn digest(path: &Path) -> Option<[u8; 32]> {
    let mut content = Zeroizing::new(Vec::new());
    File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut content)).ok()?;
    Some(Sha256::digest(&content).into())
}

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts watching, with no file at first. The count goes up each time that something may have changed, and once as soon
    /// as what [`watch`](Self::watch) named is watched: what is read after that is not out of date unnoticed.
    ///
    /// A burst of changes counts once, when it has been quiet for a moment, but is never put off for longer than half a
    /// second.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<u64>) {
        Self::start(|shared| notify::recommended_watcher(move |event| shared.hear(&event)))
    }

    /// Watches these files from now on, in place of those before. They need not exist, nor need their folders.
    pub fn watch(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let mut state = self.shared.state();
        state.files = files.into_iter().collect();
        state.is_stirred = true;
        self.shared.bell.notify_all();
    }

    fn start(
        kernel: impl Fn(Arc<Shared>) -> notify::Result<RecommendedWatcher> + Send + 'static,
    ) -> (Self, watch::Receiver<u64>) {
        let (changes, receiver) = watch::channel(0);
        let shared = Arc::<Shared>::default();
        let place = Place::default();
        let worker = Worker {
            shared: Arc::clone(&shared),
            changes,
            kernel: Box::new(kernel),
            events: None,
            place,
            prints: Vec::new(),
            glance: GLANCE,
            has_warned: false,
        };
        let thread = Builder::new().name("watch".to_owned()).spawn(move || worker.run());
        if let Err(error) = &thread {
            warn!(%error, "changed files are not noticed: there is no thread to watch them");
        }
        (Self { shared, thread: thread.ok() }, receiver)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.bell.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the owner, the kernel's events and the thread tell each other: flags, so that nothing queues.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<PathBuf>,
    place: Place,
    is_stirred: bool,
    is_over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> Vec<PathBuf> {
        self.state().files.clone()
    }

    fn hear(&self, event: &notify::Result<Event>) {
        let mut state = self.state();
        if !state.is_stirred && state.place.is_meant_by(event) {
            state.is_stirred = true;
            self.bell.notify_all();
        }
    }

    /// Waits for something to happen, for as long as this at most.
    fn wait(&self, longest: Duration) -> Heard {
        let is_calm = |state: &mut State| !state.is_stirred && !state.is_over;
        let waited = self.bell.wait_timeout_while(self.state(), longest, is_calm);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match (state.is_over, std::mem::take(&mut state.is_stirred)) {
            (true, _) => Heard::Over,
            (_, true) => Heard::Stir,
            (_, false) => Heard::Nothing,
        }
    }

    /// Waits until a burst is over.
    fn settle(&self, counted: Option<Instant>) -> Heard {
        let began = Instant::now();
        let earliest = counted.map_or(began, |counted| counted + LEAST);
        loop {
            let now = Instant::now();
            let end = (now + QUIET).max(earliest).min(began + LONGEST);
            match self.wait(end.saturating_duration_since(now)) {
                Heard::Stir if Instant::now() < began + LONGEST => {}
                heard => return heard,
            }
        }
    }
}

enum Heard {
    Stir,
    Nothing,
    Over,
}

/// Where files are found: what would have to change for another content to be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// The folders that hold the files, or links on the way to them, or that would hold what is missing.
    folders: BTreeSet<PathBuf>,
    /// What the files, the links and the missing are called there.
    names: BTreeSet<OsString>,
}

impl Place {
    fn of(files: &[PathBuf]) -> Self {
        let mut place = Self::default();
        for file in files {
            place.follow(file);
        }
        place
    }

    fn follow(&mut self, file: &Path) {
        let Ok(mut ahead) = std::path::absolute(file) else { return };
        let (mut folder, mut links) = (PathBuf::from("/"), 0);
        loop {
            let mut steps = ahead.components();
            let (step, rest) = (steps.next(), steps.as_path());
            let name = match step {
                Some(Component::Normal(name)) => name,
                Some(step) => {
                    match step {
                        Component::RootDir => folder = PathBuf::from("/"),
                        Component::ParentDir => drop(folder.pop()),
                        _ => {}
                    }
                    ahead = rest.to_owned();
                    continue;
                }
                None => return,
            };
            let entry = folder.join(name);
            let kind = entry.symlink_metadata().map(|metadata| metadata.file_type());
            if kind.as_ref().is_ok_and(FileType::is_dir) && rest != Path::new("") {
                (folder, ahead) = (entry, rest.to_owned());
                continue;
            }
            self.folders.insert(folder.clone());
            self.names.insert(name.to_owned());
            links += 1;
            if links > MOST_LINKS || !kind.is_ok_and(|kind| kind.is_symlink()) {
                return;
            }
            let Ok(target) = entry.read_link() else { return };
            ahead = target.join(rest);
        }
    }

    fn is_meant_by(&self, event: &notify::Result<Event>) -> bool {
        let Ok(event) = event else { return true };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            // Reading is no change: above all when we do it.
            EventKind::Access(_) => return false,
            _ => {}
        }
        // By name alone: where a folder is mounted twice, the kernel knows it by one of its paths.
        let is_ours = |path: &PathBuf| {
            self.folders.contains(path) || path.file_name().is_some_and(|name| self.names.contains(name))
        };
        event.need_rescan() || event.paths.iter().any(is_ours)
    }
}

/// What runs on the thread.
struct Worker {
    shared: Arc<Shared>,
    changes: watch::Sender<u64>,
    kernel: Box<Kernel>,
    events: Option<RecommendedWatcher>,
    place: Place,
    prints: Vec<Option<Print>>,
    glance: Duration,
    has_warned: bool,
}

/// Makes what the kernel's events come from.
type Kernel = dyn Fn(Arc<Shared>) -> notify::Result<RecommendedWatcher> + Send;

/// What changes with a file: device, number, size and time of change.
type Print = (u64, u64, u64, Option<SystemTime>);

impl Worker {
    fn run(mut self) {
        let mut counted = None;
        loop {
            match self.shared.wait(self.glance) {
                Heard::Over => return,
                Heard::Nothing if prints(&self.shared.files()) == self.prints => continue,
                Heard::Nothing | Heard::Stir => {}
            }
            if matches!(self.shared.settle(counted), Heard::Over) {
                return;
            }
            self.look_up();
            counted = Some(Instant::now());
            // After the look-up: what it missed is found by whoever reads now.
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Watches the folders that matter now, all of them anew: one of the same name may be another one.
    fn look_up(&mut self) {
        let files = self.shared.files();
        let place = Place::of(&files);
        self.shared.state().place = place.clone();
        let old = std::mem::replace(&mut self.place, place);
        let trouble = self.watch_instead_of(&old).err();
        if Place::of(&files) != self.place {
            self.shared.state().is_stirred = true;
        }
        self.prints = prints(&files);
        self.glance = if trouble.is_some() { SHORT_GLANCE } else { GLANCE };
        if let Some(error) = trouble
            && !std::mem::replace(&mut self.has_warned, true)
        {
            warn!(
                %error,
                "the kernel does not watch the files, so they are looked at every {} seconds: have its watches run out \
                 (fs.inotify.max_user_watches and max_user_instances), or may their folder not be read?",
                SHORT_GLANCE.as_secs()
            );
        }
    }

    fn watch_instead_of(&mut self, old: &Place) -> notify::Result<()> {
        let events = match &mut self.events {
            Some(events) => events,
            None => self.events.insert((self.kernel)(Arc::clone(&self.shared))?),
        };
        for folder in &old.folders {
            // It may be gone, and the watch with it.
            let _ = events.unwatch(folder);
        }
        let watched = self.place.folders.iter().map(|folder| events.watch(folder, RecursiveMode::NonRecursive));
        // All are tried, whatever becomes of the first.
        watched.fold(Ok(()), Result::and)
    }
}

fn prints(files: &[PathBuf]) -> Vec<Option<Print>> {
    let print =
        |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok());
    files.iter().map(|file| file.metadata().ok().map(print)).collect()
}

/// How long it must be quiet for a burst to be over.
const QUIET: Duration = Duration::from_millis(50);

/// The least time between two counts.
const LEAST: Duration = Duration::from_millis(100);

/// For how long a burst is put off at most.
const LONGEST: Duration = Duration::from_millis(500);

/// How often the files are looked at all the same: other machines' changes of a shared disk, or of a folder far above, are
/// nothing that the kernel tells.
const GLANCE: Duration = Duration::from_secs(60);

/// How often they are looked at where the kernel tells nothing at all.
const SHORT_GLANCE: Duration = Duration::from_secs(2);

/// How many links the kernel follows on a path.
const MOST_LINKS: usize = 40;

/// How much of a file is looked at, in octets.
const MOST: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn where_the_kernel_tells_nothing_the_files_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let (mut watcher, mut changes) = Watcher::start(|_| Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch)));
        watcher.watch([file.clone()]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut counted = || {
            let patience = Duration::from_secs(60);
            runtime.block_on(async { tokio::time::timeout(patience, changes.changed()).await.unwrap().unwrap() });
        };
        counted();
        fs::write(&file, "one").unwrap();
        counted();
        let (other, link) = (folder.path().join("other"), folder.path().join("link"));
        fs::write(&other, "two").unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        fs::rename(&link, &file).unwrap();
        counted();
        fs::remove_file(&other).unwrap();
        counted();
    }

    #[test]
    fn a_place_is_every_link_on_the_way_and_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        for name in ["mount/..2026", "real/deep"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        link("..data/key", "mount/key");
        link("..2026", "mount/..data");
        fs::write(root.join("mount/..2026/key"), "").unwrap();
        link("real/../real", "way");
        link("circle", "circle");
        link("/nowhere/at/all", "away");
        let (mount, data, deep) = ("mount", "mount/..2026", "real/deep");
        for (file, folders, names) in [
            ("mount/key", vec![mount, data], vec!["..data", "key"]),
            ("./real//deep/new", vec![deep], vec!["new"]),
            ("real/deep/../../mount/..data/key", vec![mount, data], vec!["..data", "key"]),
            ("way/deep/new", vec!["", deep], vec!["new", "way"]),
            ("way/none/of/these", vec!["", "real"], vec!["none", "way"]),
            ("mount/..2026/key/below", vec![data], vec!["key"]),
            ("circle", vec![""], vec!["circle"]),
            ("away", vec!["", "/"], vec!["away", "nowhere"]),
            ("real", vec![""], vec!["real"]),
        ] {
            let folders = folders.into_iter().map(|folder| match folder {
                "" => root.clone(),
                folder => root.join(folder),
            });
            let expected = Place { folders: folders.collect(), names: names.into_iter().map(OsString::from).collect() };
            assert_eq!(Place::of(&[root.join(file)]), expected, "{file}");
        }
    }

    #[test]
    fn a_burst_that_does_not_end_is_put_off_for_no_longer_than_half_a_second() {
        let shared = Shared::default();
        std::thread::scope(|scope| {
            let settled = scope.spawn(|| shared.settle(None));
            while !settled.is_finished() {
                shared.state().is_stirred = true;
                shared.bell.notify_all();
                std::thread::yield_now();
            }
        });
    }
}
