//! How the program says that it cannot go on: one line that tells the person what to do.

use std::fmt;
use std::path::Path;

/// Exit status of a command that could not do what it was asked to.
const STATUS_FAILED: u8 = 1;
/// Exit status of a command that was asked for something wrongly, as clap's own.
const STATUS_USAGE: u8 = 2;

/// Why a command failed, in one line, with its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// What was asked for cannot be done.
    pub fn new(message: impl AsRef<str>) -> Self {
        Self { message: one_line(message.as_ref()), status: STATUS_FAILED }
    }

    /// The command line or a mount option is wrong.
    pub fn usage(message: impl AsRef<str>) -> Self {
        Self { message: one_line(message.as_ref()), status: STATUS_USAGE }
    }

    /// The exit status, never 0.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// `text` with every control character escaped: a path may hold newlines and terminal sequences, a message is one
/// line and changes no terminal.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// `path` as a shell reads it back, and no command takes it for an option.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    // zsh expands a word that begins with an equals sign.
    if !text.is_empty() && !text.starts_with('=') && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_can_be_pasted_into_a_shell() {
        let cases = [
            ("/m", "/m"),
            ("size=1g", "size=1g"),
            ("=ls", "'=ls'"),
            ("/a b'c", r"'/a b'\''c'"),
            ("", "''"),
            ("-l", "./-l"),
            ("/$HOME", "'/$HOME'"),
        ];
        for (path, word) in cases {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_the_path_holds() {
        assert_eq!(Failure::new("no a\nb\x1b[31m").to_string(), "no a\\nb\\u{1b}[31m");
        assert_eq!(Failure::new("mount point /é is busy").to_string(), "mount point /é is busy");
    }

    #[test]
    fn no_failure_exits_with_zero() {
        assert_ne!(Failure::new("x").status(), 0);
        assert_ne!(Failure::usage("x").status(), 0);
    }
}
