//! What README.md promises: its configurations load, and its command lines do what they are there for when they are typed.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/script.rs"]
mod script;
mod world;

use std::path::Path;

use countersign::config;
use countersign::provider;
use countersign::settings::BareSecrets;

use world::World;

const README: &str = include_str!("../../README.md");
const COMPOSE: &str = include_str!("../../config/compose.yaml");

#[test]
fn the_first_screen_has_the_two_commands() {
    let first_screen: Vec<_> = README.lines().take(40).collect();
    for command in ["$ cargo run --release -- demo", "$ cargo test"] {
        assert!(first_screen.contains(&command), "{command}");
    }
}

#[test]
fn every_configuration_loads() {
    let blocks: Vec<_> = blocks().into_iter().filter(|block| block.language == "toml").collect();
    assert!(blocks.len() >= 5, "{blocks:?}");
    for Block { text, .. } in &blocks {
        let config = config::parse(text, Path::new("README.md"), BareSecrets::Accept);
        let config = config.unwrap_or_else(|invalid| panic!("{invalid}\n{text}"));
        assert!(!config.routes.is_empty(), "{text}");
    }
    for registration in provider::ALL {
        let is_shown = blocks.iter().any(|block| block.text.contains(&format!(".{}]\n", registration.name)));
        assert!(is_shown, "no example of {}", registration.name);
    }
}

#[test]
fn the_request_at_the_top_arrives_as_is_shown() {
    let heads: Vec<_> = blocks().into_iter().filter(|block| block.language == "http").collect();
    let [sent, arrives] = [&heads[0].text, &heads[1].text];
    let configuration = &blocks().into_iter().find(|block| block.language == "toml").unwrap().text;
    let date = arrives.lines().find_map(|line| line.strip_prefix("x-bce-date: ")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bce.sk"), "SKEXAMPLE").unwrap();
    let file = daemon::write_configuration(folder.path(), configuration);
    let words = [
        "sign",
        "-c",
        file.to_str().unwrap(),
        "--at",
        date,
        "-H",
        "Accept: */*",
        "http://cert.localhost/v1/certificate",
    ];
    let signed = daemon::run(folder.path(), &words, |command| {
        command.env("BCE_AK", "AKEXAMPLE");
    });
    let lines = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let whole = format!("GET /v1/certificate HTTP/1.1\nAccept: */*\n{}", signed.out);
    assert_eq!((signed.code, lines(&whole)), (Some(0), lines(arrives)), "{}", signed.err);
    assert_eq!(sent.lines().next(), arrives.lines().next());
}

/// Every command line runs against a daemon with the configuration that stands before it, in a world where each server that
/// is named is there.
#[test]
fn every_command_line_does_what_it_says() {
    let world = World::new(README);
    let mut count = 0;
    let mut current: Option<world::Place> = None;
    for Block { language, text } in blocks() {
        match language {
            "toml" => current = world.enter(&text),
            "console" => {
                for line in lines(&text) {
                    // Those are what whoever runs this test has just done, or .ci/run does: docker's in tests/interop/run.
                    if ["cargo ", "countersign run ", "docker "].iter().any(|start| line.starts_with(start)) {
                        continue;
                    }
                    // A machine with systemd is needed for these: tests/interop/peer_systemd.py has one.
                    if line.starts_with("sudo ") {
                        installed(&line);
                        continue;
                    }
                    current.as_ref().unwrap_or_else(|| panic!("no configuration before {line}")).run(&line);
                    count += 1;
                }
            }
            "table" => {
                for line in text.split('`').filter(|span| span.contains("curl ")) {
                    current.as_ref().unwrap().run(line);
                    count += 1;
                }
            }
            "http" => {}
            "ini" => {
                // As a setting or, where it is another for everybody, as a comment.
                let units = include_str!("../../systemd/countersign.service");
                for line in text.lines() {
                    assert!(units.lines().any(|unit| unit.trim_start_matches('#') == line), "{line}");
                }
            }
            // That one is run by tests/interop/run.
            "yaml" => assert!(COMPOSE.contains(&text), "not in config/compose.yaml: {text}"),
            _ => panic!("nothing runs what is written in {language:?}: {text}"),
        }
    }
    assert!(count > 20, "{count}");
}

/// What is installed must be there.
fn installed(line: &str) {
    for file in line.split(' ').filter(|word| word.starts_with("systemd/")) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).is_file(), "{line}");
    }
}

/// The command lines of a block, those that go on after a backslash in one piece.
fn lines(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", "");
    joined.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect()
}

/// A fenced block, or the table of the front doors.
#[derive(Debug)]
struct Block {
    language: &'static str,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = README.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { language, text: block.join("\n") + "\n" });
        } else if line == "| door | needs | try it |" {
            let mut text = String::new();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                text += row;
            }
            blocks.push(Block { language: "table", text });
        }
    }
    blocks
}
