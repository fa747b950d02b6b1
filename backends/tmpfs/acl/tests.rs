use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::*;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Tag, permissions, id.
type Raw = (u16, u16, u32);

fn encoded(entries: &[Raw]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn parsed(entries: &[Raw]) -> std::result::Result<Option<Acl>, Errno> {
    Acl::parse(&encoded(entries)).map_err(|e| e.errno())
}

fn acl(entries: &[Raw]) -> Acl {
    parsed(entries).expect("a valid ACL").expect("entries")
}

fn of(tag: u16, perm: u16) -> Raw {
    (tag, perm, UNDEFINED_ID)
}

/// An ACL that a mode can say.
fn minimal() -> Vec<Raw> {
    vec![of(USER_OBJ, 6), of(GROUP_OBJ, 4), of(OTHER, 0)]
}

/// An ACL with an entry of every kind.
fn extended() -> Vec<Raw> {
    let users = [(USER, 7, 1000), (USER, 0, 0)];
    let groups = [(GROUP, 5, 100)];
    let mut entries = vec![of(USER_OBJ, 7)];
    entries.extend(users);
    entries.push(of(GROUP_OBJ, 5));
    entries.extend(groups);
    entries.extend([of(MASK, 6), of(OTHER, 1)]);
    entries
}

#[test]
fn an_acl_is_small() {
    assert_eq!(size_of::<Option<Acl>>(), 16);
}

#[test]
fn the_encoding_is_the_kernels() {
    let bytes = b"\x02\0\0\0\
        \x01\0\x07\0\xff\xff\xff\xff\
        \x02\0\x05\0\xe8\x03\0\0\
        \x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x06\0\xff\xff\xff\xff\
        \x20\0\x01\0\xff\xff\xff\xff";
    let acl = Acl::parse(bytes).expect("valid").expect("entries");
    let entry = |who, perm| Entry { who, perm };
    let entries = [
        entry(Who::UserObj, 7),
        entry(Who::User(1000), 5),
        entry(Who::GroupObj, 4),
        entry(Who::Mask, 6),
        entry(Who::Other, 1),
    ];
    assert_eq!(*acl.0, entries);
    assert_eq!(acl.to_xattr(), bytes);
}

#[test]
fn the_header_is_checked_before_the_length() {
    let errno = |bytes: &[u8]| Acl::parse(bytes).expect_err("no ACL").errno();
    for short in [&[][..], &[2], &[2, 0, 0]] {
        assert_eq!(errno(short), Errno::EINVAL);
    }
    for version in [0, 1, 3, 2 << 8, u32::MAX] {
        let mut bytes = version.to_le_bytes().to_vec();
        assert_eq!(errno(&bytes), Errno::EOPNOTSUPP);
        bytes.push(0);
        assert_eq!(errno(&bytes), Errno::EOPNOTSUPP);
    }
    let bytes = encoded(&minimal());
    for cut in (5..bytes.len()).filter(|len| len % 8 != 4) {
        assert_eq!(errno(&bytes[..cut]), Errno::EINVAL, "{cut} bytes");
    }
}

#[test]
fn a_header_alone_is_no_acl() {
    assert_eq!(parsed(&[]), Ok(None));
}

#[test]
fn owner_group_and_others_are_needed() {
    for entries in [minimal(), extended()] {
        assert!(parsed(&entries).is_ok());
        for left_out in 0..entries.len() {
            let mut fewer = entries.clone();
            let (tag, ..) = fewer.remove(left_out);
            let may_lack = matches!(tag, USER | GROUP);
            assert_eq!(parsed(&fewer).is_ok(), may_lack, "without {tag:#x}");
        }
    }
}

#[test]
fn nobody_is_named_without_a_mask() {
    for named in [USER, GROUP] {
        let mut entries = minimal();
        entries.insert(if named == USER { 1 } else { 2 }, (named, 7, 1));
        assert_eq!(parsed(&entries), Err(Errno::EINVAL));
        entries.insert(3, of(MASK, 7));
        assert!(parsed(&entries).is_ok());
    }
}

#[test]
fn a_mask_needs_no_name() {
    let entries = [of(USER_OBJ, 6), of(GROUP_OBJ, 7), of(MASK, 4), of(OTHER, 0)];
    assert_eq!(acl(&entries).equiv_mode(), (0o640, false));
}

#[test]
fn only_names_come_twice() {
    let entries = extended();
    for twice in 0..entries.len() {
        let mut more = entries.clone();
        more.insert(twice, entries[twice]);
        let (tag, ..) = entries[twice];
        assert_eq!(parsed(&more).is_ok(), matches!(tag, USER | GROUP), "{tag:#x} twice");
    }
}

#[test]
fn the_order_of_kinds_counts_and_that_of_ids_does_not() {
    let entries = extended();
    for i in 1..entries.len() {
        let mut swapped = entries.clone();
        swapped.swap(i - 1, i);
        assert_eq!(parsed(&swapped).is_ok(), entries[i - 1].0 == entries[i].0, "entries {} and {i}", i - 1);
    }
}

#[test]
fn permissions_are_three_bits() {
    for perm in [8, 0o17, 0x100, 0x8000, u16::MAX] {
        for i in 0..extended().len() {
            let mut entries = extended();
            entries[i].1 = perm;
            assert_eq!(parsed(&entries), Err(Errno::EINVAL));
        }
    }
}

#[test]
fn the_undefined_id_names_nobody() {
    for named in [USER, GROUP] {
        let mut entries = extended();
        let i = entries.iter().position(|(tag, ..)| *tag == named).expect("a named entry");
        entries[i].2 = UNDEFINED_ID;
        assert_eq!(parsed(&entries), Err(Errno::EINVAL));
        entries[i].2 = UNDEFINED_ID - 1;
        assert!(parsed(&entries).is_ok());
    }
}

#[test]
fn ids_of_entries_that_name_nobody_are_ignored() {
    let mut entries = minimal();
    for entry in &mut entries {
        entry.2 = 7;
    }
    assert_eq!(acl(&entries), acl(&minimal()));
    assert_eq!(acl(&entries).to_xattr(), encoded(&minimal()));
}

#[test]
fn tags_are_single_kinds() {
    for tag in [0, USER_OBJ | USER, 0x40, 0x101, u16::MAX] {
        let mut entries = minimal();
        entries[0].0 = tag;
        assert_eq!(parsed(&entries), Err(Errno::EINVAL), "{tag:#x}");
    }
}

#[test]
fn the_mode_has_the_mask_for_the_group() {
    assert_eq!(acl(&minimal()).equiv_mode(), (0o640, true));
    assert_eq!(acl(&extended()).equiv_mode(), (0o761, false));
}

#[test]
fn chmod_changes_the_mask_and_not_the_group() {
    let mut changed = acl(&extended());
    changed.chmod(0o102_755);
    let mut expected = extended();
    expected[0].1 = 7;
    expected[5].1 = 5;
    expected[6].1 = 5;
    assert_eq!(changed, acl(&expected));
}

#[test]
fn chmod_changes_the_group_where_there_is_no_mask() {
    let mut changed = acl(&minimal());
    changed.chmod(0o137);
    assert_eq!(changed, acl(&[of(USER_OBJ, 1), of(GROUP_OBJ, 3), of(OTHER, 7)]));
}

#[test]
fn a_new_node_gets_what_both_mode_and_acl_grant() {
    assert_eq!(acl(&minimal()).create(0o102_777), (None, 0o102_640));
    assert_eq!(acl(&minimal()).create(0o477), (None, 0o440));
    let (access, mode) = acl(&extended()).create(0o100_635);
    let mut expected = extended();
    expected[0].1 = 6;
    expected[5].1 = 2;
    expected[6].1 = 1;
    assert_eq!((access, mode), (Some(acl(&expected)), 0o100_621));
}

fn id() -> BoxedStrategy<u32> {
    prop_oneof![Just(0), Just(UNDEFINED_ID), any::<u32>()].boxed()
}

/// The entries of a valid ACL, unless an id is the undefined one.
fn entries(id: &BoxedStrategy<u32>) -> impl Strategy<Value = Vec<Raw>> + use<> {
    let named = |tag: u16| proptest::collection::vec((Just(tag), 0u16..8, id.clone()), 0..4);
    (named(USER), named(GROUP), any::<bool>(), [0u16..8, 0..8, 0..8, 0..8]).prop_map(
        |(users, groups, masked, [owner, group, mask, other])| {
            let mut all = vec![of(USER_OBJ, owner)];
            let masked = masked || !users.is_empty() || !groups.is_empty();
            all.extend(users);
            all.push(of(GROUP_OBJ, group));
            all.extend(groups);
            all.extend(masked.then_some(of(MASK, mask)));
            all.push(of(OTHER, other));
            all
        },
    )
}

/// Something near to an ACL: entries with one of them changed, moved, left out or there twice.
fn near(id: &BoxedStrategy<u32>) -> impl Strategy<Value = Vec<Raw>> + use<> {
    let tag = prop_oneof![proptest::sample::select(vec![0x01, 0x02, 0x04, 0x08, 0x10, 0x20]), any::<u16>()];
    let (one, other) = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let with = (tag, prop_oneof![0u16..8, any::<u16>()], id.clone());
    (entries(id), 0..6, one, other, with).prop_map(|(mut all, what, one, other, with)| {
        let (one, other) = (one.index(all.len()), other.index(all.len()));
        match what {
            0 => all[one] = with,
            1 => all[one].0 = with.0,
            2 => all.swap(one, other),
            3 => drop(all.remove(one)),
            4 => all.insert(other, all[one]),
            _ => {}
        }
        all
    })
}

fn valid() -> impl Strategy<Value = Acl> {
    entries(&(0..UNDEFINED_ID).boxed()).prop_map(|entries| acl(&entries))
}

/// The rules of validity once more, by counting.
fn counts_as_valid(entries: &[Raw]) -> bool {
    let count = |tag| entries.iter().filter(|entry| entry.0 == tag).count();
    entries.is_sorted_by_key(|entry| entry.0)
        && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
        && count(MASK) <= 1
        && (count(MASK) == 1 || count(USER) + count(GROUP) == 0)
        && [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].into_iter().map(count).sum::<usize>()
            == entries.len()
        && entries
            .iter()
            .all(|(tag, perm, id)| *perm < 8 && (*id != UNDEFINED_ID || !matches!(*tag, USER | GROUP)))
}

proptest! {
    #[test]
    fn any_bytes_are_an_acl_or_an_error(
        header in prop_oneof![Just(vec![]), Just(vec![2, 0, 0, 0])],
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let bytes = [header, bytes].concat();
        if let Ok(Some(acl)) = Acl::parse(&bytes) {
            prop_assert_eq!(acl.to_xattr().len(), bytes.len());
        }
    }

    #[test]
    fn exactly_the_valid_is_accepted(entries in near(&id())) {
        prop_assume!(!entries.is_empty());
        prop_assert_eq!(parsed(&entries).is_ok(), counts_as_valid(&entries));
    }

    #[test]
    fn an_acl_survives_its_encoding(acl in valid()) {
        let bytes = acl.to_xattr();
        prop_assert_eq!(Acl::parse(&bytes).expect("valid"), Some(acl));
    }

    #[test]
    fn chmod_makes_the_mode(acl in valid(), mode in any::<u32>()) {
        let mut changed = acl.clone();
        changed.chmod(mode);
        prop_assert_eq!(changed.equiv_mode(), (mode & 0o777, acl.equiv_mode().1));
        prop_assert_eq!(Acl::parse(&changed.to_xattr()).expect("valid"), Some(changed.clone()));
        for (old, new) in acl.0.iter().zip(&changed.0) {
            prop_assert_eq!(old.who, new.who);
            if matches!(old.who, Who::User(_) | Who::Group(_)) {
                prop_assert_eq!(old.perm, new.perm);
            }
        }
    }

    #[test]
    fn creation_never_grants_more(acl in valid(), mode in any::<u32>()) {
        let (granted, mode_says_it_all) = acl.equiv_mode();
        let (access, created) = acl.create(mode);
        prop_assert_eq!(created & !0o777, mode & !0o777);
        prop_assert_eq!(created & 0o777, mode & granted & 0o777);
        prop_assert_eq!(access.is_none(), mode_says_it_all);
        if let Some(access) = access {
            prop_assert_eq!(access.equiv_mode(), (created & 0o777, false));
        }
    }
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn set(path: &Path, name: &str, value: &[u8]) -> std::result::Result<(), Errno> {
    setxattr(path, name, value, XattrFlags::empty()).map_err(Errno::from)
}

fn kept(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    match getxattr(path, name, &mut value[..]) {
        Ok(len) => Some(value[..len].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("getxattr: {e}"),
    }
}

fn permissions(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").permissions().mode() & 0o777
}

/// Does to a new file in `dir` and to what is here the same, and compares.
fn compare_with_the_kernel(dir: &Path, value: &[u8], mode: u32) {
    let ours = Acl::parse(value).map_err(|e| e.errno());
    let path = dir.join("changed");
    File::create(&path).expect("create");
    fs::set_permissions(&path, Permissions::from_mode(0o604)).expect("chmod");
    assert_eq!(set(&path, ACCESS, value), ours.clone().map(drop), "access");
    match ours.clone() {
        Ok(Some(mut acl)) => {
            let (equivalent, mode_says_it_all) = acl.equiv_mode();
            assert_eq!(permissions(&path), equivalent);
            assert_eq!(kept(&path, ACCESS), (!mode_says_it_all).then(|| acl.to_xattr()));
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
            acl.chmod(mode);
            assert_eq!(kept(&path, ACCESS), (!mode_says_it_all).then(|| acl.to_xattr()), "after chmod");
        }
        Ok(None) | Err(_) => assert_eq!((permissions(&path), kept(&path, ACCESS)), (0o604, None)),
    }
    fs::remove_file(&path).expect("unlink");

    assert_eq!(set(dir, DEFAULT, value), ours.clone().map(drop), "default");
    let Ok(Some(acl)) = ours else { return };
    assert_eq!(kept(dir, DEFAULT), Some(acl.to_xattr()));
    let path = dir.join("created");
    OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).expect("create");
    let (access, created) = acl.create(mode);
    assert_eq!(permissions(&path), created);
    assert_eq!(kept(&path, ACCESS), access.map(|acl| acl.to_xattr()));
    fs::remove_file(&path).expect("unlink");
    set(dir, DEFAULT, &encoded(&[])).expect("remove the default ACL");
}

/// A directory of the kernel's tmpfs, if there is one that keeps ACLs.
fn kernel_tmpfs() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir_in("/dev/shm").ok()?;
    set(dir.path(), DEFAULT, &encoded(&minimal())).ok()?;
    set(dir.path(), DEFAULT, &encoded(&[])).expect("remove the default ACL");
    Some(dir)
}

#[test]
fn the_kernel_does_the_same() {
    let Some(dir) = kernel_tmpfs() else {
        let required =
            ["CI", "SPLICEFS_TESTS_REQUIRE"].into_iter().any(|name| std::env::var_os(name).is_some());
        assert!(!required, "/dev/shm is no directory that keeps ACLs");
        eprintln!("skipped: /dev/shm is no directory that keeps ACLs");
        return;
    };
    for value in [encoded(&minimal()), encoded(&[]), vec![2], vec![2, 0, 0, 0, 1], vec![3, 0, 0, 0, 1]] {
        compare_with_the_kernel(dir.path(), &value, 0o750);
    }
    // Only ids that every user namespace maps.
    let case = (near(&prop_oneof![Just(0), Just(UNDEFINED_ID)].boxed()), 0u32..0o1000);
    proptest!(|((entries, mode) in case)| {
        compare_with_the_kernel(dir.path(), &encoded(&entries), mode);
    });
}
