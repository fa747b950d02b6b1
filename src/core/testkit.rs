//! The conformance suite for backends: random operations on a backend and on a model of a file system, in process and
//! without FUSE; both must answer alike.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

use crate::{
    Backend, Caller, Cookie, CreateFlags, Errno, Error, FileKind, Make, Name, OpenFlags, ReadPlan,
    RenameFlags, Result, Segment, SetAttr, Span, WriteMode,
};

/// The bytes of a plan, as reading and zero-filling gives them; what follows an extent that ends early is left out.
///
/// # Panics
/// Where an extent cannot be read.
pub fn execute(plan: &ReadPlan<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in plan.segments() {
        match segment {
            Segment::Zeros(len) => all.resize(all.len() + len, 0),
            Segment::Bytes(bytes) => all.extend_from_slice(bytes),
            Segment::File(extent) => {
                let mut bytes = vec![0; extent.len];
                let n =
                    rustix::io::pread(extent.fd, &mut bytes, extent.offset).expect("an extent can be read");
                all.extend_from_slice(&bytes[..n]);
                if n < extent.len {
                    return all;
                }
            }
        }
    }
    all
}

/// A path of components `a`, `b`, `c`: few names, so that operations meet.
type Path = Vec<u8>;

/// An operation of the suite.
#[derive(Clone, Debug)]
enum Op {
    Create(Path),
    Mkdir(Path),
    Symlink(Path),
    Write(Path, u64, Vec<u8>),
    Truncate(Path, u64),
    Read(Path, Span),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path, u32),
    Link(Path, Path),
    List(Path),
    SetXattr(Path, Vec<u8>),
    GetXattr(Path),
}

fn path() -> impl Strategy<Value = Path> {
    proptest::collection::vec(0u8..3, 1..=3)
}

/// Past the size from which a backend may treat holes and large files differently.
const REACH: u64 = 300_000;

fn op() -> impl Strategy<Value = Op> {
    let bytes = || proptest::collection::vec(1u8.., 0..600);
    let flags =
        prop_oneof![3 => Just(0), 1 => Just(libc::RENAME_NOREPLACE), 1 => Just(libc::RENAME_EXCHANGE)];
    prop_oneof![
        4 => path().prop_map(Op::Create),
        4 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Symlink),
        4 => (path(), 0..REACH, bytes()).prop_map(|(p, at, b)| Op::Write(p, at, b)),
        2 => (path(), 0..REACH).prop_map(|(p, len)| Op::Truncate(p, len)),
        4 => (path(), 0..REACH, 0..200_000usize).prop_map(|(p, offset, len)| Op::Read(p, Span { offset, len })),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        4 => (path(), path(), flags).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => path().prop_map(Op::List),
        1 => (path(), bytes()).prop_map(|(p, b)| Op::SetXattr(p, b)),
        1 => path().prop_map(Op::GetXattr),
    ]
}

/// What an operation answers, in a form that a model can give as well.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    Done,
    Bytes(Vec<u8>),
    Names(BTreeMap<Vec<u8>, FileKind>),
    Attr { kind: FileKind, size: u64, nlink: u32 },
    Failed(Errno),
}

/// A node of the model.
#[derive(Clone, Debug)]
enum Model {
    Directory(BTreeMap<u8, usize>),
    File { bytes: Vec<u8>, xattr: Option<Vec<u8>> },
    Symlink,
}

/// A file system that is nothing but its rules.
struct Reference(Vec<Model>);

type Answered<T> = std::result::Result<T, Errno>;

impl Reference {
    fn new() -> Self {
        Self(vec![Model::Directory(BTreeMap::new())])
    }

