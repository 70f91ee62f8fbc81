//! Reads a table of the configuration file key by key, noting every mistake with its place.
//!
//! Nothing here stops at the first mistake, and nothing here repeats a value: a rejected value may be a secret under a
//! misspelt key. A reader asks a [`Table`] for each key that it knows; [`Table::finish`] then reports those that nobody
//! asked for, with the nearest known one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A position in the configuration file, both counted from 1; the column in characters. The default, line 0, is the file
/// as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Something to tell the owner of the configuration file, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// Where.
    pub place: Place,
    /// What, and what to do about it; never a value of the file.
    pub message: String,
}

impl Remark {
    /// The remark as a line for people: `FILE:LINE:COLUMN: message`.
    #[must_use]
    pub fn of(&self, file: &Path) -> String {
        match self.place {
            Place { line: 0, .. } => format!("{}: {}", file.display(), self.message),
            place => format!("{}:{place}: {}", file.display(), self.message),
        }
    }
}

/// What to do with a secret that stands in the file itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareSecrets {
    /// Only the owner can read the file.
    Accept,
    /// The file's group can read it too.
    Warn,
    /// Everybody can read the file.
    Refuse,
}

/// The file being read, and what was found wrong in it so far.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
    bare_secrets: BareSecrets,
    nothing: DeTable<'a>,
    is_guess: Cell<bool>,
    errors: RefCell<Vec<Remark>>,
    warnings: RefCell<Vec<Remark>>,
    variables: RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    /// Reads `text`, resolving relative paths against `folder`.
    #[must_use]
    pub fn new(text: &'a str, folder: &'a Path, bare_secrets: BareSecrets) -> Self {
        let (errors, warnings, variables) = Default::default();
        let (nothing, is_guess) = (DeTable::new(), Cell::new(false));
        Self { text, folder, bare_secrets, nothing, is_guess, errors, warnings, variables }
    }

    /// Parses the text; syntax errors are noted, and what could be read all the same is returned.
    pub fn parse(&self) -> Spanned<DeTable<'a>> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let place = self.place(error.span().map_or(0, |span| span.start));
            // What follows on the same line follows from the first mistake.
            if self.errors.borrow().iter().all(|other| other.place.line != place.line) {
                // The message alone: the error's `Display` quotes the line, secrets included.
                self.error_at(place, error.message());
            }
            self.is_guess.set(self.is_guess.get() || error.message() != "duplicate key");
        }
        document
    }

    /// True if the parsed document is a guess after a syntax error: mistakes found in it would mislead. A key given twice
    /// leaves no doubt about the rest.
    #[must_use]
    pub fn is_guess(&self) -> bool {
        self.is_guess.get()
    }

    /// Notes an error at a byte offset.
    pub fn error(&self, offset: usize, message: impl Into<String>) {
        let remark = Remark { place: self.place(offset), message: message.into() };
        self.errors.borrow_mut().push(remark);
    }

    /// Notes an error at a place that is already known.
    pub fn error_at(&self, place: Place, message: impl Into<String>) {
        self.errors.borrow_mut().push(Remark { place, message: message.into() });
    }

    /// Notes a warning: legal, but something the owner should know.
    pub fn warning_at(&self, place: Place, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Remark { place, message: message.into() });
    }

    /// Notes that a secret is kept in this environment variable.
    pub fn secret_variable(&self, name: &str) {
        self.variables.borrow_mut().insert(name.to_owned());
    }

    /// The environment variables that secrets are kept in, as far as they have been read.
    #[must_use]
    pub fn secret_variables(&self) -> BTreeSet<String> {
        self.variables.borrow().clone()
    }

    /// True once an error was noted.
    pub fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// The errors and the warnings, each in the order of the file and without repetitions.
    #[must_use]
    pub fn into_remarks(self) -> (Vec<Remark>, Vec<Remark>) {
        let sorted = |remarks: RefCell<Vec<Remark>>| {
            let mut remarks = remarks.into_inner();
            remarks.sort();
            remarks.dedup();
            remarks
        };
        (sorted(self.errors), sorted(self.warnings))
    }

    /// What to do with secrets that stand in the file itself.
    pub fn bare_secrets(&self) -> BareSecrets {
        self.bare_secrets
    }

    /// The path as meant: relative ones belong to the file's folder, `~/` is the home folder.
    pub fn path(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
            (Some(rest), Some(home)) => Path::new(&home).join(rest),
            _ => self.folder.join(text),
        }
    }

    /// The place of a byte offset.
    pub fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or("");
        Place { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }
}

