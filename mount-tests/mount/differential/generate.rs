//! Random operations. The weights are such that most sequences have a few files with data, several links and
//! directories that are not empty.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags};

use super::op::{
    Acl, AclKind, At, Data, Object, Op, SHARED_GROUP, SLOTS, Special, Step, Target, Time, Whence, Who,
};

/// How much room the file systems have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// No operation meets a limit.
    Ample,
    /// Most sequences meet one.
    Tight,
    /// No operation meets a limit, of layers on ext4 either; and none asks where holes are, which depends on how a file was
    /// copied up.
    Layers,
}

const LONGEST: usize = 160;

const MODES: [u32; 14] =
    [0o644, 0o755, 0o777, 0o666, 0o700, 0o600, 0o000, 0o444, 0o070, 0o4755, 0o2755, 0o2777, 0o1777, 0o6777];
const IDS: [Option<u32>; 5] = [None, Some(0), Some(1001), Some(1002), Some(SHARED_GROUP)];
const XATTRS: [&str; 10] = [
    "user.a",
    "user.bb",
    "trusted.a",
    "security.a",
    "user.",
    "trusted.",
    "unknown.a",
    "system.a",
    "system.posix_acl_access",
    "system.posix_acl_default",
];

/// Further attributes to set in an overlay: an overlay's own, which those of an overlay as a layer look like.
const OVERLAY_XATTRS: [&str; 5] = [
    "trusted.overlay.opaque",
    "trusted.overlay.a",
    "trusted.overlay.overlay.a",
    "user.overlay.opaque",
    "user.overlay.overlay.a",
];

/// A sequence of operations.
pub(crate) fn sequence(room: Room) -> impl Strategy<Value = Vec<Step>> {
    vec(step(room), 1..=LONGEST)
}

fn step(room: Room) -> impl Strategy<Value = Step> {
    let who = prop_oneof![6 => Just(Who::Root), 2 => Just(Who::Member), 1 => Just(Who::Stranger)];
    let umask = prop_oneof![4 => Just(0o022), 1 => select(vec![0, 0o002, 0o077, 0o777])];
    (op(room), umask, who).prop_map(move |(op, umask, who)| {
        // A user's fallocate(2) through FUSE takes setuid away also when there is no room: see `known::STEPS`.
        let to_fail = room == Room::Tight && matches!(op, Op::Fallocate { .. });
        Step { who: if to_fail { Who::Root } else { who }, umask, op }
    })
}

/// A path whose last name is rather a directory's or rather a file's, so that they find each other.
fn path(directory: bool) -> impl Strategy<Value = At> {
    let (first, second) = if directory { (4, 1) } else { (1, 4) };
    let last = prop_oneof![first => 0..2usize, second => 2..4usize];
    let parents = vec(prop_oneof![12 => Just(0usize), 3 => Just(1), 1 => 2..4usize], 0..=2);
    (last, parents).prop_map(|(last, mut names)| {
        names.push(last);
        At(names)
    })
}

fn any_path() -> impl Strategy<Value = At> {
    prop_oneof![12 => path(false), 8 => path(true), 1 => Just(At(vec![]))]
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        4 => any_path().prop_map(Object::Follow),
        1 => any_path().prop_map(Object::NoFollow),
        2 => slot().prop_map(Object::Open),
    ]
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn mode() -> impl Strategy<Value = u32> {
    select(MODES.to_vec())
}

/// A place near an edge of something, and now and then just outside of what files can be. Nothing is written to the
/// very last page that a file can have: SEEK_DATA of the kernel's tmpfs does not find it (6.18: the end of that page
/// overflows).
fn offset(room: Room) -> impl Strategy<Value = u64> {
    const LAST: u64 = 1 << 63;
    let near: [u64; 8] = [0, 100, 4096, 8192, 3 * 4096, 65536, 1 << 20, (1 << 20) + 8192];
    let far: [u64; 4] = [1 << 31, 1 << 32, 1 << 40, LAST - (4 << 20)];
    let far = if room == Room::Layers { &far[..3] } else { &far };
    let edge = prop_oneof![12 => select(near.to_vec()), 1 => select(far.to_vec())];
    let beside = (edge, -2i64..=2).prop_map(|(edge, delta)| edge.saturating_add_signed(delta)).boxed();
    if room == Room::Layers {
        beside
    } else {
        prop_oneof![60 => beside, 1 => Just(LAST - 1), 1 => Just(LAST)].boxed()
    }
}

