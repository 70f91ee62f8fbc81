//! How the demonstration looks: labels on the left, what belongs to them beside, no line longer than the terminal is wide.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};
use textwrap::{Options, WordSplitter};

/// What introduces something.
const TITLE: Style = Style::new().bold();
/// What only says what stands beside it.
const LABEL: Style = Style::new().dimmed();
/// What was not there before, and what went well.
const GOOD: Style = AnsiColor::Green.on_default();
/// What did not go well, or was refused.
const BAD: Style = AnsiColor::Red.on_default();

/// What a line says, and how that is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// As it is.
    Plain(String),
    /// Added by countersign.
    Added(String),
    /// Found good.
    Good(String),
    /// Refused.
    Bad(String),
}

impl Line {
    fn parts(&self) -> (&str, char, Style) {
        match self {
            Self::Plain(text) => (text, ' ', Style::new()),
            Self::Added(text) => (text, '+', GOOD),
            Self::Good(text) => (text, ' ', GOOD),
            Self::Bad(text) => (text, ' ', BAD),
        }
    }
}

/// Text that grows.
#[derive(Debug)]
pub(super) struct Page {
    width: usize,
    text: String,
}

impl Page {
    /// One of this many columns.
    pub(super) fn new(width: usize) -> Self {
        Self { width: width.max(NARROWEST), text: String::new() }
    }

    /// What is on it, with escape codes.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// True if a table of words does not fit.
    pub(super) fn is_narrow(&self) -> bool {
        self.width < NARROW
    }

    /// Leaves a line empty.
    pub(super) fn pause(&mut self) {
        self.text.push('\n');
    }

    /// A line that introduces: what is said first stands out.
    pub(super) fn title(&mut self, first: &str, rest: &str) {
        for (number, line) in wrap(&format!("{first}{rest}"), self.width).into_iter().enumerate() {
            let (bold, rest) = match line.strip_prefix(first) {
                Some(rest) if number == 0 => (first, rest),
                _ => ("", line.as_ref()),
            };
            let _ = writeln!(self.text, "{TITLE}{bold}{TITLE:#}{rest}");
        }
    }

    /// A paragraph.
    pub(super) fn say(&mut self, text: &str) {
        for line in wrap(text, self.width) {
            let _ = writeln!(self.text, "{line}");
        }
    }

    /// Lines beside a label.
    pub(super) fn tell(&mut self, label: &str, lines: impl IntoIterator<Item = Line>) {
        let mut label = Some(label);
        for line in lines {
            let (text, mut mark, style) = line.parts();
            for piece in wrap(text, self.width - INDENT - 2) {
                let label = label.take().unwrap_or_default();
                let _ = writeln!(self.text, "   {LABEL}{label:LABELS$}{LABEL:#} {style}{mark} {piece}{style:#}");
                mark = ' ';
            }
        }
    }

    /// A command under what it is for. It can be pasted even where it does not fit: it is continued then.
    pub(super) fn command(&mut self, what: &str, command: &str) {
        let _ = writeln!(self.text, "  {LABEL}{what}{LABEL:#}");
        let fits = command.chars().count() + 4 <= self.width;
        match command.rsplit_once(' ').filter(|_| !fits) {
            Some((first, last)) => {
                let _ = writeln!(self.text, "    {first} \\\n      {last}");
            }
            None => {
                let _ = writeln!(self.text, "    {command}");
            }
        }
    }

    /// Rows under a heading, and whether each is as it should be.
    pub(super) fn table(&mut self, heading: [&str; 3], rows: &[([String; 3], bool)]) {
        let [mut first, mut second, mut third] = heading.map(str::len);
        for ([one, two, three], _) in rows {
            (first, second, third) = (first.max(one.len()), second.max(two.len()), third.max(three.len()));
        }
        let [one, two, three] = heading;
        let _ = writeln!(self.text, "   {LABEL}{one:first$}  {two:second$}  {three}{LABEL:#}");
        for ([one, two, three], is_good) in rows {
            let (style, verdict) = if *is_good { (GOOD, "ok") } else { (BAD, "WRONG") };
            let row = format!("{one:first$}  {two:second$}  {three:third$}");
            let _ = writeln!(self.text, "   {row}  {style}{verdict}{style:#}");
        }
    }
}

/// How wide the terminal is, or would be.
pub(super) fn width() -> usize {
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten();
    let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    columns.map_or(USUAL, |columns| columns.min(WIDEST))
}

/// Lines of no more characters than these, broken at spaces, and within words that fit on no line; all but the first are
/// indented.
fn wrap(text: &str, width: usize) -> Vec<Cow<'_, str>> {
    // What has a hyphen in it is a name, most likely.
    let options = Options::new(width).subsequent_indent("  ").word_splitter(WordSplitter::NoHyphenation);
    textwrap::wrap(text, options)
}

/// Columns for labels.
const LABELS: usize = 12;
/// Columns before what stands beside them.
const INDENT: usize = 3 + LABELS + 1;
/// Columns where no terminal says otherwise.
const USUAL: usize = 80;
/// Columns that are used of a wide terminal: longer lines are hard to read.
const WIDEST: usize = 100;
/// Columns that a table with words needs.
const NARROW: usize = 72;
/// Columns that are used even if there are fewer.
const NARROWEST: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_long_words_are_cut() {
        assert_eq!(wrap("one two three", 80), ["one two three"]);
        assert_eq!(wrap("one two three", 7), ["one two", "  three"]);
        assert_eq!(wrap("one-two three", 7), ["one-two", "  three"]);
        assert_eq!(wrap("", 5), [""]);
        for text in ["abcdefghij k", "a abcdefghij", "größer als das"] {
            let lines = wrap(text, 6);
            assert!(lines.iter().all(|line| line.chars().count() <= 6), "{lines:?}");
            assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
        }
    }

    #[test]
    fn no_page_is_wider_than_its_terminal() {
        let mut page = Page::new(40);
        let long = "a text that is too long for a terminal as narrow as that, with-a-very-long-word-that-must-be-cut";
        page.title("1 Title", long);
        page.say(long);
        page.tell("label", [Line::Plain(long.to_owned()), Line::Added(long.to_owned())]);
        page.command("a command", "curl --unix-socket /tmp/f/a.sock http://localhost/");
        let plain = anstream::adapter::strip_str(page.text()).to_string();
        assert!(plain.lines().all(|line| line.chars().count() <= 40), "{plain}");
        assert!(plain.contains("f/a.sock \\\n      http://localhost/\n"), "{plain}");
        assert_eq!(plain.matches("+ ").count(), 1, "{plain}");
    }
}
