//! A file of a lower layer that is open while something is done to it. What was opened before it is copied up shows what
//! is written afterwards, whichever way it is read; and the lower file stays as it was, which the layers check at the end.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::layers::{Ground, Layers};
use super::mounted::{Engine, Overlay};
use crate::harness::{Need, aligned, drop_file_cache, fill, first_difference, read_range, ready, shell};
use crate::mapped::Mapping;
use crate::posix::script::open;

const SIZE: usize = 1 << 20;
/// What another process writes, and where.
const WRITTEN: std::ops::Range<usize> = 65536..131_072;
/// The read paths; the kernel has but one.
const WAYS: [&str; 7] = [
    "open=zero",
    "open=zero,writeback=on",
    "open=zero,splice=off",
    "passthrough=on",
    "open=handle,passthrough=off",
    "open=handle,passthrough=off,splice=off",
    "open=handle,passthrough=off,splice=on,splice_min=1",
];

/// A mount whose lower layer has one file of [`SIZE`] pattern bytes, `file`. The mount ends before the layers.
struct Scene {
    mount: Overlay,
    layers: Layers,
}

impl Scene {
    fn new(own: &str) -> Self {
        let layers = Layers::simple().options("index=off,redirect_dir=on");
        let lower = layers.lower().join("file");
        fs::write(&lower, fill(0, SIZE)).expect("write");
        fs::set_permissions(&lower, fs::Permissions::from_mode(0o644)).expect("chmod");
        let times = Timestamps {
            last_access: Timespec { tv_sec: 1_000_000, tv_nsec: 1 },
            last_modification: Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 },
        };
        rustix::fs::utimensat(CWD, &lower, &times, AtFlags::empty()).expect("utimensat");
        Self { mount: layers.mount_with(own), layers }
    }

    fn file(&self) -> std::path::PathBuf {
        self.mount.at("file")
    }

    /// Opens the file to read it, and reads some of it, so that the kernel has pages of it.
    fn reader(&self, flags: OFlags) -> File {
        let file = open(&self.file(), OFlags::RDONLY | flags, 0).expect("open");
        if flags.is_empty() {
            let mut buffer = vec![0; 200_000];
            assert_eq!(read_range(&file, &mut buffer, 0).expect("read"), buffer.len());
            assert_eq!(first_difference(&buffer, 0), None);
        }
        file
    }

    fn expect_in_upper(&self, name: &str, expected: &[u8]) {
        let upper = fs::read(self.layers.upper().join(name)).expect("the file in the upper layer");
        assert!(
            upper == expected,
            "{name} in the upper layer: {:?} bytes, not what was written",
            upper.len()
        );
    }
}

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse])
}

/// The file after [`write_by_another`].
fn expected() -> Vec<u8> {
    let mut bytes = fill(0, SIZE);
    bytes[WRITTEN].fill(b'W');
    bytes
}

/// Another process opens the file for reading and writing and writes within it.
fn write_by_another(path: &Path) {
    let (start, length) = (WRITTEN.start, WRITTEN.len());
    let script = format!(
        "head -c {length} /dev/zero | tr '\\0' W |
         dd of=\"$1\" bs=65536 iflag=fullblock oflag=seek_bytes seek={start} conv=notrunc status=none"
    );
    shell(&script, path);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Read,
    Direct,
    Sendfile,
    Mapped,
}

fn whole_by_sendfile(file: &File) -> Vec<u8> {
    let (reader, writer) = rustix::pipe::pipe().expect("pipe");
    let (mut out, mut offset, mut buffer) = (Vec::new(), 0, vec![0; 65536]);
    loop {
        let sent = rustix::fs::sendfile(&writer, file, Some(&mut offset), 65536).expect("sendfile");
        if sent == 0 {
            return out;
        }
        let mut left = sent;
        while left > 0 {
            let got = rustix::io::read(&reader, &mut buffer[..left]).expect("reading the pipe");
            out.extend_from_slice(&buffer[..got]);
            left -= got;
        }
    }
}