fn length() -> impl Strategy<Value = usize> {
    let edges = vec![0, 1, 100, 4095, 4096, 4097, 8192, 16384, 65535, 65536, 65537, 300_000];
    prop_oneof![12 => select(edges), 4 => 1..20_000usize, 1 => Just((1 << 20) + 4097)]
}

fn data() -> impl Strategy<Value = Data> {
    (length(), 0..200u8).prop_map(|(length, fill)| Data { length, fill })
}

fn small_data() -> impl Strategy<Value = Data> {
    (0..9000usize, 0..200u8).prop_map(|(length, fill)| Data { length, fill })
}

fn open_flags() -> impl Strategy<Value = OFlags> {
    let access = prop_oneof![5 => Just(OFlags::RDWR), 1 => Just(OFlags::WRONLY), 1 => Just(OFlags::RDONLY)];
    let create = prop_oneof![
        4 => Just(OFlags::CREATE),
        1 => Just(OFlags::CREATE | OFlags::EXCL),
        2 => Just(OFlags::empty()),
        1 => Just(OFlags::DIRECTORY),
        1 => Just(OFlags::PATH),
    ];
    let further = [OFlags::empty(), OFlags::empty(), OFlags::TRUNC, OFlags::APPEND, OFlags::NOFOLLOW];
    (access, create, select(further.to_vec())).prop_map(|(access, create, further)| {
        let access = if create == OFlags::DIRECTORY { OFlags::RDONLY } else { access };
        access | create | further
    })
}

fn time() -> impl Strategy<Value = Time> {
    let values =
        [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-3_000_000_000, 5), (1 << 31, 0), (1 << 34, 7)];
    prop_oneof![
        4 => select(values.to_vec()).prop_map(|(seconds, nanoseconds)| Time::At(seconds, nanoseconds)),
        1 => Just(Time::At(5, 1_000_000_000)),
        1 => Just(Time::Now),
        1 => Just(Time::Omit),
    ]
}

fn xattr_value(room: Room) -> impl Strategy<Value = Data> {
    let large = match room {
        Room::Ample => vec![1024, 4096, 65536],
        Room::Tight => vec![1024, 4096, 6000],
        Room::Layers => vec![100, 600],
    };
    (prop_oneof![5 => 0..40usize, 2 => select(large), 1 => Just(65537)], 0..200u8)
        .prop_map(|(length, fill)| Data { length, fill })
}

fn xattr_name(room: Room) -> impl Strategy<Value = &'static str> {
    let unusual: &[&str] = if room == Room::Layers { &OVERLAY_XATTRS } else { &XATTRS };
    prop_oneof![10 => select(XATTRS[..4].to_vec()), 1 => select(XATTRS.to_vec()), 1 => select(unusual.to_vec())]
}

