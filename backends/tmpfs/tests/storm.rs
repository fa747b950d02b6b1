//! Many threads change one tree. Nothing locks up, and what is left is a tree whose counts are right.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use splicefs_core::{
    Backend, Caller, Cookie, CreateFlags, FileKind, Identified, Make, Name, NodeId, OpenFlags, RenameFlags,
    WriteMode,
};
use splicefs_tmpfs::{Atime, Node, Options, Tmpfs};

const THREADS: u64 = 8;
const OPERATIONS: u64 = 6000;
const INODES: u64 = 200;
const PAGES: u64 = 300;

fn fs() -> Tmpfs {
    let (pages, inodes) = (NonZeroU64::new(PAGES), NonZeroU64::new(INODES));
    let options =
        Options { pages, inodes, mode: 0o1777, uid: 0, gid: 0, inode32: false, atime: Atime::Relative };
    Tmpfs::new(&options).unwrap()
}

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn name(random: &mut Random) -> Name {
    Name::new(&[b'a' + u8::try_from(random.below(4)).unwrap()]).unwrap()
}

/// A directory up to four levels down, by names that may lead nowhere.
fn somewhere(fs: &Tmpfs, random: &mut Random) -> Arc<Node> {
    let mut at = fs.root();
    for _ in 0..random.below(5) {
        match fs.lookup(&at, &name(random)) {
            Ok(entry) if entry.attr.kind() == FileKind::Directory => at = entry.node,
            _ => break,
        }
    }
    at
}

/// Does something. Most of it fails, as it should: the names are taken, missing, of the wrong kind, or there is no room.
fn act(fs: &Tmpfs, random: &mut Random) {
    let caller = Caller::DAEMON;
    let (dir, entry) = (somewhere(fs, random), name(random));
    let done = match random.below(8) {
        0 | 1 => fs.make(&caller, &dir, &entry, Make::Directory(0o755)).map(drop),
        2 => {
            let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: false };
            fs.create(&caller, &dir, &entry, 0o644, flags).and_then(|(_, opened)| {
                let (at, len) = (random.below(200_000), random.below(90_000));
                let bytes = vec![7; usize::try_from(len).unwrap()];
                fs.write(&caller, &opened.file, at, &bytes, WriteMode::default()).map(drop)
            })
        }
        3 => fs.unlink(&dir, &entry),
        4 => fs.rmdir(&dir, &entry),
        5 => fs
            .lookup(&dir, &entry)
            .and_then(|found| fs.link(&found.node, &somewhere(fs, random), &name(random)).map(drop)),
        _ => {
            let flags = [0, 0, libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE, libc::RENAME_WHITEOUT];
            let flags = flags[usize::try_from(random.below(5)).unwrap()];
            let to = somewhere(fs, random);
            fs.rename(&caller, (&dir, &entry), (&to, &name(random)), RenameFlags(flags))
        }
    };
    if let Err(e) = done {
        assert_ne!(e.errno().raw(), libc::EIO, "{e}");
    }
}

/// What a walk of the whole tree finds.
#[derive(Default)]
struct Census {
    directories: u64,
    /// Number of names, and of links as the file says, by node.
    files: HashMap<NodeId, (u32, u32)>,
    blocks: HashMap<NodeId, u64>,
}

