//! What a layer tells besides: file systems, handles, descriptors.

use std::path::PathBuf;

use rustix::fs::OFlags;
use splicefs_core::{Backend, FileHandle, Identified, Layer, NodeId, OpenFlags, RenameFlags};
use splicefs_passthrough::LayerOptions;

use crate::common::{
    DAEMON, attr, create, evict, find, mkdir, name, read_only, root_of_the_host, set, writable,
};

#[test]
fn layers_of_one_file_system_say_so() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let set = set();
    let (first, second) = (writable(&set, a.path()), read_only(&set, b.path()));
    let elsewhere = read_only(&set, &PathBuf::from("/proc"));
    assert_eq!(first.file_system(), second.file_system());
    assert_ne!(first.file_system(), elsewhere.file_system());
    assert_eq!(first.uuid(), second.uuid());
    assert_eq!(elsewhere.uuid(), [0; 16], "procfs has none");
    assert_eq!(first.root().id(), NodeId::ROOT);
    assert_ne!(second.root().id(), NodeId::ROOT);
}

/// The file system id of ext4 and tmpfs is the UUID, the one half of it laid over the other (`uuid_to_fsid` in
/// include/linux/statfs.h).
#[test]
fn the_uuid_is_the_one_that_the_id_of_the_file_system_is_made_from() {
    const KINDS: [u64; 2] = [0xef53, 0x0102_1994];
    let compared = [std::env::temp_dir(), PathBuf::from("/dev/shm")].into_iter().filter(|path| {
        let of_a_kind = rustix::fs::statfs(path)
            .is_ok_and(|st| u64::try_from(st.f_type).is_ok_and(|kind| KINDS.contains(&kind)));
        let uuid = if of_a_kind { read_only(&set(), path).uuid() } else { [0; 16] };
        let half = |range: std::ops::Range<usize>| u64::from_le_bytes(uuid[range].try_into().unwrap());
        if uuid != [0; 16] {
            assert_eq!(half(0..8) ^ half(8..16), rustix::fs::statvfs(path).unwrap().f_fsid, "{path:?}");
        }
        uuid != [0; 16]
    });
    if compared.count() == 0 {
        eprintln!("not run: needs linux 6.9 and an ext4 or tmpfs with a UUID");
    }
}

#[test]
fn a_handle_leads_to_its_file_by_whatever_name_until_it_is_gone() {
    if !root_of_the_host() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let set = set();
    let fs = writable(&set, source.path());
    let root = fs.root();
    let (node, file) = create(&fs, &root, "a", b"abc");
    let Some(handle) = fs.handle(&node).unwrap() else {
        eprintln!("not run: the file system has no handles");
        return;
    };
    let ino = attr(&fs, &node).ino;
    assert_eq!(fs.inode_of(&handle).unwrap(), Some(ino));
    fs.rename(&DAEMON, (&root, &name("a")), (&root, &name("b")), RenameFlags(0)).unwrap();
    assert_eq!(fs.handle(&node).unwrap().as_ref(), Some(&handle));
    assert_eq!(fs.inode_of(&handle).unwrap(), Some(ino));
    let through_the_clone = read_only(&set, source.path());
    assert_eq!(through_the_clone.inode_of(&handle).unwrap(), Some(ino));
    let same = through_the_clone.handle(&find(&through_the_clone, &through_the_clone.root(), "b"));
    assert_eq!(same.unwrap().as_ref(), Some(&handle));
    fs.unlink(&root, &name("b")).unwrap();
    drop((node, file));
    assert_eq!(fs.inode_of(&handle).unwrap(), None);
}

#[test]
fn what_is_no_handle_leads_nowhere() {
    if !root_of_the_host() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let fs = writable(&set(), source.path());
    for bytes in [vec![], vec![0xff; 8], vec![7; 128], vec![7; 200]] {
        for kind in [0, 1, 0x7f, -1] {
            let handle = FileHandle { kind, bytes: bytes.clone() };
            assert_eq!(fs.inode_of(&handle).unwrap(), None, "{handle:?}");
        }
    }
}

#[test]
fn without_the_right_to_ask_the_refusal_is_told() {
    let source = tempfile::tempdir().unwrap();
    let fs = writable(&set(), source.path());
    let handle = fs.handle(&mkdir(&fs, &fs.root(), "d")).unwrap();
    let Some(handle) = handle else {
        eprintln!("not run: the file system has no handles");
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            crate::sealed::give_up_rights();
            assert_eq!(crate::common::errno(fs.inode_of(&handle)), splicefs_core::Errno::EPERM);
        });
    });
}

#[test]
fn the_descriptor_of_a_file_holds_its_contents() {
    let source = tempfile::tempdir().unwrap();
    let fs = writable(&set(), source.path());
    let (node, file) = create(&fs, &fs.root(), "f", b"contents");
    let read = |fd| {
        let mut bytes = [0; 16];
        let n = rustix::io::pread(fd, &mut bytes, 0).unwrap();
        bytes[..n].to_vec()
    };
    assert_eq!(read(fs.descriptor(&file).unwrap()), b"contents");
    let direct = fs.open(&DAEMON, &node, OpenFlags(libc::O_RDONLY | libc::O_DIRECT)).unwrap();
    let fd = fs.descriptor(&direct.file).unwrap();
    assert!(!rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::DIRECT));
    assert_eq!(read(fd), b"contents");
    let proc = writable(&set(), &PathBuf::from("/proc"));
    let status = find(&proc, &proc.root(), "version");
    let pseudo = proc.open(&DAEMON, &status, OpenFlags(libc::O_RDONLY)).unwrap();
    assert!(fs.descriptor(&pseudo.file).is_none());
}

#[test]
fn what_is_no_directory_is_no_layer() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("file");
    std::fs::write(&path, b"").unwrap();
    for read_only in [false, true] {
        for (path, errno) in [(&path, libc::ENOTDIR), (&source.path().join("none"), libc::ENOENT)] {
            let options = LayerOptions { path: path.clone(), noatime: false, read_only, lends: !read_only };
            assert_eq!(set().open(&options).unwrap_err().raw_os_error(), Some(errno));
        }
    }
}

#[test]
fn a_handle_is_had_of_what_was_evicted() {
    let source = tempfile::tempdir().unwrap();
    let set = set();
    let fs = writable(&set, source.path());
    let inner = mkdir(&fs, &mkdir(&fs, &fs.root(), "a"), "b");
    let before = fs.handle(&inner).unwrap();
    evict(&set);
    assert_eq!(fs.handle(&inner).unwrap(), before);
}
