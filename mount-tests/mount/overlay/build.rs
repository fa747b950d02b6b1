//! Random layers. What a layer holds makes sense above those below it: a whiteout stands only where there is something
//! to merge with. (In a directory that is not merged the kernel lists a whiteout, which then cannot be looked up.)

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, chown, lchown};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::differential::op::{At, Data, Target};
use crate::harness::{ACCESS_ACL, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER, ACL_USER, ACL_USER_OBJ, NO_ID, acl};

/// One name in a layer.
#[derive(Clone)]
pub(crate) struct Item {
    at: At,
    kind: Kind,
    mode: u32,
    owner: u32,
    /// Seconds; nanoseconds are given too.
    modified: i64,
    xattr: Option<&'static str>,
    acl: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    File(Data),
    /// Data in front of and behind a hole of so many bytes.
    Sparse(u64),
    /// Another name of a file in the same layer.
    Link(At),
    Symlink(Target),
    Fifo,
    Directory {
        opaque: bool,
    },
    Whiteout,
    /// A file marked as a whiteout in a directory marked to have such (overlayfs.rst, "Whiteouts and opaque directories").
    MarkedWhiteout,
}

impl Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, kind, mode, owner, modified, xattr, acl } = self;
        write!(f, "{at:?} {kind:?} {mode:04o} of {owner}, {modified}, xattr {xattr:?}, acl {acl}")
    }
}

impl Item {
    /// Whether it is a whiteout by mark. The kernel takes a directory with such ones for empty when it lists it, and not when it
    /// is to be removed.
    pub(crate) fn is_marked(&self) -> bool {
        matches!(self.kind, Kind::MarkedWhiteout)
    }
}

fn path() -> impl Strategy<Value = At> {
    let parents = vec(prop_oneof![6 => Just(0usize), 3 => Just(1), 1 => 2..4usize], 0..=2);
    (parents, 0..4usize).prop_map(|(mut names, last)| {
        names.push(last);
        At(names)
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let length = select(vec![0, 1, 100, 4096, 5000, 70_000]);
    prop_oneof![
        6 => (length, 0..200u8).prop_map(|(length, fill)| Kind::File(Data { length, fill })),
        1 => select(vec![100_000u64, 3 << 20]).prop_map(Kind::Sparse),
        1 => path().prop_map(Kind::Link),
        1 => (0..4usize).prop_map(|name| Kind::Symlink(Target::Beside(name))),
        1 => (0..4usize).prop_map(|name| Kind::Symlink(Target::Above(name))),
        1 => Just(Kind::Fifo),
        7 => prop_oneof![4 => Just(false), 1 => Just(true)].prop_map(|opaque| Kind::Directory { opaque }),
        4 => Just(Kind::Whiteout),
        1 => Just(Kind::MarkedWhiteout),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let mode = prop_oneof![4 => Just(0o644), 4 => Just(0o755), 1 => select(vec![0o777, 0o600, 0o4755, 0o2775, 0o1777])];
    let owner = prop_oneof![4 => Just(0u32), 1 => Just(1001), 1 => Just(1002)];
    let xattr = prop_oneof![3 => Just(None), 1 => select(vec![Some("user.a"), Some("trusted.a"), Some("security.a")])];
    let modified = select(vec![1_000_000_000i64, 1_100_000_000, 5, -1, -100_000]);
    let acl = prop_oneof![8 => Just(false), 1 => Just(true)];
    (path(), kind(), mode, owner, modified, xattr, acl).prop_map(
        |(at, kind, mode, owner, modified, xattr, acl)| {
            // The mode of a directory lets others in, or most steps of others would fail.
            let mode = if matches!(kind, Kind::Directory { .. }) { mode | 0o755 } else { mode };
            Item { at, kind, mode, owner, modified, xattr, acl }
        },
    )
}

/// One to five layers, topmost first.
pub(crate) fn stack() -> impl Strategy<Value = Vec<Vec<Item>>> {
    vec(vec(item(), 0..14), 1..=5)
}

/// What the layers so far show.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Directory { opaque: bool },
    Other,
    Whiteout,
}

type Names = BTreeMap<Vec<usize>, Shown>;

fn is_directory(shown: Option<&Shown>) -> bool {
    matches!(shown, Some(Shown::Directory { .. }))
}

/// Puts `layer` over what is below.
fn merge(below: &mut Names, layer: &Names) {
    for (path, shown) in layer {
        if *shown == (Shown::Directory { opaque: false }) && is_directory(below.get(path)) {
            continue;
        }
        below.retain(|other, _| !other.starts_with(path));
        if *shown != Shown::Whiteout {
            below.insert(path.clone(), *shown);
        }
    }
}

/// Builds layers, each below its `t`, where the sequences act. `prefix` is that of the overlay's own attributes.
pub(crate) fn build(stack: &[Vec<Item>], lowers: &[std::path::PathBuf], prefix: &str) {
    let mut below = Names::new();
    for (items, lower) in stack.iter().zip(lowers).rev() {
        let root = lower.join("t");
        fs::create_dir(&root).expect("mkdir");
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o777)).expect("chmod");
        let mut layer = Layer { root: &root, prefix, below: &below, here: Names::new(), times: vec![] };
        layer.here.insert(vec![], Shown::Directory { opaque: false });
        for item in items {
            layer.add(item);
        }
        layer.finish();
        let here = layer.here;
        merge(&mut below, &here);
    }
}