fn count(fs: &Tmpfs, dir: &Arc<Node>, census: &mut Census) {
    census.directories += 1;
    let mut names = Vec::new();
    fs.read_dir(&fs.opendir(dir).unwrap(), Cookie::START, 0, &mut |entry| {
        names.extend(Name::new(entry.name).ok());
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut below = 0;
    for name in names {
        let entry = fs.lookup(dir, &name).unwrap();
        if entry.attr.kind() == FileKind::Directory {
            below += 1;
            count(fs, &entry.node, census);
        } else {
            let id = entry.node.id();
            census.files.entry(id).or_insert((0, entry.attr.nlink)).0 += 1;
            census.blocks.insert(id, entry.attr.blocks);
        }
    }
    assert_eq!(fs.getattr(dir, None).unwrap().nlink, 2 + below, "of {dir:?}");
}

/// Removes everything, from the leaves up.
fn clear(fs: &Tmpfs, dir: &Arc<Node>) {
    let mut names = Vec::new();
    fs.read_dir(&fs.opendir(dir).unwrap(), Cookie::START, 0, &mut |entry| {
        names.extend(Name::new(entry.name).ok());
        ControlFlow::Continue(())
    })
    .unwrap();
    for name in names {
        let entry = fs.lookup(dir, &name).unwrap();
        if entry.attr.kind() == FileKind::Directory {
            clear(fs, &entry.node);
            fs.rmdir(dir, &name).unwrap();
        } else {
            fs.unlink(dir, &name).unwrap();
        }
    }
}

#[test]
fn a_tree_stays_a_tree() {
    let (done, finished) = mpsc::channel();
    let fs = Arc::new(fs());
    for seed in 1..=THREADS {
        let (fs, done) = (fs.clone(), done.clone());
        std::thread::spawn(move || {
            let mut random = Random(seed * 0x9e37_79b9);
            for _ in 0..OPERATIONS {
                act(&fs, &mut random);
                let st = fs.statfs(&fs.root()).unwrap();
                assert!(st.bfree <= st.blocks && st.ffree <= st.files, "{st:?}");
            }
            done.send(()).unwrap();
        });
    }
    drop(done);
    for _ in 0..THREADS {
        // A thread that panicked has said why; one that waits for ever is a deadlock.
        finished.recv_timeout(Duration::from_secs(120)).expect("every thread comes to its end");
    }
    let mut census = Census::default();
    count(&fs, &fs.root(), &mut census);
    for (id, (names, links)) in &census.files {
        assert_eq!(names, links, "of node {id}");
    }
    let names: u64 = census.files.values().map(|(names, _)| u64::from(*names)).sum();
    let st = fs.statfs(&fs.root()).unwrap();
    assert_eq!(
        st.files - st.ffree,
        census.directories + names,
        "each name is an inode, as the kernel counts"
    );
    assert_eq!((st.blocks - st.bfree) * 8, census.blocks.values().sum::<u64>());
    clear(&fs, &fs.root());
    let st = fs.statfs(&fs.root()).unwrap();
    assert_eq!((st.blocks - st.bfree, st.files - st.ffree), (0, 1), "the root alone is left");
}

#[test]
fn a_tree_deeper_than_a_stack_goes_without_a_fall() {
    let options = Options {
        pages: None,
        inodes: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
        inode32: true,
        atime: Atime::Never,
    };
    let fs = Tmpfs::new(&options).unwrap();
    let name = Name::new(b"d").unwrap();
    let mut at = fs.root();
    for _ in 0..200_000 {
        at = fs.make(&Caller::DAEMON, &at, &name, Make::Directory(0o755)).unwrap().node;
    }
    drop(at);
    drop(fs);
}

fn numbered(n: u64) -> Name {
    Name::new(n.to_string().as_bytes()).unwrap()
}

/// A file system whose root holds the files 0 to 99, made in this order.
fn hundred_files() -> Tmpfs {
    let fs = fs();
    for n in 0..100 {
        fs.make(&Caller::DAEMON, &fs.root(), &numbered(n), Make::Node(0o644, 0)).unwrap();
    }
    fs
}

#[test]
fn a_walk_that_renames_what_it_meets_comes_to_its_end() {
    let fs = hundred_files();
    let root = fs.root();
    let dir = fs.opendir(&root).unwrap();
    let mut seen = Vec::new();
    fs.read_dir(&dir, Cookie::START, 0, &mut |entry| {
        if let Ok(name) = Name::new(entry.name) {
            let new = numbered(1000 + seen.len() as u64);
            fs.rename(&Caller::DAEMON, (&root, &name), (&root, &new), RenameFlags(0)).unwrap();
            seen.push(name);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, (0..100).map(numbered).collect::<Vec<_>>(), "each once, in the order of creation");
}

#[test]
fn a_walk_goes_on_where_it_stood_whatever_comes_and_goes() {
    let fs = hundred_files();
    let root = fs.root();
    let dir = fs.opendir(&root).unwrap();
    let (mut from, mut seen) = (Cookie::START, Vec::new());
    for round in 0.. {
        let mut taken = 0;
        let before = seen.len();
        fs.read_dir(&dir, from, 0, &mut |entry| {
            if taken == 7 {
                return ControlFlow::Break(());
            }
            taken += 1;
            from = entry.next;
            seen.extend(Name::new(entry.name).ok());
            ControlFlow::Continue(())
        })
        .unwrap();
        if taken == 0 {
            break;
        }
        // What has been listed goes, and something else comes.
        for name in &seen[before..] {
            fs.unlink(&root, name).unwrap();
        }
        fs.make(&Caller::DAEMON, &root, &numbered(10_000 + round), Make::Directory(0o755)).unwrap();
    }
    assert_eq!(seen, (0..100).map(numbered).collect::<Vec<_>>());
}
