//! The parts of the help that clap does not know: examples, and the mount options from their table.

use crate::options::{Group, help_rows};

/// What people do first.
pub(super) const EXAMPLES: &str = "\
Examples:
  splicefs passthrough ~/photos /tmp/photos       mirror a directory
  splicefs unmount /tmp/photos                    stop it
  splicefs passthrough / /mnt -o ro,allow_other   for every user, read-only
  splicefs passthrough SRC MNT -f -d              in the foreground, each step
  splicefs tmpfs /tmp/scratch -o size=1g          up to 1 GiB of files in memory
  splicefs resize /tmp/scratch size=2g            make room in it
  splicefs overlay MNT -o lowerdir=A:B,upperdir=U,workdir=W
                                                  A over B, changes go to U
  splicefs overlay MNT -o lowerdir=A,upper=tmpfs  A, changes are lost
  splicefs overlay MNT -o lowerdir=A:B            read-only
  splicefs -o lowerdir=A,upperdir=U,workdir=W MNT the form of a mount_program
                                                  (in podman's storage.conf)
  splicefs stats MNT --json                       how reads were answered
  splicefs SRC MNT -o backend=passthrough,noatime the form for mount(8), fstab
  splicefs tmpfs MNT -o backend=tmpfs,size=25%    the same, for memory
  splicefs x MNT -o backend=overlay,lowerdir=A:B  the same, for layers
";

/// The options' names take this many columns, as far as they fit.
const NAME_COLUMNS: usize = 24;
/// The width the text is wrapped at: the narrowest usual terminal.
const COLUMNS: usize = 80;

/// Every mount option, a line or two each.
pub(super) fn mount_options() -> String {
    let mut text = String::from("Mount options (-o); where two contradict each other, the last one wins:\n");
    for (name, help) in help_rows(Group::Common) {
        push_row(&mut text, &name, help);
    }
    for (backend, group) in
        [("passthrough", Group::Passthrough), ("tmpfs", Group::Tmpfs), ("overlay", Group::Overlay)]
    {
        text.push_str(&format!("\nMount options of {backend}:\n"));
        for (name, help) in help_rows(group) {
            push_row(&mut text, &name, help);
        }
    }
    text.push_str("\nAccepted because mount(8) and fstab hand them over; they do nothing here:\n");
    let names: Vec<_> = help_rows(Group::DoesNothing).into_iter().map(|(name, _)| name).collect();
    push_wrapped(&mut text, &names.join(", "), 2, 2);
    text
}

fn push_row(text: &mut String, name: &str, help: &str) {
    text.push_str(&format!("  {name:<NAME_COLUMNS$} "));
    let used = 3 + name.len().max(NAME_COLUMNS);
    push_wrapped(text, help, 3 + NAME_COLUMNS, used);
}

/// Appends `words` and a newline; lines after the first are indented by `indent`, the first one has `used` columns.
fn push_wrapped(text: &mut String, words: &str, indent: usize, used: usize) {
    if text.ends_with('\n') {
        text.push_str(&" ".repeat(indent));
    }
    let mut column = used;
    for (at, word) in words.split(' ').enumerate() {
        if at > 0 && column + 1 + word.len() > COLUMNS {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if at > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal_and_none_is_lost() {
        let text = mount_options();
        for line in text.lines().chain(EXAMPLES.lines()) {
            assert!(line.len() <= COLUMNS, "{line}");
        }
        for group in [Group::Common, Group::Passthrough, Group::Tmpfs, Group::Overlay, Group::DoesNothing] {
            for (name, _) in help_rows(group) {
                assert!(text.contains(&name), "{name}");
            }
        }
    }
}