    fn children(&self, at: usize) -> Answered<&BTreeMap<u8, usize>> {
        match &self.0[at] {
            Model::Directory(children) => Ok(children),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn children_mut(&mut self, at: usize) -> &mut BTreeMap<u8, usize> {
        match &mut self.0[at] {
            Model::Directory(children) => children,
            other => panic!("{other:?} is a parent"),
        }
    }

    /// The directory a path ends in, and its last component.
    fn parent(&self, path: &[u8]) -> Answered<(usize, u8)> {
        let (last, way) = path.split_last().expect("a path has components");
        let parent =
            way.iter().try_fold(0, |at, name| self.children(at)?.get(name).copied().ok_or(Errno::ENOENT))?;
        self.children(parent)?;
        Ok((parent, *last))
    }

    fn find(&self, path: &[u8]) -> Answered<usize> {
        let (parent, name) = self.parent(path)?;
        self.children(parent)?.get(&name).copied().ok_or(Errno::ENOENT)
    }

    fn file(&mut self, path: &[u8]) -> Answered<(&mut Vec<u8>, &mut Option<Vec<u8>>)> {
        let at = self.find(path)?;
        match &mut self.0[at] {
            Model::File { bytes, xattr } => Ok((bytes, xattr)),
            // The suite asks a backend to open regular files only, as the kernel does.
            _ => Err(Errno::EISDIR),
        }
    }

    fn add(&mut self, path: &[u8], node: Model) -> Answered<Answer> {
        let (parent, name) = self.parent(path)?;
        if self.children(parent)?.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        self.0.push(node);
        let at = self.0.len() - 1;
        self.children_mut(parent).insert(name, at);
        self.attr(at)
    }

    fn attr(&self, at: usize) -> Answered<Answer> {
        let names = self.0.iter().filter_map(|node| match node {
            Model::Directory(children) => Some(children.values().filter(|child| **child == at).count()),
            _ => None,
        });
        let nlink = u32::try_from(names.sum::<usize>()).expect("few names");
        Ok(match &self.0[at] {
            Model::Directory(_) => Answer::Attr { kind: FileKind::Directory, size: 0, nlink: 0 },
            Model::Symlink => Answer::Attr { kind: FileKind::Symlink, size: 6, nlink },
            Model::File { bytes, .. } => {
                Answer::Attr { kind: FileKind::Regular, size: bytes.len() as u64, nlink }
            }
        })
    }

    /// The rules of rename(2), in the order in which the kernel applies them (fs/namei.c, vfs_rename).
    fn rename(&mut self, from: &[u8], to: &[u8], flags: u32) -> Answered<Answer> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let moved = self.children(from_dir)?.get(&from_name).copied().ok_or(Errno::ENOENT)?;
        let target = self.children(to_dir)?.get(&to_name).copied();
        if flags == libc::RENAME_NOREPLACE && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags == libc::RENAME_EXCHANGE && target.is_none() {
            return Err(Errno::ENOENT);
        }
        if self.contains(moved, to_dir) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target {
            if self.contains(target, from_dir) {
                return Err(if flags == libc::RENAME_EXCHANGE { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            if moved == target {
                return Ok(Answer::Done);
            }
            if flags == libc::RENAME_EXCHANGE {
                self.children_mut(from_dir).insert(from_name, target);
                self.children_mut(to_dir).insert(to_name, moved);
                return Ok(Answer::Done);
            }
            match (&self.0[moved], &self.0[target]) {
                (Model::Directory(_), Model::Directory(children)) if !children.is_empty() => {
                    return Err(Errno::ENOTEMPTY);
                }
                (Model::Directory(_), Model::Directory(_)) => {}
                (Model::Directory(_), _) => return Err(Errno::ENOTDIR),
                (_, Model::Directory(_)) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        self.children_mut(from_dir).remove(&from_name);
        self.children_mut(to_dir).insert(to_name, moved);
        Ok(Answer::Done)
    }

    /// Whether `inner` is `outer` or lies under it.
    fn contains(&self, outer: usize, inner: usize) -> bool {
        outer == inner
            || self.children(outer).is_ok_and(|children| children.values().any(|c| self.contains(*c, inner)))
    }

    fn apply(&mut self, op: &Op) -> Answered<Answer> {
        match op {
            Op::Create(p) => self.add(p, Model::File { bytes: Vec::new(), xattr: None }),
            Op::Mkdir(p) => self.add(p, Model::Directory(BTreeMap::new())),
            Op::Symlink(p) => self.add(p, Model::Symlink),
            Op::Write(p, at, new) => {
                let bytes = self.file(p)?.0;
                let start = usize::try_from(*at).expect("within reach");
                if !new.is_empty() {
                    bytes.resize(bytes.len().max(start + new.len()), 0);
                    bytes[start..start + new.len()].copy_from_slice(new);
                }
                self.attr(self.find(p)?)
            }
            Op::Truncate(p, len) => {
                self.file(p)?.0.resize(usize::try_from(*len).expect("within reach"), 0);
                self.attr(self.find(p)?)
            }
            Op::Read(p, span) => {
                let bytes = self.file(p)?.0;
                let start = usize::try_from(span.offset).expect("within reach").min(bytes.len());
                Ok(Answer::Bytes(bytes[start..bytes.len().min(start + span.len)].to_vec()))
            }
            Op::Unlink(p) => match &self.0[self.find(p)?] {
                Model::Directory(_) => Err(Errno::EISDIR),
                _ => self.remove(p),
            },
            Op::Rmdir(p) => match &self.0[self.find(p)?] {
                Model::Directory(children) if children.is_empty() => self.remove(p),
                Model::Directory(_) => Err(Errno::ENOTEMPTY),
                _ => Err(Errno::ENOTDIR),
            },
            Op::Rename(from, to, flags) => self.rename(from, to, *flags),
            Op::Link(from, to) => self.link(from, to),
            Op::List(p) => {
                let children = self.children(self.find(p)?)?;
                let kinds = children.iter().map(|(name, at)| match self.attr(*at) {
                    Ok(Answer::Attr { kind, .. }) => (name_of(*name), kind),
                    other => panic!("{other:?}"),
                });
                Ok(Answer::Names(kinds.collect()))
            }
            Op::SetXattr(p, value) => {
                *self.file(p)?.1 = Some(value.clone());
                Ok(Answer::Done)
            }
            Op::GetXattr(p) => self.file(p)?.1.clone().map(Answer::Bytes).ok_or(Errno::ENODATA),
        }
    }

    fn remove(&mut self, path: &[u8]) -> Answered<Answer> {
        let (parent, name) = self.parent(path)?;
        self.children_mut(parent).remove(&name);
        Ok(Answer::Done)
    }

    fn link(&mut self, from: &[u8], to: &[u8]) -> Answered<Answer> {
        let node = self.find(from)?;
        let (parent, name) = self.parent(to)?;
        if self.children(parent)?.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        if matches!(self.0[node], Model::Directory(_)) {
            return Err(Errno::EPERM);
        }
        self.children_mut(parent).insert(name, node);
        self.attr(node)
    }
}

fn name_of(component: u8) -> Vec<u8> {
    vec![b'a' + component]
}

fn name(component: u8) -> Name {
    Name::new(&name_of(component)).expect("a letter is a name")
}

/// The backend, driven by paths as the kernel drives it by lookups.
struct Driver<'b, B: Backend>(&'b B);

impl<B: Backend> Driver<'_, B> {
    fn parent(&self, path: &[u8]) -> Result<(Arc<B::Node>, Name)> {
        let (last, way) = path.split_last().expect("a path has components");
        let mut at = self.0.root();
        for component in way {
            at = self.0.lookup(&at, &name(*component))?.node;
            if self.0.getattr(&at, None)?.kind() != FileKind::Directory {
                return Err(Errno::ENOTDIR.into());
            }
        }
        Ok((at, name(*last)))
    }

    fn find(&self, path: &[u8]) -> Result<Arc<B::Node>> {
        let (parent, name) = self.parent(path)?;
        Ok(self.0.lookup(&parent, &name)?.node)
    }

    fn attr(&self, node: &Arc<B::Node>) -> Result<Answer> {
        let attr = self.0.getattr(node, None)?;
        let directory = attr.kind() == FileKind::Directory;
        let (size, nlink) = if directory { (0, 0) } else { (attr.size, attr.nlink) };
        Ok(Answer::Attr { kind: attr.kind(), size, nlink })
    }

    fn open(&self, path: &[u8], flags: i32) -> Result<(Arc<B::Node>, B::File)> {
        let node = self.find(path)?;
        if self.0.getattr(&node, None)?.kind() != FileKind::Regular {
            return Err(Errno::EISDIR.into());
        }
        let file = self.0.open(&Caller::DAEMON, &node, OpenFlags(flags))?.file;
        Ok((node, file))
    }

    fn make(&self, path: &[u8], what: Make<'_>) -> Result<Answer> {
        let (parent, name) = self.parent(path)?;
        self.attr(&self.0.make(&Caller::DAEMON, &parent, &name, what)?.node)
    }

    fn list(&self, path: &[u8]) -> Result<Answer> {
        let node = self.find(path)?;
        if self.0.getattr(&node, None)?.kind() != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        let dir = self.0.opendir(&node)?;
        let mut names = BTreeMap::new();
        let mut from = Cookie::START;
        // One entry a call: the cookies must lead through the whole directory.
        loop {
            let mut taken = None;
            self.0.read_dir(&dir, from, 4096, &mut |entry| {
                if taken.is_some() {
                    return ControlFlow::Break(());
                }
                taken = Some((entry.name.to_vec(), entry.kind, entry.next));
                ControlFlow::Continue(())
            })?;
            let Some((name, kind, next)) = taken else { return Ok(Answer::Names(names)) };
            if name != b"." && name != b".." {
                names.insert(name, kind);
            }
            from = next;
        }
    }

    fn apply(&self, op: &Op) -> Result<Answer> {
        const XATTR: &std::ffi::CStr = c"user.conformance";
        match op {
            Op::Create(p) => {
                let (parent, name) = self.parent(p)?;
                let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: true };
                let (entry, _) = self.0.create(&Caller::DAEMON, &parent, &name, 0o644, flags)?;
                self.attr(&entry.node)
            }
            Op::Mkdir(p) => self.make(p, Make::Directory(0o755)),
            Op::Symlink(p) => self.make(p, Make::Symlink(b"target")),
            Op::Write(p, at, bytes) => {
                let (node, file) = self.open(p, libc::O_WRONLY)?;
                let written = self.0.write(&Caller::DAEMON, &file, *at, bytes, WriteMode::default())?;
                assert_eq!(written, bytes.len(), "nothing is short of room");
                self.attr(&node)
            }
            Op::Truncate(p, len) => {
                let (node, file) = self.open(p, libc::O_RDWR)?;
                let change = SetAttr { size: Some(*len), ..SetAttr::default() };
                self.0.setattr(&Caller::DAEMON, &node, Some(&file), &change)?;
                self.attr(&node)
            }
            Op::Read(p, span) => {
                let (_, file) = self.open(p, libc::O_RDONLY)?;
                let mut bytes = None;
                self.0.plan_read(&file, *span, &mut |plan| {
                    let first = execute(plan);
                    assert_eq!(execute(plan), first, "a plan can be executed twice");
                    assert!(bytes.replace(first).is_none(), "one read is one plan");
                })?;
                Ok(Answer::Bytes(bytes.expect("a plan, or an error")))
            }
            Op::Unlink(p) | Op::Rmdir(p) => {
                let (parent, name) = self.parent(p)?;
                let remove = if matches!(op, Op::Unlink(_)) { B::unlink } else { B::rmdir };
                remove(self.0, &parent, &name).map(|()| Answer::Done)
            }
            Op::Rename(from, to, flags) => {
                let (from, to) = (self.parent(from)?, self.parent(to)?);
                self.0
                    .rename(&Caller::DAEMON, (&from.0, &from.1), (&to.0, &to.1), RenameFlags(*flags))
                    .map(|()| Answer::Done)
            }
            Op::Link(from, to) => {
                let node = self.find(from)?;
                let (parent, name) = self.parent(to)?;
                self.attr(&self.0.link(&node, &parent, &name)?.node)
            }
            Op::List(p) => self.list(p),
            Op::SetXattr(p, value) => {
                let (node, _) = self.open(p, libc::O_RDONLY)?;
                let flags = crate::XattrFlags { flags: 0, kill_sgid: false };
                self.0.setxattr(&Caller::DAEMON, &node, XATTR, value, flags).map(|()| Answer::Done)
            }
            Op::GetXattr(p) => {
                let (node, _) = self.open(p, libc::O_RDONLY)?;
                self.0.getxattr(&node, XATTR, 4096).map(Answer::Bytes)
            }
        }
    }
}

/// Runs `cases` random sequences of operations on backends that `empty` makes, and on the model.
///
/// # Panics
/// Where the two differ, with the shortest sequence that shows it.
pub fn conformance<B: Backend, T>(cases: u32, empty: impl Fn() -> (B, T)) {
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let run = |ops: Vec<Op>| -> TestCaseResult {
        let (backend, _kept) = empty();
        let (driver, mut reference) = (Driver(&backend), Reference::new());
        for (i, op) in ops.iter().enumerate() {
            let expected = reference.apply(op).unwrap_or_else(Answer::Failed);
            let got = driver.apply(op).unwrap_or_else(|e: Error| Answer::Failed(e.errno()));
            prop_assert!(
                got == expected,
                "operation {}: {:?}: got {:.300?}, expected {:.300?}",
                i,
                op,
                got,
                expected
            );
        }
        Ok(())
    };
    if let Err(failure) = runner.run(&proptest::collection::vec(op(), 1..60), run) {
        panic!("{failure}");
    }
}