fn reader_sees_the_writer(how: How) {
    if !can_run() {
        return;
    }
    for own in WAYS {
        let scene = Scene::new(own);
        if how == How::Mapped && scene.mount.engine() == Engine::Kernel {
            eprintln!(
                "not run: a mapping of a lower file never shows later writes (overlayfs.rst, Non-standard behavior)"
            );
            return;
        }
        let file = scene.reader(if how == How::Direct { OFlags::DIRECT } else { OFlags::empty() });
        let mapping = (how == How::Mapped).then(|| Mapping::new(&file, SIZE).expect("mmap"));
        if let Some(mapping) = &mapping {
            let mut before = vec![0; SIZE];
            mapping.copy(0, &mut before);
            assert_eq!(first_difference(&before, 0), None);
        }
        write_by_another(&scene.file());
        let mut memory = Vec::new();
        let seen = match (how, &mapping) {
            (How::Sendfile, _) => whole_by_sendfile(&file),
            (How::Mapped, Some(mapping)) => {
                let mut seen = vec![0; SIZE];
                mapping.copy(0, &mut seen);
                seen
            }
            _ => {
                let buffer = aligned(&mut memory, SIZE);
                assert_eq!(read_range(&file, buffer, 0).expect("read"), SIZE);
                buffer.to_vec()
            }
        };
        let difference = seen.iter().zip(&expected()).position(|(seen, right)| seen != right);
        assert_eq!((seen.len(), difference), (SIZE, None), "{how:?} with {own:?}");
        scene.expect_in_upper("file", &expected());
    }
}

#[test]
fn a_read_shows_what_another_process_has_written() {
    reader_sees_the_writer(How::Read);
}

#[test]
fn a_direct_read_shows_what_another_process_has_written() {
    reader_sees_the_writer(How::Direct);
}

#[test]
fn sendfile_shows_what_another_process_has_written() {
    reader_sees_the_writer(How::Sendfile);
}

#[test]
fn a_mapping_shows_what_another_process_has_written() {
    reader_sees_the_writer(How::Mapped);
}

#[test]
fn truncation_by_an_open_shows_at_an_older_handle() {
    if !can_run() {
        return;
    }
    for own in WAYS {
        let scene = Scene::new(own);
        let file = scene.reader(OFlags::empty());
        shell("printf short > \"$1\"", &scene.file());
        let mut buffer = vec![0; SIZE];
        let count = read_range(&file, &mut buffer, 0).expect("read");
        assert_eq!((&buffer[..count], file.metadata().expect("fstat").len()), (&b"short"[..], 5), "{own:?}");
        scene.expect_in_upper("file", b"short");
    }
}

#[test]
fn truncation_by_name_shows_at_an_older_handle() {
    if !can_run() {
        return;
    }
    for size in [0, 100_001, SIZE as u64 + 5000] {
        let scene = Scene::new("");
        let file = scene.reader(OFlags::empty());
        nix::unistd::truncate(&scene.file(), i64::try_from(size).expect("small")).expect("truncate");
        let mut expected = fill(0, SIZE);
        expected.resize(usize::try_from(size).expect("small"), 0);
        let mut buffer = vec![1; SIZE * 2];
        let count = read_range(&file, &mut buffer, 0).expect("read");
        assert!(buffer[..count] == expected, "truncated to {size}: {count} bytes are read, or others");
        scene.expect_in_upper("file", &expected);
    }
}

#[test]
fn appending_shows_at_an_older_handle() {
    if !can_run() {
        return;
    }
    for own in WAYS {
        let scene = Scene::new(own);
        let file = scene.reader(OFlags::empty());
        let appending = open(&scene.file(), OFlags::WRONLY | OFlags::APPEND, 0).expect("open");
        assert_eq!(rustix::io::write(&appending, b"tail").expect("append"), 4);
        shell("printf more >> \"$1\"", &scene.file());
        let mut tail = [0; 20];
        let count = read_range(&file, &mut tail, SIZE as u64 - 4).expect("read");
        assert_eq!(
            (&tail[4..count], first_difference(&tail[..4], SIZE as u64 - 4)),
            (&b"tailmore"[..], None)
        );
        let mut expected = fill(0, SIZE);
        expected.extend_from_slice(b"tailmore");
        scene.expect_in_upper("file", &expected);
    }
}