/// A table of the file, and which of its keys were asked for.
#[derive(Debug)]
pub struct Table<'a> {
    reader: &'a Reader<'a>,
    name: String,
    header: usize,
    entries: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// The table as the document's root.
    #[must_use]
    pub fn root(reader: &'a Reader<'a>, document: &'a Spanned<DeTable<'a>>) -> Self {
        Self { reader, name: String::new(), header: 0, entries: document.get_ref(), asked: RefCell::default() }
    }

    /// Where the table's header stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.reader.place(self.header)
    }

    /// Its name with those of the tables around it, as `routes.cert.bce`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that it belongs to.
    #[must_use]
    pub fn reader(&self) -> &'a Reader<'a> {
        self.reader
    }

    /// True if it has no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key that may be absent.
    pub fn get(&self, key: &'static str) -> Option<Value<'a>> {
        self.asked.borrow_mut().push(key);
        let (found, value) = self.entries.get_key_value(key)?;
        Some(self.value(key, found.span().start, value))
    }

    /// The value of a key that must be there; `what` completes "… is missing: ".
    pub fn require(&self, key: &'static str, what: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            self.error(format!("`{key}` is missing: {what}"));
        }
        value
    }

    /// What `read` makes of the value of a key; the default if the key is absent, or wrong, which is then noted.
    pub fn read<T>(&self, key: &'static str, default: T, read: impl FnOnce(&Value<'a>) -> Option<T>) -> T {
        self.get(key).and_then(|value| read(&value)).unwrap_or(default)
    }

    /// The table of a key: empty if the key is absent, or no table, which is then noted.
    #[must_use]
    pub fn section(&self, key: &'static str) -> Table<'a> {
        self.get(key).and_then(|value| value.table()).unwrap_or_else(|| Table {
            reader: self.reader,
            name: self.path(key),
            header: self.header,
            entries: &self.reader.nothing,
            asked: RefCell::default(),
        })
    }

    /// Every key that nobody asked for yet, in the order of the file: for tables whose keys are names of the user's.
    pub fn rest(&self) -> Vec<(&'a str, Value<'a>)> {
        let mut rest: Vec<_> = self
            .entries
            .iter()
            .filter(|(key, _)| !self.asked.borrow().contains(&key.get_ref().as_ref()))
            .map(|(key, value)| (key.get_ref().as_ref(), self.value(key.get_ref(), key.span().start, value)))
            .collect();
        rest.sort_by_key(|(_, value)| value.key);
        rest
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for (key, value) in self.rest() {
            let nearest = nearest(key, asked.iter().copied());
            let known = || {
                let mut known: Vec<_> = asked.iter().map(|key| format!("`{key}`")).collect();
                known.sort();
                known.dedup();
                known.join(", ")
            };
            let help = match nearest {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None if asked.is_empty() => "this table has no keys".to_owned(),
                None => format!("known keys are {}", known()),
            };
            // With a digit or a capital, and like nothing that is known, it is rather a secret to the left of its sign.
            let is_shown = is_name(key)
                && (nearest.is_some() || key.bytes().all(|b| !b.is_ascii_digit() && !b.is_ascii_uppercase()));
            let shown = if is_shown { format!("unknown key `{key}`") } else { "unknown key".to_owned() };
            let table = if self.name.is_empty() { String::new() } else { format!(" in `{}`", self.name) };
            self.reader.error(value.key, format!("{shown}{table}: {help}"));
        }
    }

    /// Notes an error at the table's header.
    pub fn error(&self, message: impl Into<String>) {
        let message = message.into();
        let message = if self.name.is_empty() { message } else { format!("[{}]: {message}", self.name) };
        self.reader.error(self.header, message);
    }

    fn value(&self, key: &str, offset: usize, value: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        Value { reader: self.reader, path: self.path(key), key: offset, found: value }
    }

    fn path(&self, key: &str) -> String {
        // A key that is not a bare word may be a value that slipped to the left of its equals sign.
        let shown = if is_name(key) { key } else { "…" };
        if self.name.is_empty() { shown.to_owned() } else { format!("{}.{shown}", self.name) }
    }
}