/// Entries in the right order with the right members, and now and then something else.
fn acl() -> impl Strategy<Value = Acl> {
    const USER_OBJ: (u16, u32) = (0x01, u32::MAX);
    const GROUP_OBJ: (u16, u32) = (0x04, u32::MAX);
    const MASK: (u16, u32) = (0x10, u32::MAX);
    const OTHER: (u16, u32) = (0x20, u32::MAX);
    let (user, group) = ((0x02, 1001), (0x08, SHARED_GROUP));
    let shapes = prop_oneof![
        2 => Just(vec![USER_OBJ, GROUP_OBJ, OTHER]),
        2 => Just(vec![USER_OBJ, GROUP_OBJ, MASK, OTHER]),
        3 => Just(vec![USER_OBJ, user, GROUP_OBJ, MASK, OTHER]),
        3 => Just(vec![USER_OBJ, user, GROUP_OBJ, group, MASK, OTHER]),
        // No mask; out of order; an unknown tag; nothing.
        1 => Just(vec![USER_OBJ, user, GROUP_OBJ, OTHER]),
        1 => Just(vec![GROUP_OBJ, USER_OBJ, OTHER]),
        1 => Just(vec![USER_OBJ, GROUP_OBJ, (0x40, u32::MAX), OTHER]),
        1 => Just(vec![]),
    ];
    let version = prop_oneof![20 => Just(2u32), 1 => Just(1u32)];
    let cut = prop_oneof![20 => Just(0usize), 1 => 1..9usize];
    (version, shapes, vec(prop_oneof![20 => 0..8u16, 1 => Just(9u16)], 6), cut).prop_map(
        |(version, entries, permissions, cut)| {
            let mut bytes = version.to_le_bytes().to_vec();
            for ((tag, id), permission) in entries.into_iter().zip(permissions) {
                bytes.extend(tag.to_le_bytes());
                bytes.extend(permission.to_le_bytes());
                bytes.extend(id.to_le_bytes());
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            Acl(bytes)
        },
    )
}

fn rename_flags() -> impl Strategy<Value = RenameFlags> {
    prop_oneof![
        6 => Just(RenameFlags::empty()),
        1 => Just(RenameFlags::NOREPLACE),
        2 => Just(RenameFlags::EXCHANGE),
        1 => Just(RenameFlags::WHITEOUT),
        1 => Just(RenameFlags::NOREPLACE | RenameFlags::WHITEOUT),
        1 => Just(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE),
    ]
}

fn fallocate_mode(room: Room) -> impl Strategy<Value = FallocateFlags> {
    use FallocateFlags as F;
    // The kernel forwards the last three to no FUSE daemon, and tmpfs knows them no more than that.
    let unusual = [
        F::PUNCH_HOLE,
        F::ZERO_RANGE,
        F::ZERO_RANGE | F::KEEP_SIZE,
        F::COLLAPSE_RANGE,
        F::INSERT_RANGE,
        F::UNSHARE_RANGE,
    ];
    let unusual = if room == Room::Layers { &unusual[..3] } else { &unusual };
    prop_oneof![
        4 => Just(F::empty()),
        4 => Just(F::KEEP_SIZE),
        8 => Just(F::PUNCH_HOLE | F::KEEP_SIZE),
        1 => select(unusual.to_vec()),
    ]
}

fn special() -> impl Strategy<Value = Special> {
    // The mounts are nodev: none of these is ever opened.
    select(vec![
        Special::Fifo,
        Special::Socket,
        Special::Character(1, 3),
        Special::Character(0, 0),
        Special::Block(240, 0x12345),
        Special::Regular,
    ])
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => (0..4usize).prop_map(Target::Beside),
        2 => (0..4usize).prop_map(Target::Above),
        // shmem keeps up to 127 bytes and a NUL in the inode, and gives longer ones a page.
        2 => select(vec![126, 127, 128, 4095, 4096]).prop_map(Target::Long),
    ]
}

fn names(weighted: &mut Vec<(u32, BoxedStrategy<Op>)>) {
    let mut add = |weight, strategy: BoxedStrategy<Op>| weighted.push((weight, strategy));
    add(10, (path(true), mode()).prop_map(|(path, mode)| Op::Mkdir(path, mode)).boxed());
    add(
        4,
        (path(false), special(), mode()).prop_map(|(path, kind, mode)| Op::Mknod(path, kind, mode)).boxed(),
    );
    add(4, (path(false), target()).prop_map(|(path, target)| Op::Symlink(path, target)).boxed());
    let link = (path(false), path(false), any::<bool>());
    add(6, link.prop_map(|(from, to, follow)| Op::Link { from, to, follow }).boxed());
    add(5, path(false).prop_map(Op::Unlink).boxed());
    add(3, path(true).prop_map(Op::Rmdir).boxed());
    for directory in [false, true] {
        let rename = (path(directory), path(directory), rename_flags());
        add(5, rename.prop_map(|(from, to, flags)| Op::Rename { from, to, flags }).boxed());
    }
    let rename = (any_path(), any_path(), rename_flags());
    add(2, rename.prop_map(|(from, to, flags)| Op::Rename { from, to, flags }).boxed());
    let open = (slot(), path(false), open_flags(), mode());
    add(18, open.prop_map(|(slot, path, flags, mode)| Op::Open { slot, path, flags, mode }).boxed());
    let directory = (slot(), path(true)).prop_map(|(slot, path)| Op::Open {
        slot,
        path,
        flags: OFlags::RDONLY | OFlags::DIRECTORY,
        mode: 0,
    });
    add(1, directory.boxed());
    let tmpfile = (slot(), path(true), any::<bool>(), mode());
    add(
        2,
        tmpfile.prop_map(|(slot, dir, exclusive, mode)| Op::Tmpfile { slot, dir, exclusive, mode }).boxed(),
    );
    add(2, (slot(), path(false)).prop_map(|(slot, path)| Op::LinkOpen { slot, path }).boxed());
    add(4, slot().prop_map(Op::Close).boxed());
}