/// A running copy of sleep(1).
struct Sleeper(Child);

impl Sleeper {
    fn start(program: &Path) -> std::io::Result<Self> {
        Command::new(program).arg("60").stdin(Stdio::null()).spawn().map(Self)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if let Err(e) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("ending a program: {e}");
        }
    }
}

/// What opening a running program for writing says, and executing one that is open for writing, and then again.
fn execution(engine: Engine) -> Vec<String> {
    let layers = Layers::simple();
    shell("cp \"$(command -v sleep)\" \"$1\"", &layers.lower().join("program"));
    let mount = layers.mount_by(engine, "");
    let program = mount.at("program");
    let mut answers = Vec::new();
    let mut note = |what: &str, answer: Result<(), Errno>| answers.push(format!("{what}: {answer:?}"));
    let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);

    let running = Sleeper::start(&program).expect("running a lower file");
    let flags = [OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC, OFlags::RDONLY];
    for flags in flags {
        note(&format!("running, open with {flags:?}"), open(&program, flags, 0).map(drop));
    }
    note(
        "running, truncate",
        nix::unistd::truncate(&program, 10).map_err(|e| Errno::from_raw_os_error(e as i32)),
    );
    note("running, chmod", rustix::fs::chmod(&program, rustix::fs::Mode::from_raw_mode(0o711)));
    note("running, once more", Sleeper::start(&program).map(drop).map_err(errno));
    drop(running);
    let writer = open(&program, OFlags::WRONLY, 0);
    note("ended, open to write", writer.as_ref().map(|_| ()).map_err(|e| *e));
    note("open to write, run", Sleeper::start(&program).map(drop).map_err(errno));
    drop(writer);
    note("closed, run", Sleeper::start(&program).map(drop).map_err(errno));
    answers
}

#[test]
fn a_running_program_is_as_busy_as_in_the_kernels() {
    if can_run() {
        assert_eq!(execution(Engine::Kernel), execution(Engine::tested()));
    }
}

#[test]
fn both_names_of_a_linked_lower_file_are_one_file() {
    if !can_run() {
        return;
    }
    let scene = Scene::new("");
    let file = scene.reader(OFlags::empty());
    let before = file.metadata().expect("fstat");
    fs::hard_link(scene.file(), scene.mount.at("linked")).expect("link");
    let [one, other] = ["file", "linked"].map(|name| fs::metadata(scene.mount.at(name)).expect("stat"));
    assert_eq!((one.ino(), one.nlink()), (other.ino(), other.nlink()));
    assert_eq!((one.ino(), one.nlink()), (before.ino(), 2));
    write_by_another(&scene.mount.at("linked"));
    assert!(fs::read(scene.file()).expect("read") == expected(), "a write to one name is read by the other");
    let mut buffer = vec![0; SIZE];
    read_range(&file, &mut buffer, 0).expect("read");
    assert!(buffer == expected(), "and by who had opened it before");
    scene.expect_in_upper("file", &expected());
    scene.expect_in_upper("linked", &expected());
}

#[test]
fn an_open_lower_file_is_renamed_and_remains_one_file() {
    if !can_run() {
        return;
    }
    let scene = Scene::new("");
    let file = scene.reader(OFlags::empty());
    let before = file.metadata().expect("fstat").ino();
    fs::rename(scene.file(), scene.mount.at("renamed")).expect("rename");
    assert!(!scene.file().exists());
    assert_eq!(fs::metadata(scene.mount.at("renamed")).expect("stat").ino(), before);
    assert_eq!(file.metadata().expect("fstat").ino(), before);
    write_by_another(&scene.mount.at("renamed"));
    drop_file_cache(&file);
    let mut buffer = vec![0; SIZE];
    read_range(&file, &mut buffer, 0).expect("read");
    assert!(buffer == expected(), "the handle of before does not show what was written");
    scene.expect_in_upper("renamed", &expected());
}

