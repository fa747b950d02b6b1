//! What the person probably meant, when the first word is no command or stands in the wrong place.

use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;

use super::args::{FUSE_OVERLAYFS, is_fuse_overlayfs};
use crate::failure::{Failure, shell_word};
use crate::options::{BackendName, backends};

/// Those that are no backends.
const COMMANDS: [&str; 3] = ["stats", "unmount", "resize"];

/// The words behind a command.
fn usage(command: &str) -> &'static str {
    match command {
        "passthrough" => "SRC MNT",
        "overlay" => "MNT -o lowerdir=DIR",
        "resize" => "MNT size=SIZE",
        _ => "MNT",
    }
}

/// The options of the command line with a value of their own.
const WITH_VALUE: [&str; 1] = ["-o"];

/// One line for arguments that clap refuses, where it would print several. `arguments` has the program's name first.
/// `None` where the words are not the reason.
pub(super) fn explain(error: &clap::Error, arguments: &[OsString]) -> Option<Failure> {
    if is_fuse_overlayfs(arguments) {
        return explain_fuse_overlayfs(error);
    }
    explain_kind(error.kind(), arguments)
}

/// Whoever calls the program by that name shows one line, and knows nothing of our commands.
fn explain_fuse_overlayfs(error: &clap::Error) -> Option<Failure> {
    let text = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return None,
        _ => error.to_string(),
    };
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").trim_end_matches(':');
    Some(Failure::usage(format!(
        "{first}: `{FUSE_OVERLAYFS} -o lowerdir=DIR:DIR,upperdir=DIR,workdir=DIR MNT`"
    )))
}

fn explain_kind(kind: ErrorKind, arguments: &[OsString]) -> Option<Failure> {
    let words = words(arguments.get(1..)?);
    let [first, rest @ ..] = words.as_slice() else { return None };
    let command = first.to_string_lossy();
    match (kind, rest) {
        (ErrorKind::ArgumentConflict, [_, ..]) => Some(no_command(first, rest)),
        (ErrorKind::MissingRequiredArgument, _) if is_known(&command) => {
            Some(Failure::usage(format!("something is missing: `splicefs {command} {}`", usage(&command))))
        }
        (ErrorKind::UnknownArgument, [_, .., point]) if command == BackendName::Overlay.name() => {
            Some(Failure::usage(format!(
                "overlay takes a mount point alone, and its layers as options: `splicefs overlay {} -o lowerdir=DIR`?",
                shell_word(Path::new(point))
            )))
        }
        (ErrorKind::UnknownArgument, [_, .., point]) if command == BackendName::Tmpfs.name() => {
            Some(Failure::usage(format!(
                "tmpfs mirrors nothing and takes a mount point alone: `splicefs tmpfs {}`?",
                shell_word(Path::new(point))
            )))
        }
        _ => None,
    }
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
    if is_known(&word) || nearest(&word, candidates(1)).is_some() {
        return no_command(source, &[mount_point]);
    }
    Failure::usage(format!("no backend was named: add `-o backend=NAME` with the name {}", backends()))
}

/// The commands that so many words can stand behind; what begins with a dash, and its value, is not counted.
fn candidates(words: usize) -> &'static [&'static str] {
    if words > 1 { &["passthrough", "resize"] } else { &["tmpfs", "overlay", "stats", "unmount", "resize"] }
}

