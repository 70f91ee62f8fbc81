//! What was printed and answered, and the search through it.

use std::collections::HashSet;
use std::fmt::Write as _;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use crate::daemon::Ended;
use crate::routes::mark;

/// Everything that was printed and answered, each with where.
#[derive(Default)]
pub(crate) struct Evidence(pub(crate) Vec<(String, String)>);

impl Evidence {
    pub(crate) fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    pub(crate) fn add_ended(&mut self, place: &str, ended: &Ended) {
        self.add(format!("{place}, its data"), &*ended.out);
        self.add(format!("{place}, its messages"), &*ended.err);
    }

    /// Panics where one of the words shows, and tells where.
    pub(crate) fn holds_none_of(&self, words: &[String], forms: fn(&str) -> Vec<String>) {
        let words: Vec<_> = words.iter().map(|word| (word.clone(), forms(word))).collect();
        let mut seen = HashSet::new();
        for (place, text) in &self.0 {
            // Pages repeat themselves.
            for line in text.lines().filter(|line| seen.insert(*line)) {
                let found = find(line, &words);
                assert!(found.is_empty(), "{found:?} in {place}: {line}");
            }
        }
    }
}

pub(crate) fn find<'a>(text: &str, words: &'a [(String, Vec<String>)]) -> Vec<&'a str> {
    let mut texts = vec![text.to_lowercase()];
    while texts.len() < 3 && texts.last().is_some_and(|text| text.contains('%')) {
        texts.extend(texts.last().map(|text| percent_decode_str(text).decode_utf8_lossy().to_lowercase()));
    }
    let shows = |forms: &[String]| forms.iter().any(|form| texts.iter().any(|text| text.contains(form.as_str())));
    words.iter().filter(|(_, forms)| shows(forms)).map(|(word, _)| word.as_str()).collect()
}

/// How a word may show: as it is, in hexadecimal, as a list of octets, and in base64 wherever in a longer text it begins. In
/// small letters, for some that print it change the case.
pub(crate) fn forms(word: &str) -> Vec<String> {
    let numbers: Vec<_> = word.bytes().map(|octet| octet.to_string()).collect();
    let mut forms = vec![word.to_owned(), hex::encode(word), numbers.join(", ")];
    for before in 0..3 {
        let encoded = BASE64_STANDARD.encode([&b"???"[..before], word.as_bytes()].concat());
        // The characters that its neighbours have no part in.
        let inner = encoded.get((before * 8).div_ceil(6)..(before + word.len()) * 8 / 6).unwrap();
        forms.extend([inner.to_owned(), inner.replace('+', "-").replace('/', "_")]);
    }
    forms.into_iter().map(|form| form.to_lowercase()).collect()
}

/// What is encoded already.
pub(crate) fn as_it_is(word: &str) -> Vec<String> {
    vec![word.to_lowercase()]
}

#[test]
fn a_word_is_found_in_every_form() {
    let word = mark("Lasting");
    let words = [(word.clone(), forms(&word))];
    let encoded: String = word.bytes().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "%{octet:02x}");
        text
    });
    for shown in [
        format!("a {word} b"),
        word.to_uppercase(),
        format!("{:?}", word.as_bytes()),
        hex::encode_upper(&word),
        encoded.replace('%', "%25"),
        encoded,
        BASE64_STANDARD.encode(format!("user:{word}")),
        BASE64_STANDARD.encode(format!("user1:{word}:")),
        BASE64_STANDARD.encode(format!("user23:{word}")),
    ] {
        assert_eq!(find(&shown, &words), [word.as_str()], "{shown}");
    }
    assert!(find("PlantedLastin and others", &words).is_empty());
}
