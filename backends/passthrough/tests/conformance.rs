//! The mirrored directory against the reference model.

use splicefs_core::testkit::conformance;
use splicefs_passthrough::{Options, Passthrough};

fn mirror(source: &std::path::Path) -> Passthrough {
    let source = source.to_owned();
    let options = Options { source, mount_point: None, noatime: false, block_devices_as_files: false };
    Passthrough::new(&options).unwrap()
}

#[test]
fn conforms_to_the_reference_model() {
    conformance(300, || {
        let source = tempfile::tempdir().unwrap();
        (mirror(source.path()), source)
    });
}
