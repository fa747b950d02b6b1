//! `uidmapping` and `gidmapping`: who is who in the mount and in the layers.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::layers::Layers;
use crate::harness::{
    ACCESS_ACL, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER, ACL_USER, ACL_USER_OBJ, Identity, NO_ID, acl, as_caller,
    shell,
};

/// As podman writes it.
const SHIFTED: &str = "uidmapping=:0:100000:65536,gidmapping=:0:100000:65536";
const NOBODY: u32 = 65534;

fn scene() -> Option<Layers> {
    let layers = Layers::for_acls()?;
    fs::write(layers.lower().join("d/file"), b"contents").expect("write");
    Some(layers)
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let st = fs::symlink_metadata(path).expect("stat");
    (st.uid(), st.gid())
}

/// `podman run --userns=auto` makes `/etc/mtab` from outside of the container's user namespace, and `podman diff` gives the root
/// directory to itself.
#[test]
fn who_is_nobody_in_the_layers_makes_files_of_nobody() {
    let Some(layers) = scene() else { return };
    let mount = layers.mount_with(SHIFTED);
    assert_eq!(owner(mount.at("d/file")), (100_000, 100_000));
    fs::write(mount.at("d/made"), b"").expect("write");
    fs::create_dir(mount.at("d/dir")).expect("mkdir");
    std::os::unix::fs::symlink("x", mount.at("d/link")).expect("symlink");
    for name in ["made", "dir", "link"] {
        let path = format!("d/{name}");
        assert_eq!(owner(layers.upper().join(&path)), (NOBODY, NOBODY), "{name}");
        assert_eq!(owner(mount.at(&path)), (100_000 + NOBODY, 100_000 + NOBODY), "{name}");
    }
    chown(mount.at("d/made"), Some(100_033), Some(100_044)).expect("chown");
    assert_eq!(owner(layers.upper().join("d/made")), (33, 44));
    chown(mount.at("d/made"), Some(7), None).expect("chown");
    assert_eq!(owner(layers.upper().join("d/made")), (NOBODY, 44));
}

#[test]
fn acls_name_who_they_name_in_the_layers() {
    let Some(layers) = scene() else { return };
    shell("cd \"$1\" && chmod 600 d/file && setfacl -m u:1001:rw d/file", layers.lower());
    shell("cd \"$1\" && chmod 777 d && setfacl -d -m g:1002:rwx d", layers.lower());
    let mount = layers.mount_with(SHIFTED);
    let acl = |path: &Path| shell("getfacl -cpEn \"$1\" | grep :1", path).trim().to_owned();
    assert_eq!(acl(&mount.at("d/file")), "user:101001:rw-");
    let reads = |uid: u32| {
        as_caller(&Identity::user(uid), || File::open(mount.at("d/file")).map(drop).map_err(|e| e.kind()))
    };
    assert_eq!(reads(101_001), Ok(()));
    for other in [1001, 101_002] {
        assert_eq!(reads(other), Err(std::io::ErrorKind::PermissionDenied), "{other}");
    }
    shell("setfacl -m u:101002:r \"$1/d/file\"", mount.point());
    assert_eq!(acl(&layers.upper().join("d/file")), "user:1001:rw-\nuser:1002:r--");
    assert_eq!(reads(101_002), Ok(()));
    as_caller(&Identity::user(101_005), || fs::write(mount.at("d/new"), b"").expect("write"));
    assert_eq!(acl(&mount.at("d/new")), "group:101002:rwx");
    assert_eq!(acl(&layers.upper().join("d/new")), "group:1002:rwx");
    // Nobody in the layers is 7 in the mount.
    let value = acl_of_user(7);
    let set = rustix::fs::setxattr(mount.at("d/file"), ACCESS_ACL, &value, XattrFlags::empty());
    assert_eq!(set, Err(Errno::INVAL));
    assert_eq!(acl(&layers.upper().join("d/file")), "user:1001:rw-\nuser:1002:r--");
}

/// Whether who sets an ACL is in the file's group is for the group to say that the mount shows.
#[test]
fn regression_an_acl_of_a_stranger_to_the_shown_group_takes_the_setgid_bit() {
    let Some(layers) = scene() else { return };
    let file = layers.lower().join("d/file");
    chown(&file, Some(1001), Some(50)).expect("chown");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o2755)).expect("chmod");
    let mount = layers.mount_with("gidmapping=0:1:65535");
    assert_eq!(owner(mount.at("d/file")), (1001, 51));
    as_caller(&Identity { gid: 50, ..Identity::user(1001) }, || {
        let value = acl_of_user(1002);
        rustix::fs::setxattr(mount.at("d/file"), ACCESS_ACL, &value, XattrFlags::empty()).expect("setxattr");
    });
    for path in [mount.at("d/file"), layers.upper().join("d/file")] {
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7000, 0, "{}", path.display());
    }
}

/// An access ACL that lets one user read.
fn acl_of_user(user: u32) -> Vec<u8> {
    acl(&[
        (ACL_USER_OBJ, 6, NO_ID),
        (ACL_USER, 4, user),
        (ACL_GROUP_OBJ, 4, NO_ID),
        (ACL_MASK, 4, NO_ID),
        (ACL_OTHER, 4, NO_ID),
    ])
}
