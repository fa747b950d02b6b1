//! What nobody uses is not kept busy: the file system of an upper layer.

use std::fs;

use super::Layers;
use super::layers::Ground;
use crate::harness::{Identity, Need, as_caller, ready, shell, until};

/// Whether the file system of the layers could be made read-only; it is writable again then.
fn could_be_read_only(layers: &Layers) -> bool {
    let script =
        "mount -o remount,ro \"$1/fs\" 2>/dev/null && mount -o remount,rw \"$1/fs\" && echo yes || :";
    shell(script, layers.dir()).trim() == "yes"
}

/// Removes names of the lower layer, makes some of them again and removes those.
fn work(root: &std::path::Path) {
    for round in 0..2 {
        fs::remove_file(root.join("file")).expect("unlink");
        fs::remove_dir_all(root.join("dir")).expect("rm -r");
        fs::write(root.join("file"), format!("{round}")).expect("write");
        fs::create_dir(root.join("dir")).expect("mkdir");
        fs::write(root.join("dir/below"), b"new").expect("write");
    }
    fs::rename(root.join("other"), root.join("moved")).expect("rename");
    fs::write(root.join("other"), b"again").expect("write");
    fs::rename(root.join("moved"), root.join("other")).expect("rename");
}

fn layers() -> Layers {
    let layers = Layers::new(Ground::Ext4(64), 1);
    fs::create_dir(layers.lower().join("dir")).expect("mkdir");
    for name in ["file", "other", "dir/below"] {
        fs::write(layers.lower().join(name), b"lower").expect("write");
    }
    layers
}

#[test]
fn an_idle_overlay_lets_its_upper_file_system_be_made_read_only() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    let layers = layers();
    let mount = layers.mount();
    until("a fresh mount to keep nothing busy", || could_be_read_only(&layers));
    work(mount.point());
    until("the file system to be free", || could_be_read_only(&layers));
    assert_eq!(fs::read(mount.at("file")).expect("read"), b"1");
}

#[test]
fn a_users_idle_overlay_lets_its_upper_file_system_be_made_read_only() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let layers = layers().of_user();
    shell("chown -R --reference=\"$1/fs/upper\" \"$1/fs/l0\"", layers.dir());
    let mount = layers.mount();
    as_caller(&Identity::unprivileged(), || work(mount.point()));
    until("the file system to be free", || could_be_read_only(&layers));
    as_caller(&Identity::unprivileged(), || {
        assert_eq!(fs::read(mount.at("file")).expect("read"), b"1");
        fs::write(mount.at("file"), b"written again").expect("write");
    });
}