#[test]
fn an_open_lower_file_is_removed_and_read_on() {
    if !can_run() {
        return;
    }
    for own in WAYS {
        let scene = Scene::new(own);
        let file = scene.reader(OFlags::empty());
        fs::remove_file(scene.file()).expect("unlink");
        fs::write(scene.file(), b"another").expect("a new file of that name");
        drop_file_cache(&file);
        let mut buffer = vec![0; SIZE + 1];
        let count = read_range(&file, &mut buffer, 0).expect("read");
        assert_eq!((count, first_difference(&buffer[..count], 0)), (SIZE, None), "{own:?}");
        assert_eq!(file.metadata().expect("fstat").len(), SIZE as u64);
        assert_eq!(fs::read(scene.file()).expect("read"), b"another");
        scene.expect_in_upper("file", b"another");
    }
}

#[test]
fn attributes_of_an_open_lower_file_change_above_it() {
    if !can_run() {
        return;
    }
    let scene = Scene::new("");
    let (file, path) = (scene.reader(OFlags::empty()), scene.file());
    let number = file.metadata().expect("fstat").ino();
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o4711)).expect("chmod");
    std::os::unix::fs::chown(&path, Some(1001), Some(1002)).expect("chown");
    let times = Timestamps {
        last_access: Timespec { tv_sec: 7, tv_nsec: 8 },
        last_modification: Timespec { tv_sec: -9, tv_nsec: 10 },
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).expect("utimensat");
    rustix::fs::setxattr(&path, "user.given", b"value", XattrFlags::empty()).expect("setxattr");
    let upper = fs::metadata(scene.layers.upper().join("file")).expect("in the upper layer");
    for (which, meta) in [("by handle", file.metadata().expect("fstat")), ("upper", upper)] {
        // chown(2) takes setuid away, from root as well.
        let seen =
            (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), meta.size());
        assert_eq!(seen, (0o711, 1001, 1002, -9, 10, SIZE as u64), "{which}");
    }
    assert_eq!(file.metadata().expect("fstat").ino(), number, "copying up changed the number");
    let mut value = [0; 10];
    let length = rustix::fs::fgetxattr(&file, "user.given", &mut value[..]).expect("fgetxattr");
    assert_eq!(&value[..length], b"value");
    let mut buffer = vec![0; SIZE];
    read_range(&file, &mut buffer, 0).expect("read");
    assert_eq!(first_difference(&buffer, 0), None);
}

#[test]
fn times_survive_copying_up() {
    if !can_run() {
        return;
    }
    // The open itself copies up.
    let scene = Scene::new("open=handle");
    drop(open(&scene.file(), OFlags::RDWR, 0).expect("open"));
    for path in [scene.file(), scene.layers.upper().join("file")] {
        let meta = fs::metadata(&path).expect("stat");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 5), "{path:?}");
    }
}

#[test]
fn many_writers_copy_up_once() {
    if !can_run() {
        return;
    }
    const WRITERS: usize = 8;
    const FILES: usize = 20;
    let layers = Layers::new(Ground::Directory, 1);
    for index in 0..FILES {
        fs::write(layers.lower().join(format!("f{index}")), fill(0, SIZE)).expect("write");
    }
    let mount = layers.mount();
    for index in 0..FILES {
        let path = mount.at(format!("f{index}"));
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = &path;
                scope.spawn(move || {
                    let file = open(path, OFlags::RDWR, 0).expect("open");
                    file.write_all_at(
                        &[b'A' + u8::try_from(writer).expect("few"); 100],
                        writer as u64 * 4096,
                    )
                    .expect("write");
                });
            }
        });
        let bytes = fs::read(&path).expect("read");
        assert_eq!(bytes.len(), SIZE);
        for writer in 0..WRITERS {
            let written = &bytes[writer * 4096..writer * 4096 + 100];
            assert!(
                written.iter().all(|&byte| usize::from(byte - b'A') == writer),
                "writer {writer} lost a write"
            );
        }
        assert_eq!(first_difference(&bytes[40_000..], 40_000), None);
    }
    assert_eq!(
        fs::read_dir(layers.work().join("work")).map_or(0, Iterator::count),
        0,
        "left in the work directory"
    );
}
