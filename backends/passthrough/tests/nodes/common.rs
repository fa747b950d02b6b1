//! What the tests of the mirrored directory share.

use std::sync::Arc;

use splicefs_core::{Backend, Caller, Make, Name};
use splicefs_passthrough::{Node, Options, Passthrough};
use tempfile::TempDir;

/// A mirror of a new, empty directory.
pub(crate) fn mirror() -> (Passthrough, TempDir) {
    let source = tempfile::tempdir().unwrap();
    let options = Options {
        source: source.path().to_owned(),
        mount_point: None,
        noatime: false,
        block_devices_as_files: false,
        listen: false,
    };
    (Passthrough::new(&options).unwrap(), source)
}

/// `text` as a name.
pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Makes a directory.
pub(crate) fn mkdir(fs: &Passthrough, parent: &Arc<Node>, text: &str) -> Arc<Node> {
    fs.make(&Caller::DAEMON, parent, &name(text), Make::Directory(0o755)).unwrap().node
}
