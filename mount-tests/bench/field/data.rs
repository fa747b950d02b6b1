//! What is read: built once, the same for every system.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Result, interrupt};

/// A part of the data. Only what the chosen workloads need is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Large files.
    Large,
    /// Many small files, and one directory with many names.
    Small,
    /// 300,000 names.
    Huge,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Bytes of a large file.
    pub(crate) large: u64,
    /// Directories of small files, a hundred in each.
    pub(crate) dirs: usize,
    /// Names in the one large directory.
    pub(crate) flat: usize,
    /// Directories of 300 names each.
    pub(crate) huge_dirs: usize,
    /// By what counts of operations are divided.
    pub(crate) less: usize,
}

/// Files of a directory of small ones.
pub(crate) const EACH: usize = 100;
/// Names of a directory of the many.
pub(crate) const HUGE_EACH: usize = 300;
/// Readers at once, each of a file of its own.
const READERS: usize = 4;

impl Sizes {
    pub(crate) fn new(small: bool) -> Self {
        if small {
            Self { large: 4 << 20, dirs: 2, flat: 200, huge_dirs: 2, less: 50 }
        } else {
            Self { large: 256 << 20, dirs: 100, flat: 20_000, huge_dirs: 1000, less: 1 }
        }
    }
}

/// Where things are below the directory that is read.
#[derive(Clone, Debug)]
pub(crate) struct Names(pub(crate) PathBuf);

impl Names {
    pub(crate) fn large(&self) -> PathBuf {
        self.0.join("large/file")
    }
    pub(crate) fn sparse(&self) -> PathBuf {
        self.0.join("large/sparse")
    }
    pub(crate) fn shared(&self) -> Vec<PathBuf> {
        (0..READERS).map(|n| self.0.join(format!("large/part-{n}"))).collect()
    }
    pub(crate) fn tree(&self) -> PathBuf {
        self.0.join("small/tree")
    }
    pub(crate) fn flat(&self) -> PathBuf {
        self.0.join("small/flat")
    }
    pub(crate) fn huge(&self) -> PathBuf {
        self.0.join("huge")
    }
    /// The directory of a part.
    pub(crate) fn part(&self, part: Part) -> PathBuf {
        self.0.join(match part {
            Part::Large => "large",
            Part::Small => "small",
            Part::Huge => "huge",
        })
    }
}

/// Builds `parts` below `names`.
pub(crate) fn build(names: &Names, parts: &[Part], sizes: &Sizes) -> Result<()> {
    for &part in parts {
        fs::create_dir_all(names.part(part))?;
        match part {
            Part::Large => build_large(names, sizes)?,
            Part::Small => build_small(names, sizes)?,
            Part::Huge => build_huge(names, sizes)?,
        }
    }
    // So that no writing back is left to disturb what is measured.
    rustix::fs::sync();
    Ok(())
}

fn build_large(names: &Names, sizes: &Sizes) -> Result<()> {
    // Of /dev/urandom: bytes that no layer below can compress or share.
    let mut block = vec![0; 1 << 20];
    let mut random = BufReader::new(File::open("/dev/urandom")?);
    let shared = names.shared();
    let parts = shared.iter().map(|path| (path.clone(), sizes.large / READERS as u64));
    for (path, size) in std::iter::once((names.large(), sizes.large)).chain(parts) {
        let mut file = File::create(path)?;
        for _ in 0..size >> 20 {
            interrupt::check()?;
            random.read_exact(&mut block)?;
            file.write_all(&block)?;
        }
    }
    Ok(File::create(names.sparse())?.set_len(sizes.large)?)
}

fn build_small(names: &Names, sizes: &Sizes) -> Result<()> {
    let content = vec![0x5a; 20_000];
    for dir in 0..sizes.dirs {
        interrupt::check()?;
        let path = names.tree().join(format!("d{dir:03}"));
        fs::create_dir_all(&path)?;
        for file in 0..EACH {
            // Sizes spread evenly from nothing to the whole: 7919 is prime to their number.
            let size = (dir * EACH + file) * 7919 % content.len();
            fs::write(path.join(format!("f{file:03}")), &content[..size])?;
        }
    }
    fs::create_dir_all(names.flat())?;
    for file in 0..sizes.flat {
        File::create(names.flat().join(format!("file-number-{file:05}")))?;
    }
    Ok(())
}

fn build_huge(names: &Names, sizes: &Sizes) -> Result<()> {
    for dir in 0..sizes.huge_dirs {
        interrupt::check()?;
        let path = names.huge().join(format!("d{dir:04}"));
        fs::create_dir_all(&path)?;
        for file in 0..HUGE_EACH {
            File::create(path.join(format!("f{file:03}")))?;
        }
    }
    Ok(())
}

/// Reads what is to be warm, past every mount.
pub(crate) fn warm(names: &Names, parts: &[Part]) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    parts.iter().try_for_each(|&part| read_tree(&names.part(part), &mut buffer))
}

fn read_tree(dir: &Path, buffer: &mut [u8]) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        interrupt::check()?;
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            read_tree(&entry.path(), buffer)?;
        } else if meta.len() > 0 {
            let mut file = File::open(entry.path())?;
            while file.read(buffer)? > 0 {}
        }
    }
    Ok(())
}
