//! `countersign providers`.

use crate::provider;

use super::{print, wrap};

/// Prints the table that the configuration is read with.
pub(super) fn main() {
    let mut text = String::new();
    for registration in provider::ALL {
        text += &wrap(&format!("{}: ", registration.name), registration.summary);
        let width = registration.keys.iter().map(|key| key.name.len()).max().unwrap_or(0);
        for key in registration.keys {
            let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
            text += &wrap(&format!("  {:width$}  ", key.name), &format!("{}{default}", key.meaning));
        }
    }
    print(text);
}
