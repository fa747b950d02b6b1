//! `noacl`: ACLs in the layers do not count, and everything else about permissions does.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::layers::Layers;
use crate::harness::{
    ACCESS_ACL, ACL_GROUP_OBJ, ACL_OTHER, ACL_USER_OBJ, Identity, NO_ID, acl, as_caller, entry_at, shell,
};

/// A lower layer whose file `file` lets user 1001 in by an ACL, and whose directory `d` hands an ACL on that lets
/// everybody in; `None` where the test cannot run.
fn scene() -> Option<Layers> {
    let layers = Layers::for_acls()?;
    fs::write(layers.lower().join("file"), b"contents").expect("write");
    fs::set_permissions(layers.lower().join("file"), fs::Permissions::from_mode(0o600)).expect("chmod");
    shell(
        "cd \"$1\" && setfacl -m u:1001:rw file && setfacl -d -m u::rwx,g::rwx,o::rwx d && chmod 777 d",
        layers.lower(),
    );
    Some(layers)
}

fn made(directory: &Path, umask: u32) -> [u32; 3] {
    let mode = |name: &str| fs::metadata(directory.join(name)).expect("stat").mode() & 0o777;
    as_caller(&Identity::user(1002).with_umask(umask), || {
        fs::write(directory.join("file"), b"").expect("write");
        fs::create_dir(directory.join("directory")).expect("mkdir");
        shell("mkfifo \"$1/fifo\"", directory);
    });
    let modes = ["file", "directory", "fifo"].map(mode);
    shell("rm -r \"$1\"/*", directory);
    modes
}

#[test]
fn acls_of_the_layers_do_not_count() {
    let Some(layers) = scene() else { return };
    let stranger = Identity::user(1001);
    let reads = |path: &Path| as_caller(&stranger, || File::open(path).map(drop).map_err(|e| e.kind()));
    {
        let mount = layers.mount();
        assert_eq!(reads(&mount.at("file")), Ok(()), "the control: with ACLs it may");
        assert_eq!(made(&mount.at("d"), 0o077), [0o666, 0o777, 0o666], "the control: the ACL counts");
    }
    let mount = layers.mount_with("noacl");
    assert!(entry_at(mount.point()).expect("a mount").has("default_permissions"));
    let file = mount.at("file");
    // The group's bits are what the ACL's mask was; others have none.
    assert_eq!(reads(&file), Err(std::io::ErrorKind::PermissionDenied));
    let mut value = [0; 256];
    assert_eq!(rustix::fs::getxattr(&file, ACCESS_ACL, &mut value[..]), Err(Errno::OPNOTSUPP));
    let acl = acl(&[(ACL_USER_OBJ, 6, NO_ID), (ACL_GROUP_OBJ, 4, NO_ID), (ACL_OTHER, 4, NO_ID)]);
    let set = rustix::fs::setxattr(&file, ACCESS_ACL, &acl, XattrFlags::empty());
    assert_eq!(set, Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::removexattr(&file, ACCESS_ACL), Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::listxattr(&file, &mut value[..]), Ok(0));
}

#[test]
fn without_acls_the_umask_always_counts() {
    let Some(layers) = scene() else { return };
    for own in ["noacl", "squash_to_uid=1002"] {
        let mount = layers.mount_with(own);
        for umask in [0, 0o027, 0o077] {
            let expected = [0o666 & !umask, 0o777 & !umask, 0o666 & !umask];
            assert_eq!(made(&mount.at("d"), umask), expected, "{own}, {umask:o}");
        }
    }
}

/// Without ACLs nothing but `default_permissions` makes the kernel check any permission.
#[test]
fn without_acls_modes_are_checked() {
    let Some(layers) = scene() else { return };
    for own in ["noacl", "noacl,xattr_permissions=1"] {
        let mount = layers.mount_with(own);
        let path = mount.at(format!("private-{}", own.len()));
        fs::write(&path, b"root's").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        as_caller(&Identity::user(1002), || {
            let denied = std::io::ErrorKind::PermissionDenied;
            assert_eq!(File::open(&path).map(drop).map_err(|e| e.kind()), Err(denied), "{own}");
            let made = fs::write(mount.at("made"), b"").map_err(|e| e.kind());
            assert_eq!(made, Err(denied), "{own}");
        });
    }
}
