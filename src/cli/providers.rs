//! `countersign providers`.

use std::fmt::Write;

use crate::provider;

use super::print;

/// Prints the table that the configuration is read with.
pub(super) fn main() {
    let mut text = String::new();
    for registration in provider::ALL {
        let _ = writeln!(text, "{}: {}", registration.name, registration.summary);
        let width = registration.keys.iter().map(|key| key.name.len()).max().unwrap_or(0);
        for key in registration.keys {
            let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
            let _ = writeln!(text, "  {:width$}  {}{default}", key.name, key.meaning);
        }
    }
    print(text);
}
