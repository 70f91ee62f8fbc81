//! What README.md promises.

use std::path::Path;

use countersign::config;
use countersign::provider;
use countersign::settings::BareSecrets;

const README: &str = include_str!("../README.md");

#[test]
fn the_first_screen_has_the_two_commands() {
    let first_screen: Vec<_> = README.lines().take(40).collect();
    for command in ["$ cargo run --release -- demo", "$ cargo test"] {
        assert!(first_screen.contains(&command), "{command}");
    }
}

#[test]
fn every_configuration_loads() {
    let blocks = blocks("toml");
    assert!(blocks.len() >= 5, "{blocks:?}");
    for block in &blocks {
        let config = config::parse(block, Path::new("README.md"), BareSecrets::Accept);
        let config = config.unwrap_or_else(|invalid| panic!("{invalid}\n{block}"));
        assert!(!config.routes.is_empty(), "{block}");
    }
    for registration in provider::ALL {
        let is_shown = blocks.iter().any(|block| block.contains(&format!(".{}]\n", registration.name)));
        assert!(is_shown, "no example of {}", registration.name);
    }
}

/// The contents of every fenced block in a language.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = README.lines();
    while let Some(fence) = lines.find_map(|line| line.strip_prefix("```")) {
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if fence == language {
            blocks.push(block.join("\n") + "\n");
        }
    }
    blocks
}
