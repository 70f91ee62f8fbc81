//! The configuration to start from.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use countersign::config;
use countersign::provider;
use countersign::settings::BareSecrets;

use crate::daemon::run;

fn starter() -> String {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), &["init"], |_| {});
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    ended.out
}

/// The routes that are commented out, in their order.
fn routes(text: &str) -> Vec<&str> {
    let heads = text.lines().filter_map(|line| line.strip_prefix("#[routes.")?.strip_suffix(']'));
    let mut names: Vec<_> = heads.filter_map(|head| head.split('.').next()).collect();
    names.dedup();
    names
}

/// Uncomments the lines of the routes that are chosen, as a person would.
fn uncomment(text: &str, chosen: impl Fn(&str) -> bool) -> String {
    let mut is_chosen = false;
    let lines = text.lines().map(|line| {
        if let Some(head) = line.strip_prefix("#[routes.") {
            is_chosen = chosen(head.split(['.', ']']).next().unwrap());
        }
        match line.strip_prefix('#') {
            Some(code) if is_chosen && !code.starts_with(' ') && !code.is_empty() => code.to_owned() + "\n",
            _ => line.to_owned() + "\n",
        }
    });
    lines.collect()
}

fn load(text: &str) -> config::Config {
    let config = config::parse(text, Path::new("/etc/countersign.toml"), BareSecrets::Refuse);
    config.unwrap_or_else(|invalid| panic!("{invalid}\n{text}"))
}

#[test]
fn what_is_printed_loads_without_a_route_and_warns_of_that() {
    let folder = tempfile::tempdir().unwrap();
    let config = load(&starter());
    assert!(config.routes.is_empty());
    std::fs::write(folder.path().join("countersign.toml"), starter()).unwrap();
    let ended = run(folder.path(), &["check", "-c", "countersign.toml"], |_| {});
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.err.contains("no routes") && ended.err.lines().count() == 1, "{ended:?}");
}

#[test]
fn every_route_loads_once_it_is_uncommented_alone_and_with_the_others() {
    let text = starter();
    let names = routes(&text);
    let mut providers = Vec::new();
    for name in &names {
        let config = load(&uncomment(&text, |route| route == *name));
        let [route] = config.routes.as_slice() else { panic!("{name}: {config:?}") };
        assert_eq!(route.name, *name);
        providers.push(route.registration.name);
    }
    for registration in provider::ALL {
        assert!(providers.contains(&registration.name), "{}", registration.name);
    }
    assert_eq!(load(&uncomment(&text, |_| true)).routes.len(), names.len());
}

#[test]
fn a_new_file_is_closed_to_others_and_one_that_exists_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ended = run(folder.path(), &["init", "new.toml"], |_| {});
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(std::fs::read_to_string(at("new.toml")).unwrap(), starter());
    assert_eq!(std::fs::metadata(at("new.toml")).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::write(at("mine.toml"), "mine").unwrap();
    symlink("nowhere", at("link.toml")).unwrap();
    for (file, said) in [("mine.toml", "exists"), ("link.toml", "exists"), ("no/folder.toml", "cannot write")] {
        let ended = run(folder.path(), &["init", file], |_| {});
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{ended:?}");
        assert!(ended.err.contains(file) && ended.err.contains(said), "{ended:?}");
    }
    assert_eq!(std::fs::read_to_string(at("mine.toml")).unwrap(), "mine");
    assert!(!at("nowhere").exists());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}