struct Layer<'a> {
    root: &'a Path,
    prefix: &'a str,
    below: &'a Names,
    here: Names,
    /// Times are given last, since making something in a directory changes the directory's.
    times: Vec<(Vec<usize>, i64)>,
}

impl Layer<'_> {
    fn path(&self, names: &[usize]) -> std::path::PathBuf {
        self.root.join(At(names.to_vec()).relative())
    }

    /// Directories on the way to `names`, made where they are missing. False where something else is in the way.
    fn parents(&mut self, names: &[usize]) -> bool {
        for length in 1..names.len() {
            let parent = &names[..length];
            match self.here.get(parent) {
                Some(Shown::Directory { .. }) => {}
                Some(_) => return false,
                None => {
                    fs::create_dir(self.path(parent)).expect("mkdir");
                    rustix::fs::chmod(self.path(parent), Mode::from_raw_mode(0o755)).expect("chmod");
                    self.here.insert(parent.to_vec(), Shown::Directory { opaque: false });
                }
            }
        }
        true
    }

    /// Whether the directory of `names` is merged with one below.
    fn merges(&self, names: &[usize]) -> bool {
        let opaque = |parent: &[usize]| self.here.get(parent) == Some(&Shown::Directory { opaque: true });
        let parent = &names[..names.len() - 1];
        let below = parent.is_empty() || is_directory(self.below.get(parent));
        // The lowest layer is not above anything.
        !self.below.is_empty() && below && !(1..names.len()).any(|length| opaque(&names[..length]))
    }

    fn mark(&self, path: &Path, name: &str, value: &[u8]) {
        let name = format!("{}overlay.{name}", self.prefix);
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).expect("marking");
    }

    fn add(&mut self, item: &Item) {
        let names = &item.at.0;
        if self.here.contains_key(names) || !self.parents(names) {
            return;
        }
        let path = self.path(names);
        let mut shown = Shown::Other;
        match &item.kind {
            Kind::File(data) => fs::write(&path, data.bytes()).expect("write"),
            Kind::Sparse(hole) => {
                let file = File::create(&path).expect("create");
                let data = Data { length: 5000, fill: 7 }.bytes();
                file.write_all_at(&data, 0).and_then(|()| file.write_all_at(&data, *hole)).expect("write");
            }
            Kind::Link(to) => {
                if self.here.get(&to.0) != Some(&Shown::Other)
                    || fs::hard_link(self.path(&to.0), &path).is_err()
                {
                    return;
                }
                self.here.insert(names.clone(), Shown::Other);
                return;
            }
            Kind::Symlink(target) => std::os::unix::fs::symlink(target.text(), &path).expect("symlink"),
            Kind::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).expect("mknod"),
            Kind::Directory { opaque } => {
                fs::create_dir(&path).expect("mkdir");
                if *opaque {
                    self.mark(&path, "opaque", b"y");
                }
                shown = Shown::Directory { opaque: *opaque };
            }
            Kind::Whiteout | Kind::MarkedWhiteout => {
                if !self.merges(names) {
                    return;
                }
                self.whiteout(&path, matches!(item.kind, Kind::MarkedWhiteout));
                self.here.insert(names.clone(), Shown::Whiteout);
                return;
            }
        }
        self.here.insert(names.clone(), shown);
        self.attributes(item, &path);
        self.times.push((names.clone(), item.modified));
    }

    fn whiteout(&self, path: &Path, marked: bool) {
        if !marked {
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).expect("mknod");
            return;
        }
        fs::write(path, b"").expect("write");
        self.mark(path, "whiteout", b"");
        self.mark(path.parent().expect("a directory"), "opaque", b"x");
    }

    fn attributes(&self, item: &Item, path: &Path) {
        let link = matches!(item.kind, Kind::Symlink(_));
        if link {
            lchown(path, Some(item.owner), Some(item.owner)).expect("lchown");
            return;
        }
        chown(path, Some(item.owner), Some(item.owner)).expect("chown");
        rustix::fs::chmod(path, Mode::from_raw_mode(item.mode)).expect("chmod");
        let fifo = matches!(item.kind, Kind::Fifo);
        if let Some(name) = item.xattr.filter(|name| !(fifo && name.starts_with("user."))) {
            rustix::fs::setxattr(path, name, b"lower", XattrFlags::empty()).expect("setxattr");
        }
        if item.acl {
            // For the owner, user 1001, the group, the mask and others.
            let acl = acl(&[
                (ACL_USER_OBJ, 7, NO_ID),
                (ACL_USER, 7, 1001),
                (ACL_GROUP_OBJ, 5, NO_ID),
                (ACL_MASK, 7, NO_ID),
                (ACL_OTHER, 5, NO_ID),
            ]);
            rustix::fs::setxattr(path, ACCESS_ACL, &acl, XattrFlags::empty()).expect("an ACL");
        }
    }

    /// Times long ago, so that a time that was not kept shows, and reading would show in the time of access.
    fn finish(&mut self) {
        self.times.push((vec![], 1_200_000_000));
        let paths = std::mem::take(&mut self.times);
        for (names, seconds) in paths {
            let access = Timespec { tv_sec: 900_000_000, tv_nsec: 3 };
            let times = Timestamps {
                last_access: access,
                last_modification: Timespec { tv_sec: seconds, tv_nsec: 123_456_789 },
            };
            rustix::fs::utimensat(CWD, self.path(&names), &times, AtFlags::SYMLINK_NOFOLLOW)
                .expect("utimensat");
        }
    }
}
