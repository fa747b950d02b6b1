//! A layer that is not the first of its set is as good a file system as one alone.

use splicefs_core::testkit::conformance;

use crate::common::{set, writable};

#[test]
fn a_later_layer_conforms_to_the_reference_model() {
    conformance(100, || {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let set = set();
        let below = writable(&set, first.path());
        (writable(&set, second.path()), (first, second, below))
    });
}
