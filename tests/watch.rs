//! The watcher of files, with files as people and machines change them.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use countersign::watch::Watcher;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

/// Long enough for the busiest machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    folder: TempDir,
    watcher: Watcher,
    changes: Receiver<u64>,
    runtime: Runtime,
}

impl Scene {
    /// An empty folder.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (watcher, changes) = Watcher::new();
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        Self { folder, watcher, changes, runtime }
    }

    /// Watches these files; returns once they are watched.
    fn watching<const N: usize>(files: [&str; N]) -> Self {
        let mut scene = Self::new();
        scene.watch(files);
        scene
    }

    fn watch<const N: usize>(&mut self, files: [&str; N]) {
        let before = self.count();
        let files = files.map(|file| self.path(file));
        self.watcher.watch(files);
        self.count_above(before);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Writes beside it and renames, as editors do.
    fn replace(&self, name: &str, content: &str) {
        let aside = self.path(&format!("{name}.new"));
        fs::write(&aside, content).unwrap();
        fs::rename(aside, self.path(name)).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        symlink(target, self.path(name)).unwrap();
    }

    /// Puts a version in place as the kubelet does.
    fn mount(&self, version: &str, content: &str) {
        fs::create_dir(self.path(version)).unwrap();
        self.write(&format!("{version}/key"), content);
        self.link(version, "..data_tmp");
        let before = fs::read_link(self.path("..data"));
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        if let Ok(before) = before {
            fs::remove_dir_all(self.folder.path().join(before)).unwrap();
        }
    }

    fn count(&mut self) -> u64 {
        *self.changes.borrow_and_update()
    }

    fn count_above(&mut self, before: u64) {
        self.runtime.block_on(async {
            timeout(PATIENCE, self.changes.wait_for(|count| *count > before)).await.unwrap().unwrap();
        });
    }

    /// Waits like somebody who compares: until the file that was told of holds this.
    fn wait_for(&mut self, name: &str, content: Option<&str>) {
        let path = self.path(name);
        let told = async {
            loop {
                self.changes.changed().await.unwrap();
                if fs::read_to_string(&path).ok().as_deref() == content {
                    return;
                }
            }
        };
        self.runtime.block_on(async { timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{name} is noticed")) });
    }
}

/// Acts for longer than a burst is put off, so that it would have counted by the end. What happened before may count late,
/// but not each time.
fn goes_unnoticed(scene: &mut Scene, act: impl Fn(&Scene)) {
    let mut is_noticed = || {
        let (before, began) = (scene.count(), Instant::now());
        while began.elapsed() < Duration::from_secs(1) {
            act(scene);
        }
        scene.count() != before
    };
    assert!(!(0..5).all(|_| is_noticed()));
}

#[test]
fn a_file_that_is_written_in_place_is_noticed() {
    let mut scene = Scene::watching(["secret"]);
    scene.write("secret", "one");
    scene.wait_for("secret", Some("one"));
    scene.write("secret", "two");
    scene.wait_for("secret", Some("two"));
}

#[test]
fn a_file_that_another_is_renamed_over_is_noticed_each_time() {
    let mut scene = Scene::watching(["secret"]);
    for content in ["one", "two", "three"] {
        scene.replace("secret", content);
        scene.wait_for("secret", Some(content));
    }
}

#[test]
fn a_file_that_is_deleted_and_comes_again_is_noticed() {
    let mut scene = Scene::watching(["secret"]);
    scene.write("secret", "one");
    scene.wait_for("secret", Some("one"));
    fs::remove_file(scene.path("secret")).unwrap();
    scene.wait_for("secret", None);
    scene.write("secret", "two");
    scene.wait_for("secret", Some("two"));
}

#[test]
fn the_link_swaps_of_a_kubernetes_volume_are_noticed() {
    let mut scene = Scene::new();
    scene.mount("..2026_1", "one");
    scene.link("..data/key", "key");
    scene.watch(["key"]);
    for (version, content) in [("..2026_2", "two"), ("..2026_3", "three")] {
        scene.mount(version, content);
        scene.wait_for("key", Some(content));
    }
    scene.write("..2026_3/key", "in place");
    scene.wait_for("key", Some("in place"));
}

#[test]
fn the_watch_follows_a_link_to_another_folder() {
    let mut scene = Scene::new();
    for folder in ["a", "b", "links"] {
        fs::create_dir(scene.path(folder)).unwrap();
    }
    scene.write("a/secret", "a one");
    scene.write("b/secret", "b one");
    scene.link("../a", "links/way");
    scene.link("links/way/secret", "secret");
    scene.watch(["secret"]);
    scene.replace("a/secret", "a two");
    scene.wait_for("secret", Some("a two"));
    scene.link("../b", "links/new");
    fs::rename(scene.path("links/new"), scene.path("links/way")).unwrap();
    scene.wait_for("secret", Some("b one"));
    scene.replace("b/secret", "b two");
    scene.wait_for("secret", Some("b two"));
}

#[test]
fn a_folder_that_appears_later_is_watched() {
    let mut scene = Scene::watching(["not/yet/secret"]);
    fs::create_dir(scene.path("not")).unwrap();
    let before = scene.count();
    fs::create_dir(scene.path("not/yet")).unwrap();
    scene.write("not/yet/secret", "one");
    if scene.count() == before {
        scene.wait_for("not/yet/secret", Some("one"));
    }
    scene.write("not/yet/secret", "two");
    scene.wait_for("not/yet/secret", Some("two"));
}

#[test]
fn a_folder_that_is_replaced_by_another_of_its_name_is_watched() {
    let mut scene = Scene::new();
    for folder in ["conf", "conf.new"] {
        fs::create_dir(scene.path(folder)).unwrap();
    }
    scene.write("conf/secret", "one");
    scene.write("conf.new/secret", "two");
    scene.watch(["conf/secret"]);
    fs::rename(scene.path("conf"), scene.path("conf.old")).unwrap();
    fs::rename(scene.path("conf.new"), scene.path("conf")).unwrap();
    scene.wait_for("conf/secret", Some("two"));
    scene.write("conf/secret", "three");
    scene.wait_for("conf/secret", Some("three"));
    fs::remove_dir_all(scene.path("conf")).unwrap();
    scene.wait_for("conf/secret", None);
    fs::create_dir(scene.path("conf")).unwrap();
    scene.write("conf/secret", "four");
    scene.wait_for("conf/secret", Some("four"));
}

#[test]
fn each_of_many_files_in_one_folder_is_noticed() {
    let mut scene = Scene::new();
    let names: Vec<_> = (0..200).map(|number| format!("secret{number}")).collect();
    let before = scene.count();
    let files: Vec<_> = names.iter().map(|name| scene.path(name)).collect();
    scene.watcher.watch(files);
    scene.count_above(before);
    for name in names.iter().step_by(40) {
        scene.write(name, name);
        scene.wait_for(name, Some(name));
    }
}

#[test]
fn of_a_thousand_writes_few_count_and_the_last_is_not_lost() {
    let mut scene = Scene::watching(["secret"]);
    let before = scene.count();
    let began = Instant::now();
    for number in 1..=1000 {
        scene.write("secret", &number.to_string());
    }
    scene.wait_for("secret", Some("1000"));
    // One may follow for what the look-up itself missed.
    let counted = scene.count() - before;
    let most = 2 + u64::try_from(began.elapsed().as_millis() / 100).unwrap();
    assert!((1..=most).contains(&counted), "{counted}");
}

#[test]
fn reading_is_no_change_nor_is_a_file_that_nobody_named() {
    let mut scene = Scene::new();
    scene.write("secret", "one");
    scene.watch(["secret"]);
    goes_unnoticed(&mut scene, |scene| {
        assert_eq!(fs::read(scene.path("secret")).unwrap(), b"one");
        assert!(fs::read_dir(scene.folder.path()).unwrap().count() > 0);
        scene.write("other", "content");
    });
    scene.write("secret", "two");
    scene.wait_for("secret", Some("two"));
}

#[test]
fn files_that_are_not_named_any_more_are_not_watched() {
    let mut scene = Scene::new();
    for folder in ["a", "b"] {
        fs::create_dir(scene.path(folder)).unwrap();
    }
    scene.watch(["a/old", "b/old"]);
    scene.watch(["b/new"]);
    goes_unnoticed(&mut scene, |scene| {
        for name in ["a/old", "a/new", "b/old"] {
            scene.write(name, "one");
        }
    });
    scene.write("b/new", "two");
    scene.wait_for("b/new", Some("two"));
    scene.watch([]);
    goes_unnoticed(&mut scene, |scene| scene.write("b/new", "three"));
}

#[test]
fn paths_that_lead_nowhere_or_to_something_odd_do_no_harm() {
    let mut scene = Scene::new();
    scene.write("file", "");
    scene.link("circle", "circle");
    let odd = ["", "/", ".", "..", "/proc/self/fd/0", "/proc/1/environ", "/dev/null", "/no/such/folder", "/root/x/y"];
    let long = "x".repeat(5000);
    let here = ["circle/x", "file/x", &long].map(|name| scene.path(name));
    let before = scene.count();
    scene.watcher.watch(odd.map(PathBuf::from).into_iter().chain(here));
    scene.count_above(before);
    scene.watch(["secret"]);
    scene.write("secret", "one");
    scene.wait_for("secret", Some("one"));
}

#[test]
fn the_receiver_learns_that_the_watcher_was_dropped() {
    let scene = Scene::watching(["secret"]);
    let Scene { watcher, mut changes, runtime, .. } = scene;
    drop(watcher);
    assert!(runtime.block_on(async { timeout(PATIENCE, changes.changed()).await.unwrap() }).is_err());
}
