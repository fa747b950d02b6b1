//! As many layers as the kernel takes.

use std::fs;

use super::layers::{Ground, Layers};
use crate::harness::{Need, ready};

const LAYERS: usize = 500;

#[test]
fn five_hundred_layers_under_a_limit_of_descriptors() {
    if !ready(&[Need::Root, Need::Fuse]) {
        return;
    }
    let layers = Layers::new(Ground::Directory, LAYERS).descriptor_limit(1024);
    for (index, lower) in layers.lowers.iter().enumerate() {
        fs::create_dir_all(lower.join("common/deep")).expect("mkdir");
        for name in [format!("own{index}"), format!("common/own{index}"), format!("common/deep/{index}")] {
            fs::write(lower.join(&name), &name).expect("write");
        }
        // The topmost one counts.
        fs::write(lower.join("common/same"), index.to_string()).expect("write");
    }
    let mount = layers.mount();
    let count = |name: &str| fs::read_dir(mount.at(name)).expect("readdir").count();
    assert_eq!([count(""), count("common"), count("common/deep")], [LAYERS + 1, LAYERS + 2, LAYERS]);
    for index in 0..LAYERS {
        for name in [format!("own{index}"), format!("common/own{index}"), format!("common/deep/{index}")] {
            assert_eq!(fs::read_to_string(mount.at(&name)).expect("read"), name);
        }
    }
    assert_eq!(fs::read_to_string(mount.at("common/same")).expect("read"), "0");
    // Changes in a directory that all of them have.
    fs::remove_file(mount.at("common/same")).expect("unlink");
    fs::write(mount.at("common/own7"), "changed").expect("write");
    fs::rename(mount.at("common/own8"), mount.at("common/renamed")).expect("rename");
    assert_eq!(count("common"), LAYERS + 1);
    fs::remove_dir_all(mount.at("common")).expect("rm -r");
    assert_eq!(count(""), LAYERS);
}
