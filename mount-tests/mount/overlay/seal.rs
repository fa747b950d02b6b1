//! Everything that must not change in a lower layer, each node as a line.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// A lower layer as it was.
pub(crate) struct Seal {
    pub(crate) lines: Vec<String>,
}

impl Seal {
    /// Names, numbers, types, modes, owners, link counts, sizes, times, attributes and contents. Root's layers are
    /// not even marked as read: they are read through private mounts with noatime, or with `O_NOATIME`.
    pub(crate) fn of(root: &Path, atime: bool) -> Self {
        let mut seal = Self { lines: Vec::new() };
        seal.walk(root, ".", atime);
        seal
    }

    fn walk(&mut self, path: &Path, name: &str, atime: bool) {
        let open = |flags| {
            let flags = flags | OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::open(path, flags, Mode::empty()).unwrap_or_else(|e| panic!("opening {path:?}: {e}"))
        };
        let stat = rustix::fs::lstat(path).unwrap_or_else(|e| panic!("stat of {path:?}: {e}"));
        let kind = FileType::from_raw_mode(stat.st_mode);
        let body = match kind {
            FileType::RegularFile => contents(&File::from(open(OFlags::empty()))),
            FileType::Symlink => format!("{:?}", std::fs::read_link(path).expect("readlink")),
            _ => String::new(),
        };
        // There is no reading of a link without a trace, also not here.
        let atime_shown = atime && kind != FileType::Symlink;
        let atime_shown =
            if atime_shown { format!("{}.{:09}", stat.st_atime, stat.st_atime_nsec) } else { String::new() };
        self.lines.push(format!(
            "{name}: {} {:o} {}:{} links={} size={} rdev={:x} mtime={}.{:09} ctime={}.{:09} atime={atime_shown} \
             [{body}] {}",
            stat.st_ino,
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_nlink,
            stat.st_size,
            stat.st_rdev,
            stat.st_mtime,
            stat.st_mtime_nsec,
            stat.st_ctime,
            stat.st_ctime_nsec,
            xattrs(path)
        ));
        if kind != FileType::Directory {
            return;
        }
        let entries = Dir::new(open(OFlags::DIRECTORY)).expect("reading a layer");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("reading a layer").file_name().to_owned()).collect();
        names.sort();
        for entry in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
            let entry = std::ffi::OsStr::from_bytes(entry.to_bytes());
            self.walk(&path.join(entry), &format!("{name}/{}", entry.to_string_lossy()), atime);
        }
    }
}

/// What is not zero: holes can be large, and where data that is not written back lies in them is not for ever.
fn contents(file: &File) -> String {
    /// No file system has smaller ones, and data begins where one does.
    const BLOCK: usize = 1024;
    let (mut hasher, mut buffer, mut place) = (DefaultHasher::new(), vec![0; 1 << 20], 0);
    loop {
        let data = match rustix::fs::seek(file, SeekFrom::Data(place)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return format!("{:016x}", hasher.finish()),
            Err(e) => panic!("SEEK_DATA in a lower file: {e}"),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).expect("SEEK_HOLE in a lower file");
        place = data;
        while place < hole {
            let most = usize::try_from(hole - place).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = file.read_at(&mut buffer[..most], place).expect("reading a lower file");
            assert!(count > 0, "a lower file has become shorter while it was read");
            for (index, block) in buffer[..count].chunks(BLOCK).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    (place + (index * BLOCK) as u64, block).hash(&mut hasher);
                }
            }
            place += count as u64;
        }
    }
}

/// Every extended attribute, those of an overlay among them.
pub(crate) fn xattrs(path: &Path) -> String {
    let mut list = vec![0; 65536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut list[..]) else { return "none".into() };
    let mut names: Vec<_> = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("getxattr");
        text.push_str(&format!("{}={} ", name.escape_ascii(), value[..length].escape_ascii()));
    }
    text
}