fn no_command(first: &OsString, rest: &[&OsString]) -> Failure {
    let word = first.to_string_lossy();
    let candidates = candidates(rest.len());
    let rest: Vec<_> = rest.iter().map(|word| shell_word(Path::new(word))).collect();
    let rest = rest.join(" ");
    if is_known(&word) {
        return Failure::usage(format!("options go behind the command: `splicefs {word} {rest} [OPTIONS]`"));
    }
    let hint = match (nearest(&word, candidates), word.as_ref()) {
        (Some(near), _) => format!(": `splicefs {near} {rest}`?"),
        (None, "mount") => format!(": `splicefs {} {rest}`?", BackendName::Passthrough.name()),
        (None, _) => String::new(),
    };
    Failure::usage(format!(
        "`{word}` is no command; the backends are `{}`, the other commands `{}`{hint}",
        BackendName::ALL.map(BackendName::name).join("`, `"),
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
            (&["overlays", "src", "mnt", "-f"], "the backends are `passthrough`"),
            (&["overlai", "mnt"], "`splicefs overlay mnt`?"),
            (&["passthru", "src", "mnt"], "the backends are `passthrough`, `tmpfs`, `overlay`, the other"),
            (&["resise", "mnt", "size=1g"], "`splicefs resize mnt size=1g`?"),
            (&["mount", "a b", "mnt"], "`splicefs passthrough 'a b' mnt`?"),
            (
                &["-f", "passthrough", "src", "mnt"],
                "options go behind the command: `splicefs passthrough src",
            ),
            (&["-o", "ro", "passthrough", "--", "src", "mnt"], "`splicefs passthrough src mnt [OPTIONS]`"),
        ];
        for (arguments, expected) in cases {
            let all: Vec<_> = ["splicefs"].iter().chain(*arguments).map(OsString::from).collect();
            let line = explain_kind(ErrorKind::ArgumentConflict, &all).expect("explained").to_string();
            assert!(line.contains(expected), "{arguments:?}: {line}");
        }
        assert!(explain_kind(ErrorKind::ArgumentConflict, &["splicefs".into(), "-x".into()]).is_none());
    }

    #[test]
    fn too_few_and_too_many_words_are_one_line() {
        let line = |kind, words: &str| {
            let all: Vec<_> = ["splicefs"].into_iter().chain(words.split(' ')).map(OsString::from).collect();
            explain_kind(kind, &all).map(|failure| failure.to_string())
        };
        let missing = |words: &str| line(ErrorKind::MissingRequiredArgument, words).expect("explained");
        assert!(missing("tmpfs -o size=1g").contains("`splicefs tmpfs MNT`"));
        assert!(missing("passthrough /s").contains("`splicefs passthrough SRC MNT`"));
        assert!(missing("resize").contains("`splicefs resize MNT size=SIZE`"));
        let extra = line(ErrorKind::UnknownArgument, "tmpfs /s /m -o ro").expect("explained");
        assert!(extra.contains("`splicefs tmpfs /m`?"), "{extra}");
        let extra = line(ErrorKind::UnknownArgument, "overlay /s /m -o ro").expect("explained");
        assert!(extra.contains("`splicefs overlay /m -o lowerdir=DIR`?"), "{extra}");
        assert!(missing("overlay -o ro").contains("`splicefs overlay MNT -o lowerdir=DIR`"));
        assert_eq!(line(ErrorKind::UnknownArgument, "tmpfs /m --size"), None);
        assert_eq!(line(ErrorKind::UnknownArgument, "passthrough /a /b /c"), None);
    }

    #[test]
    fn under_the_name_of_fuse_overlayfs_each_mistake_is_one_line() {
        let line = |words: &[&str]| {
            let all: Vec<_> = ["/bin/fuse-overlayfs"].iter().chain(words).map(OsString::from).collect();
            let error = super::super::args::parse(&all).expect_err("a mistake");
            explain(&error, &all).map(|failure| failure.to_string())
        };
        for words in [&["-o", "lowerdir=/a"][..], &["a", "b", "c"], &["--frobnicate", "m"], &["-o"]] {
            let said = line(words).expect("explained");
            assert!(said.contains("workdir=DIR MNT`") && !said.contains("error:"), "{said}");
        }
        assert_eq!(line(&["--version"]), None);
        assert_eq!(line(&["--help"]), None);
    }

    #[test]
    fn two_words_may_be_a_misspelt_command() {
        let line = |a: &str, b: &str| no_backend(&a.into(), &b.into()).to_string();
        assert!(line("umount", "/m").contains("`splicefs unmount /m`?"));
        assert!(line("stats", "/m").contains("options go behind the command"));
        assert!(line("tmpf", "/m").contains("`splicefs tmpfs /m`?"));
        assert!(line("resise", "/m").contains("`splicefs resize /m`?"));
        for source in ["mount", "/src", "passthru"] {
            assert!(line(source, "/m").contains("no backend was named"), "{source}");
        }
    }
}
