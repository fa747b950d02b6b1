//! What the person probably meant, when the first word is no command or stands in the wrong place.

use std::ffi::OsString;
use std::path::Path;

use crate::failure::{Failure, shell_word};
use crate::options::{BackendName, backends};

/// Those that are no backends.
const COMMANDS: [&str; 2] = ["stats", "unmount"];

/// The options of the command line with a value of their own.
const WITH_VALUE: [&str; 1] = ["-o"];

/// One line for arguments that clap refuses as a conflict between its commands and SRC and MNT, where it would print
/// several. `arguments` has the program's name first. `None` where the words are not the reason.
pub(super) fn explain(arguments: &[OsString]) -> Option<Failure> {
    let words = words(arguments.get(1..)?);
    let [first, rest @ ..] = words.as_slice() else { return None };
    (!rest.is_empty()).then(|| no_command(first, rest))
}

/// The arguments that are neither options nor their values.
fn words(arguments: &[OsString]) -> Vec<&OsString> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        at += 1;
        let text = argument.to_string_lossy();
        if text == "--" {
            words.extend(arguments.get(at..).unwrap_or_default());
            break;
        } else if WITH_VALUE.contains(&text.as_ref()) {
            at += 1;
        } else if !text.starts_with('-') {
            words.push(argument);
        }
    }
    words
}

/// `splicefs SRC MNT` without a backend: `splicefs umount /mnt` reads like that too.
pub(super) fn no_backend(source: &OsString, mount_point: &OsString) -> Failure {
    let word = source.to_string_lossy();
    if is_known(&word) || nearest(&word, &COMMANDS).is_some() {
        return no_command(source, &[mount_point]);
    }
    Failure::usage(format!("no backend was named: add `-o backend=NAME` with the name {}", backends()))
}

fn no_command(first: &OsString, rest: &[&OsString]) -> Failure {
    let word = first.to_string_lossy();
    let rest: Vec<_> = rest.iter().map(|word| shell_word(Path::new(word))).collect();
    let rest = rest.join(" ");
    if is_known(&word) {
        return Failure::usage(format!("options go behind the command: `splicefs {word} {rest} [OPTIONS]`"));
    }
    let backend_names = BackendName::ALL.map(BackendName::name);
    // Two words behind it can only be a source and a mount point, so a backend was meant.
    let candidates: &[&'static str] = if rest.contains(' ') { &backend_names } else { &COMMANDS };
    let hint = match (nearest(&word, candidates), word.as_ref()) {
        (Some(near), _) => format!(": `splicefs {near} {rest}`?"),
        (None, "mount") => format!(": `splicefs {} {rest}`?", BackendName::Passthrough.name()),
        (None, _) => String::new(),
    };
    Failure::usage(format!(
        "`{word}` is no command; the backends are {}, the other commands `{}`{hint}",
        backends(),
        COMMANDS.join("`, `")
    ))
}

fn is_known(word: &str) -> bool {
    COMMANDS.contains(&word) || BackendName::ALL.iter().any(|backend| backend.name() == word)
}

/// The one of `known` that differs from `word` in few letters. `mount` is near to its opposite only.
fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let far = |known: &str| strsim::damerau_levenshtein(known, word);
    let near = known.iter().copied().min_by_key(|known| far(known))?;
    (word != "mount" && far(near) <= (near.len() / 3).max(2)).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_one_line_with_the_command_to_type() {
        let cases: &[(&[&str], &str)] = &[
            (&["passthru", "src", "mnt"], "`passthru` is no command"),
            (&["passthru", "src", "mnt"], "`splicefs passthrough src mnt`?"),
            (&["overlay", "src", "mnt", "-f"], "the backends are `passthrough`"),
            (&["mount", "a b", "mnt"], "`splicefs passthrough 'a b' mnt`?"),
            (
                &["-f", "passthrough", "src", "mnt"],
                "options go behind the command: `splicefs passthrough src",
            ),
            (&["-o", "ro", "passthrough", "--", "src", "mnt"], "`splicefs passthrough src mnt [OPTIONS]`"),
        ];
        for (arguments, expected) in cases {
            let all: Vec<_> = ["splicefs"].iter().chain(*arguments).map(OsString::from).collect();
            let line = explain(&all).expect("explained").to_string();
            assert!(line.contains(expected), "{arguments:?}: {line}");
        }
        assert!(explain(&["splicefs".into(), "-x".into()]).is_none());
    }

    #[test]
    fn two_words_may_be_a_misspelt_command() {
        let line = |a: &str, b: &str| no_backend(&a.into(), &b.into()).to_string();
        assert!(line("umount", "/m").contains("`splicefs unmount /m`?"));
        assert!(line("stats", "/m").contains("options go behind the command"));
        for source in ["mount", "/src", "passthru"] {
            assert!(line(source, "/m").contains("no backend was named"), "{source}");
        }
    }
}