fn contents(weighted: &mut Vec<(u32, BoxedStrategy<Op>)>, room: Room) {
    let mut add = |weight, strategy: BoxedStrategy<Op>| weighted.push((weight, strategy));
    let read = (slot(), offset(room), length());
    add(8, read.prop_map(|(slot, offset, length)| Op::Pread { slot, offset, length }).boxed());
    let write = (slot(), offset(room), data());
    add(14, write.prop_map(|(slot, offset, data)| Op::Pwrite { slot, offset, data }).boxed());
    let append = (slot(), vec(small_data(), 1..4), any::<bool>());
    add(5, append.prop_map(|(slot, parts, seek)| Op::Append { slot, parts, seek }).boxed());
    add(3, (path(false), offset(room)).prop_map(|(path, length)| Op::Truncate(path, length)).boxed());
    add(4, (slot(), offset(room)).prop_map(|(slot, length)| Op::Ftruncate(slot, length)).boxed());
    let allocate = (slot(), fallocate_mode(room), offset(room), length());
    let allocate = allocate.prop_map(|(slot, mode, offset, length)| Op::Fallocate {
        slot,
        mode,
        offset,
        length: length as u64,
    });
    add(12, allocate.boxed());
    let whence = match room {
        Room::Layers => vec![Whence::Set, Whence::End],
        _ => vec![Whence::Data, Whence::Hole, Whence::Data, Whence::Hole, Whence::Set, Whence::End],
    };
    let whence = select(whence);
    let seek = (slot(), whence, offset(room));
    add(5, seek.prop_map(|(slot, whence, offset)| Op::Seek { slot, whence, offset }).boxed());
    let copy = (slot(), slot(), offset(room), offset(room), length());
    let copy = copy.prop_map(|(from, to, from_offset, to_offset, length)| Op::CopyRange {
        from,
        to,
        from_offset,
        to_offset,
        length,
    });
    add(4, copy.boxed());
    add(1, slot().prop_map(Op::Fsync).boxed());
    // Without room a store into a mapping raises SIGBUS.
    if room != Room::Tight {
        let map = (slot(), any::<u32>(), small_data());
        add(4, map.prop_map(|(slot, place, data)| Op::MapWrite { slot, place, data }).boxed());
    }
}

fn attributes(weighted: &mut Vec<(u32, BoxedStrategy<Op>)>, room: Room) {
    let mut add = |weight, strategy: BoxedStrategy<Op>| weighted.push((weight, strategy));
    add(6, (object(), mode()).prop_map(|(object, mode)| Op::Chmod(object, mode)).boxed());
    let ids = || select(IDS.to_vec());
    add(6, (object(), ids(), ids()).prop_map(|(object, uid, gid)| Op::Chown(object, uid, gid)).boxed());
    add(4, (object(), time(), time()).prop_map(|(object, a, m)| Op::Utimens(object, a, m)).boxed());
    let access = (any_path(), 0..8u32, any::<bool>());
    add(2, access.prop_map(|(path, mode, effective)| Op::Access { path, mode, effective }).boxed());
    let set = (object(), xattr_name(room), xattr_value(room), prop_oneof![4 => Just(0), 1 => 1..4u32]);
    add(8, set.prop_map(|(object, name, value, flags)| Op::SetXattr { object, name, value, flags }).boxed());
    let get = (object(), xattr_name(room), select(vec![0, 5, 100, 65536]));
    add(3, get.prop_map(|(object, name, room)| Op::GetXattr { object, name, room }).boxed());
    let list = (object(), select(vec![0, 10, 1000, 65536]));
    add(2, list.prop_map(|(object, room)| Op::ListXattr { object, room }).boxed());
    let remove = (object(), xattr_name(room));
    add(3, remove.prop_map(|(object, name)| Op::RemoveXattr { object, name }).boxed());
    let kind = prop_oneof![1 => Just(AclKind::Access), 1 => Just(AclKind::Default)];
    add(6, (object(), kind, acl()).prop_map(|(object, kind, acl)| Op::SetAcl { object, kind, acl }).boxed());
    add(3, object().prop_map(Op::Stat).boxed());
    add(3, object().prop_map(Op::Readdir).boxed());
    add(1, any_path().prop_map(Op::Readlink).boxed());
}

fn op(room: Room) -> impl Strategy<Value = Op> {
    let mut weighted = Vec::new();
    names(&mut weighted);
    contents(&mut weighted, room);
    attributes(&mut weighted, room);
    Union::new_weighted(weighted)
}
