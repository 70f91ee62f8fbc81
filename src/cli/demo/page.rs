//! How the demonstration looks: labels on the left, what belongs to them beside, no line longer than the terminal is wide.

use std::fmt::Write as _;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

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

    /// Leaves a line empty.
    pub(super) fn pause(&mut self) {
        self.text.push('\n');
    }

    /// A line that introduces: what is said first stands out.
    pub(super) fn title(&mut self, first: &str, rest: &str) {
        for (number, line) in wrap(&format!("{first}{rest}"), self.width).into_iter().enumerate() {
            let (bold, rest) = match line.strip_prefix(first) {
                Some(rest) if number == 0 => (first, rest),
                _ => ("", line.as_str()),
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

    /// Rows under a heading; the last cell of each is green if it is as it should be, else red.
    pub(super) fn table(&mut self, heading: [&str; 4], rows: &[([&str; 4], bool)]) {
        let all = || std::iter::once(heading).chain(rows.iter().map(|(row, _)| *row));
        let width = |column: fn(&[&str; 4]) -> usize| all().map(|row| column(&row)).max().unwrap_or_default();
        let [first, second, third] =
            [width(|[cell, ..]| cell.len()), width(|[_, cell, ..]| cell.len()), width(|[_, _, cell, _]| cell.len())];
        let mut row = |[one, two, three, four]: [&str; 4], rest: Style, last: Style| {
            let _ = writeln!(
                self.text,
                "   {rest}{one:first$}  {two:second$}  {three:third$}{rest:#}  {last}{four}{last:#}"
            );
        };
        row(heading, LABEL, LABEL);
        for (cells, is_good) in rows {
            row(*cells, Style::new(), if *is_good { GOOD } else { BAD });
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

/// Lines of no more characters than these, broken at spaces where there are some; all but the first are indented.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let used = line.chars().count();
            let is_fresh = line.trim_start().is_empty();
            let gap = usize::from(!is_fresh || (lines.is_empty() && used > 0));
            if used + gap + word.len() <= width {
                line.extend(std::iter::repeat_n(' ', gap));
                line.extend(word);
                break;
            }
            // What fits on no line at all is cut.
            if is_fresh {
                let rest = word.split_off(width - used);
                line.extend(word);
                word = rest;
            }
            lines.push(std::mem::replace(&mut line, CONTINUED.to_owned()));
        }
    }
    lines.push(line);
    lines
}

/// Columns for labels.
const LABELS: usize = 14;
/// Columns before what stands beside them.
const INDENT: usize = 3 + LABELS + 1;
/// What begins a line that continues another.
const CONTINUED: &str = "  ";
/// Columns where no terminal says otherwise.
const USUAL: usize = 80;
/// Columns that are used of a wide terminal: longer lines are hard to read.
const WIDEST: usize = 100;
/// Columns that are used even if there are fewer.
const NARROWEST: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_long_words_are_cut() {
        assert_eq!(wrap("one two three", 80), ["one two three"]);
        assert_eq!(wrap("one two three", 7), ["one two", "  three"]);
        assert_eq!(wrap("abcdefghij k", 6), ["abcdef", "  ghij", "  k"]);
        assert_eq!(wrap("a abcdefghij", 6), ["a", "  abcd", "  efgh", "  ij"]);
        assert_eq!(wrap("größer", 5), ["größe", "  r"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn no_page_is_wider_than_its_terminal() {
        let mut page = Page::new(40);
        let long = "a text that is too long for a terminal as narrow as that, with-a-very-long-word-that-must-be-cut";
        page.title("1 Title", long);
        page.say(long);
        page.tell("label", [Line::Plain(long.to_owned()), Line::Added(long.to_owned())]);
        page.command("a command", "curl --unix-socket /tmp/folder/a.sock http://localhost/");
        let plain = anstream::adapter::strip_str(page.text()).to_string();
        assert!(plain.lines().all(|line| line.chars().count() <= 40), "{plain}");
        assert!(plain.contains("folder/a.sock \\\n      http://localhost/\n"), "{plain}");
        assert_eq!(plain.matches("+ ").count(), 1, "{plain}");
    }
}
