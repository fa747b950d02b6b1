//! The mirrored directory against the reference model.

use splicefs_core::testkit::conformance;

#[test]
fn conforms_to_the_reference_model() {
    conformance(300, crate::common::mirror);
}
