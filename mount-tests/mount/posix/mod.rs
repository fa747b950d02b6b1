//! What POSIX and Linux say about files, as scripts that run in a plain directory and on a mount. Results, error
//! numbers and the trees left behind must be the same: the source file system is the reference, not our reading of a
//! manual page.

mod access;
mod attributes;
pub(crate) mod creation;
mod data;
mod flags;
mod locks;
mod names;
mod open;
mod readdir;
mod rename;
pub(crate) mod script;
mod setid;
mod snapshot;
mod unlinked;
mod xattr;

use crate::harness::{Identity, Mount, Need, as_caller, ready};
use script::Script;
use snapshot::snapshot;

/// Options under which the mount treats every caller as the source would.
const OPTIONS: &str = "allow_other,suid,dev";

/// Runs `case` natively and on a mount and compares everything that can be told apart.
pub(crate) fn differential(case: fn(&mut Script)) {
    differential_with("", case);
}

/// As [`differential`], with further mount options.
pub(crate) fn differential_with(options: &str, case: fn(&mut Script)) {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = Mount::builder().options(OPTIONS).options(options).start();
    let native_root = mount.plain().join("tree");
    let mounted_root = mount.point().join("tree");
    let run = |root: &std::path::Path| as_caller(&Identity::root(), || Script::run(root, case));
    let native = run(&native_root);
    let mounted = run(&mounted_root);
    script::compare("native", &native, "mounted", &mounted);

    let seen_natively = snapshot(&native_root);
    let seen_mounted = snapshot(&mounted_root);
    let seen_in_source = snapshot(&mount.source().join("tree"));
    let portable = |tree: &snapshot::Tree| tree.portable_lines();
    script::compare("native tree", &portable(&seen_natively), "mounted tree", &portable(&seen_mounted));
    // The mount and its source are the same files, so that times and inode numbers agree too.
    script::compare("source", &seen_in_source.exact_lines(), "mount", &seen_mounted.exact_lines());
}