/// The value of a key.
#[derive(Clone, Debug)]
pub struct Value<'a> {
    reader: &'a Reader<'a>,
    path: String,
    key: usize,
    found: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    /// Where the value stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.reader.place(self.found.span().start)
    }

    /// Where its key stands.
    #[must_use]
    pub fn key_place(&self) -> Place {
        self.reader.place(self.key)
    }

    /// Its key with the tables around it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The file that it belongs to.
    #[must_use]
    pub fn reader(&self) -> &'a Reader<'a> {
        self.reader
    }

    /// Notes an error about the value, which is itself not shown.
    pub fn error(&self, message: impl fmt::Display) {
        self.reader.error(self.found.span().start, format!("`{}`: {message}", self.path));
    }

    /// Notes an error about the key, where it is the name that is wrong.
    pub fn error_at_key(&self, message: impl fmt::Display) {
        self.reader.error(self.key, format!("`{}`: {message}", self.path));
    }

    /// Notes a warning about the value.
    pub fn warning(&self, message: impl fmt::Display) {
        self.reader.warning_at(self.place(), format!("`{}`: {message}", self.path));
    }

    /// Takes note that `what`, a secret, stands here. That is right in a file that its owner alone can read, wants a
    /// warning if its group can too, and is an error otherwise; `instead` says where it could be.
    pub fn bare_secret(&self, what: &str, instead: &str) {
        match self.reader.bare_secrets {
            BareSecrets::Accept => {}
            BareSecrets::Warn => {
                self.warning(format!("{what} in a file that its group can read: chmod 600 the file, or {instead}"));
            }
            BareSecrets::Refuse => {
                self.error(format!("{what} in a file that others can read: chmod 600 the file, or {instead}"));
            }
        }
    }

    /// True for a string, so that a reader can tell the forms of a value apart.
    #[must_use]
    pub fn is_string(&self) -> bool {
        self.found.get_ref().is_str()
    }

    /// True for a list.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.found.get_ref().is_array()
    }

    /// A string.
    #[must_use]
    pub fn string(&self) -> Option<&'a str> {
        self.or_expect(self.found.get_ref().as_str(), "a string in quotes")
    }

    /// A string made into something by `parse`, whose error says what was expected (and never what was found).
    pub fn parse<T, E: fmt::Display>(&self, parse: impl FnOnce(&'a str) -> Result<T, E>) -> Option<T> {
        parse(self.string()?).map_err(|error| self.error(error)).ok()
    }

    /// `true` or `false`.
    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        self.or_expect(self.found.get_ref().as_bool(), "true or false")
    }

    /// A whole number from `least` to `most`.
    #[must_use]
    pub fn integer(&self, least: u32, most: u32) -> Option<u32> {
        let number = self.found.get_ref().as_integer();
        let number = number.and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        let number = number.filter(|number| (least..=most).contains(number));
        self.or_expect(number, &format!("a whole number from {least} to {most}"))
    }

    /// One of some words.
    #[must_use]
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.or_expect(found, &words.join(" or "))
    }

    /// A duration with its unit: `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"1d"`.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        let text = self.found.get_ref().as_str();
        self.or_expect(text.and_then(duration), "a duration such as \"250ms\", \"30s\", \"5m\", \"1h\"")
    }

    /// A duration, or `"off"` as `None`.
    #[must_use]
    pub fn duration_or_off(&self) -> Option<Option<Duration>> {
        match self.found.get_ref().as_str() {
            Some("off") => Some(None),
            text => {
                let expected = "a duration such as \"250ms\", \"30s\", \"5m\", \"1h\", or \"off\"";
                self.or_expect(text.and_then(duration), expected).map(Some)
            }
        }
    }

    /// A size in octets: `"64KiB"`, `"16MiB"`, `"1GiB"`, `"512B"`.
    #[must_use]
    pub fn size(&self) -> Option<usize> {
        let text = self.found.get_ref().as_str();
        self.or_expect(text.and_then(size), "a size such as \"512B\", \"64KiB\", \"16MiB\", \"1GiB\"")
    }

    /// How long to wait, or `"off"` as `None`; waiting for no time at all would always end in a timeout.
    #[must_use]
    pub fn timeout(&self) -> Option<Option<Duration>> {
        let duration = self.duration_or_off()?;
        let expected = "a duration of more than nothing, or \"off\"";
        self.or_expect((duration != Some(Duration::ZERO)).then_some(duration), expected)
    }

    /// The path of a file, as meant.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        let text = self.string()?;
        let is_path = !text.is_empty() && !text.contains('\0');
        self.or_expect(is_path.then(|| self.reader.path(text)), "the path of a file")
    }

    /// A list.
    #[must_use]
    pub fn list(&self) -> Option<Vec<Value<'a>>> {
        let list = self.or_expect(self.found.get_ref().as_array(), "a list in brackets")?;
        Some(list.iter().map(|value| Value { key: value.span().start, found: value, ..self.clone() }).collect())
    }

    /// A list, each entry of which is read by `read`; wrong entries are noted and left out.
    pub fn list_of<T>(&self, read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        Some(self.list()?.iter().filter_map(read).collect())
    }

    /// The same, of at least one entry.
    pub fn some_of<T>(&self, read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let is_empty = self.list()?.is_empty();
        self.or_expect((!is_empty).then_some(()), "at least one entry")?;
        self.list_of(read)
    }

    /// A table.
    #[must_use]
    pub fn table(&self) -> Option<Table<'a>> {
        self.table_as("a table")
    }

    /// A table that has a meaning of its own, in the words of `expected`.
    #[must_use]
    pub fn table_as(&self, expected: &str) -> Option<Table<'a>> {
        let entries = self.or_expect(self.found.get_ref().as_table(), expected)?;
        Some(Table {
            reader: self.reader,
            name: self.path.clone(),
            header: self.key,
            entries,
            asked: RefCell::default(),
        })
    }

    fn or_expect<T>(&self, value: Option<T>, expected: &str) -> Option<T> {
        if value.is_none() {
            self.error(format!("expected {expected}"));
        }
        value
    }
}

