//! The daemon is killed in the middle of copying up, renaming, linking and removing. Whatever it was at: after the next
//! mount no file is lost, half copied or back from the dead.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::layers::{Ground, Layers};
use super::peers::leftovers;
use crate::harness::{Need, Random, Watchdog, fill, first_difference, long_run, ready};

const DIRECTORIES: u64 = 4;
const FILES: u64 = 25;

/// What a file holds: its first eight bytes, and how long it is. The rest is the pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Contents {
    version: u64,
    length: usize,
}

impl Contents {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = fill(0, self.length);
        bytes[..8].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// `None` where a file holds something that nobody wrote.
    fn of(bytes: &[u8]) -> Option<Self> {
        let version = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        first_difference(&bytes[8..], 8).is_none().then_some(Self { version, length: bytes.len() })
    }
}

type Tree = BTreeMap<String, Contents>;

#[derive(Clone, Debug)]
enum Op {
    /// Copies a file up for writing, and gives it a version by one write.
    Write(String, u64),
    /// Copies it up without changing what it holds.
    Chmod(String),
    Rename(String, String),
    RenameDirectory(String, String),
    Link(String, String),
    Unlink(String),
    Create(String, Contents),
}

impl Op {
    fn random(random: &mut Random, tree: &Tree, number: u64) -> Self {
        let names: Vec<&String> = tree.keys().collect();
        let index = usize::try_from(random.below(names.len() as u64)).unwrap_or(0);
        let Some(name) = names.get(index).map(|name| (*name).clone()) else {
            return Self::Create(format!("n{number}"), Contents { version: number, length: 5000 });
        };
        let beside = match name.split_once('/') {
            Some((directory, _)) => format!("{directory}/n{number}"),
            None => format!("n{number}"),
        };
        match random.below(17) {
            0..=4 => Self::Write(name, number),
            5 | 6 => Self::Chmod(name),
            7..=9 => Self::Rename(name, beside),
            10 => {
                // Over another file.
                let other = names[usize::try_from(random.below(names.len() as u64)).unwrap_or(0)].clone();
                if other == name || tree[&other] == tree[&name] {
                    Self::Chmod(name)
                } else {
                    Self::Rename(name, other)
                }
            }
            11 => {
                let directory = name.split_once('/').map_or("", |(directory, _)| directory);
                if directory.starts_with('d') {
                    Self::RenameDirectory(directory.into(), format!("d-{number}"))
                } else {
                    Self::Chmod(name)
                }
            }
            12 => Self::Link(name, beside),
            13 | 14 => Self::Unlink(name),
            _ => {
                let length = 8 + usize::try_from(random.below(300_000)).unwrap_or(0);
                Self::Create(beside, Contents { version: number, length })
            }
        }
    }

    fn perform(&self, root: &Path) -> std::io::Result<()> {
        let at = |name: &str| root.join(name);
        match self {
            Self::Write(name, version) => {
                let file = File::options().read(true).write(true).open(at(name))?;
                file.write_all_at(&version.to_le_bytes(), 0)
            }
            Self::Chmod(name) => {
                fs::set_permissions(at(name), std::os::unix::fs::PermissionsExt::from_mode(0o640))
            }
            Self::Rename(from, to) | Self::RenameDirectory(from, to) => fs::rename(at(from), at(to)),
            Self::Link(from, to) => fs::hard_link(at(from), at(to)),
            Self::Unlink(name) => fs::remove_file(at(name)),
            Self::Create(name, contents) => {
                // Written elsewhere and renamed, as careful programs do: a file that is being written may hold anything.
                let draft = at("draft");
                fs::write(&draft, contents.bytes())?;
                fs::rename(draft, at(name))
            }
        }
    }

    /// The tree once it is done. Links are parted by copying up where there is no index: only what was never linked is
    /// written to, see [`Storm::step`].
    fn applied(&self, tree: &Tree) -> Tree {
        let mut tree = tree.clone();
        match self {
            Self::Write(name, version) => tree.get_mut(name).expect("a name").version = *version,
            Self::Chmod(_) => {}
            Self::Rename(from, to) => {
                let contents = tree.remove(from).expect("a name");
                tree.insert(to.clone(), contents);
            }
            Self::RenameDirectory(from, to) => {
                let moved =
                    |name: &String| name.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}"));
                tree = tree
                    .into_iter()
                    .map(|(name, contents)| {
                        let inside = name.starts_with(&format!("{from}/"));
                        (moved(&name).filter(|_| inside).unwrap_or(name), contents)
                    })
                    .collect();
            }
            Self::Link(from, to) => {
                let contents = tree[from];
                tree.insert(to.clone(), contents);
            }
            Self::Unlink(name) => drop(tree.remove(name)),
            Self::Create(name, contents) => drop(tree.insert(name.clone(), *contents)),
        }
        tree
    }
}

/// What is known of the files between two deaths.
struct Storm {
    random: Random,
    number: u64,
    tree: Tree,
    /// Names that share a file with others.
    linked: Vec<String>,
    operations: u64,
}

