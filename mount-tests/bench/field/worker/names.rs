//! Trees and names.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat, unlinkat};

use super::timed;
use crate::task::{Done, Visit};
use crate::{Failure, Result};

/// Visits every name below `dir`; with [`Visit::Remove`] it goes too. Returns the number of names.
pub(super) fn walk(dir: &Path, visit: Visit) -> Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let count = visit_all(CWD, dir, visit, &mut buffer)?;
    if visit == Visit::Remove {
        fs::remove_dir(dir)?;
    }
    Ok(count)
}

fn visit_all(at: BorrowedFd<'_>, dir: &Path, visit: Visit, buffer: &mut [u8]) -> Result<u64> {
    let fail = |error: rustix::io::Errno| -> Failure { format!("{}: {error}", dir.display()).into() };
    let fd =
        openat(at, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    let (mut count, mut below) = (0, Vec::new());
    let mut entries = Vec::with_capacity(64 << 10);
    let mut entries = RawDir::new(&fd, entries.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        count += 1;
        let mut is_dir = entry.file_type() == FileType::Directory;
        if visit == Visit::Stat {
            let stat = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        }
        if is_dir {
            below.push(name.to_owned());
        } else if visit == Visit::Read {
            let file = openat(&fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
            let mut file = File::from(file);
            while file.read(buffer)? > 0 {}
        } else if visit == Visit::Remove {
            unlinkat(&fd, name, AtFlags::empty()).map_err(fail)?;
        }
    }
    for name in below {
        let path = Path::new(std::str::from_utf8(name.to_bytes())?);
        count += visit_all(fd.as_fd(), path, visit, buffer)?;
        if visit == Visit::Remove {
            unlinkat(&fd, &*name, AtFlags::REMOVEDIR).map_err(fail)?;
        }
    }
    Ok(count)
}

/// Asks for names that are not there.
pub(super) fn missing(dir: &Path, count: usize) -> Result<Done> {
    let names: Vec<_> = (0..count).map(|n| dir.join(format!("missing-{n}"))).collect();
    timed(|| {
        for name in &names {
            match fs::symlink_metadata(name) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(format!("{} exists", name.display()).into()),
            }
        }
        Ok(names.len() as u64)
    })
}

/// Asks the file system about itself.
pub(super) fn statfs(path: &Path, count: usize) -> Result<Done> {
    let file = File::open(path)?;
    timed(|| {
        for _ in 0..count {
            rustix::fs::fstatfs(&file)?;
        }
        Ok(count as u64)
    })
}

/// Copies directories and regular files. A file that occupies nothing is one hole.
pub(super) fn copy(from: &Path, to: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut count = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (meta, target) = (entry.metadata()?, to.join(entry.file_name()));
        count += 1;
        if meta.is_dir() {
            fs::create_dir_all(&target)?;
            count += copy(&entry.path(), &target)?;
        } else if meta.blocks() == 0 {
            File::create(&target)?.set_len(meta.len())?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(count)
}