/// The known word that was probably meant.
#[must_use]
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let folded = word.to_ascii_lowercase().replace('-', "_");
    known
        .map(|known| (strsim::damerau_levenshtein(&folded, known), known))
        .filter(|(distance, known)| *distance <= known.len().max(3) / 3)
        .min()
        .map(|(_, known)| known)
}

fn is_name(key: &str) -> bool {
    (1..=40).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // A year is more than any wait here can mean, and keeps deadlines within what a clock can add.
    let total = number.checked_mul(milliseconds).filter(|total| *total <= 366 * 86_400_000)?;
    Some(Duration::from_millis(total))
}

fn size(text: &str) -> Option<usize> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(factor)?).ok()
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str, read: impl FnOnce(&Table<'_>)) -> Vec<String> {
        let reader = Reader::new(text, Path::new("/etc"), BareSecrets::Accept);
        let document = reader.parse();
        let root = Table::root(&reader, &document);
        read(&root);
        root.finish();
        reader.into_remarks().0.iter().map(|remark| format!("{}: {}", remark.place, remark.message)).collect()
    }

    #[test]
    fn unknown_key_names_the_nearest_known_one_and_no_value() {
        let found = errors("secret_ky = 'hunter2'\n", |table| {
            table.get("secret_key");
        });
        assert_eq!(found, ["1:1: unknown key `secret_ky`: did you mean `secret_key`?"]);
    }

    #[test]
    fn a_value_in_the_place_of_a_key_is_not_shown() {
        let found = errors("\"hunter2 is/secret\" = 1\n", |table| {
            table.get("level");
        });
        assert_eq!(found, ["1:1: unknown key: known keys are `level`"]);
        for secret in ["4cb2f0fabc9b4e9a9f7c2d1e", "hunter2", "QWxhZGRpbjpvcGVuIHNlc2FtZQ", "lEvEl1SeCrEt"] {
            let found = errors(&format!("{secret} = 1\n"), |table| {
                table.get("level");
            });
            assert_eq!(found, ["1:1: unknown key: known keys are `level`"]);
        }
    }

    #[test]
    fn wrong_types_point_at_the_value() {
        let found = errors("level = 30\nüwait = 1\n", |table| {
            table.get("level").and_then(|value| value.string());
        });
        assert_eq!(found.first().map(String::as_str), Some("1:9: `level`: expected a string in quotes"));
    }

    #[test]
    fn durations_and_sizes_want_a_unit() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(size("64KiB"), Some(65536));
        for wrong in ["", "30", "s", "-1s", "1.5s", "30 s", "99999999999999999999s", "9999999d", "30S"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
        for wrong in ["", "64", "64kb", "1KB", "-1KiB", "99999999999999GiB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}