impl Storm {
    /// Performs operations until one fails, since the daemon is dead, and gives that one.
    fn rage(&mut self, root: &Path, dead: &AtomicBool) -> Op {
        loop {
            self.number += 1;
            let op = Op::random(&mut self.random, &self.tree, self.number);
            let shared = |name: &String| self.linked.contains(name);
            if matches!(&op, Op::Write(name, _) if shared(name)) {
                continue;
            }
            match &op {
                Op::Link(from, to) => self.linked.extend([from.clone(), to.clone()]),
                Op::Rename(from, to) if shared(from) => self.linked.push(to.clone()),
                Op::RenameDirectory(from, to) => {
                    let inside = |name: &String| {
                        name.strip_prefix(&format!("{from}/")).map(|rest| format!("{to}/{rest}"))
                    };
                    let moved: Vec<_> = self.linked.iter().filter_map(inside).collect();
                    self.linked.extend(moved);
                }
                _ => {}
            }
            match op.perform(root) {
                Ok(()) => self.tree = op.applied(&self.tree),
                Err(e) => {
                    // Its death takes a moment to be known: what fails before is a failure.
                    assert!(dead.load(Ordering::SeqCst), "{op:?} failed while the daemon lived: {e}");
                    return op;
                }
            }
            self.operations += 1;
        }
    }

    /// Compares what is there with what must be, but for what `pending` may or may not have done.
    fn settle(&mut self, root: &Path, pending: &Op) {
        let mut seen = Tree::new();
        read_tree(root, "", &mut seen);
        // An unfinished draft is nobody's.
        seen.remove("draft");
        let done = pending.applied(&self.tree);
        if seen != self.tree && seen != done {
            let differs = |name: &&String| {
                seen.get(*name) != self.tree.get(*name) && seen.get(*name) != done.get(*name)
            };
            let names = seen.keys().chain(self.tree.keys()).chain(done.keys());
            let wrong: Vec<_> = names.filter(differs).collect();
            panic!(
                "killed in {pending:?}: neither before nor after it; wrong: {wrong:?}\n{seen:?}\nbefore: {:?}",
                self.tree
            );
        }
        self.tree = seen;
    }
}

fn read_tree(path: &Path, prefix: &str, tree: &mut Tree) {
    for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("listing {path:?}: {e}")) {
        let entry = entry.expect("listing");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("a type").is_dir() {
            read_tree(&entry.path(), &format!("{name}/"), tree);
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap_or_else(|e| panic!("reading {name}: {e}"));
        if name == "draft" {
            continue;
        }
        let contents = Contents::of(&bytes);
        let contents =
            contents.unwrap_or_else(|| panic!("{name}, {} bytes, holds what nobody wrote", bytes.len()));
        tree.insert(name, contents);
    }
}

fn lower_files(layers: &Layers, random: &mut Random) -> Tree {
    let mut tree = Tree::new();
    for directory in 0..DIRECTORIES {
        fs::create_dir(layers.lower().join(format!("d{directory}"))).expect("mkdir");
        for file in 0..FILES {
            let name = format!("d{directory}/f{file}");
            let length = 8 + usize::try_from(random.below(500_000)).expect("small");
            let contents = Contents { version: 0, length };
            fs::write(layers.lower().join(&name), contents.bytes()).expect("write");
            tree.insert(name, contents);
        }
    }
    tree
}

fn storm(rounds: u64, options: &str) {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    let _watchdog = Watchdog::new("a storm of deaths", Duration::from_secs(60 + 10 * rounds));
    let given = std::env::var("SPLICEFS_TESTS_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| u64::from(time.subsec_nanos()) << 8 | 1)
    });
    eprintln!("SPLICEFS_TESTS_SEED={seed}");
    let mut operations = 0;
    let mut random = Random(seed);
    let mut done = 0;
    while done < rounds {
        let layers = Layers::new(Ground::Tmpfs, 1).options(options);
        let tree = lower_files(&layers, &mut random);
        let mut storm = Storm {
            random: Random(random.below(u64::MAX) | 1),
            number: 0,
            tree,
            linked: vec![],
            operations: 0,
        };
        // A few deaths on the same layers: what one leaves behind can be in the way of the next.
        for _ in 0..5 {
            let mount = layers.mount();
            assert_eq!(leftovers(layers.work()), Vec::<PathBuf>::new(), "not swept");
            // By descriptor: once the dead mount is detached its path leads to the directory below.
            let directory = File::open(mount.point()).expect("open");
            let root = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
            let dead = AtomicBool::new(false);
            let pause = Duration::from_micros(500 + random.below(40_000));
            let pending = thread::scope(|scope| {
                let worker = scope.spawn(|| storm.rage(&root, &dead));
                thread::sleep(pause);
                dead.store(true, Ordering::SeqCst);
                mount.kill();
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            let mount = layers.mount();
            storm.settle(mount.point(), &pending);
            mount.unmount();
            layers.unchanged().unwrap_or_else(|difference| panic!("{difference}"));
            done += 1;
        }
        operations += storm.operations;
    }
    eprintln!("{done} deaths in {operations} operations, {options}");
    assert!(operations > rounds, "too little happened: {operations} operations");
}

fn rounds() -> u64 {
    if long_run() { 200 } else { 20 }
}

#[test]
fn nothing_is_lost_when_the_daemon_dies() {
    storm(rounds(), "index=off,redirect_dir=on");
}

#[test]
fn nothing_is_lost_when_the_daemon_dies_with_an_index() {
    storm(rounds(), "index=on,redirect_dir=on");
}
