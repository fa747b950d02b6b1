//! Many small files.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::Result;
use crate::task::{Act, Many};

/// Does `act` with each file; returns their number. Creating makes the directories too, unlinking removes them.
pub(super) fn act(many: &Many, act: Act) -> Result<u64> {
    std::thread::scope(|scope| {
        let share = |thread: usize| many.dirs * thread / many.threads;
        let threads: Vec<_> = (0..many.threads)
            .map(|thread| {
                scope.spawn(move || {
                    (share(thread)..share(thread + 1))
                        .try_for_each(|dir| in_directory(&many.dir.join(format!("d{dir:03}")), many, act))
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok((many.dirs * many.each) as u64)
    })
}

fn in_directory(dir: &Path, many: &Many, act: Act) -> std::io::Result<()> {
    if act == Act::Create {
        fs::create_dir(dir)?;
    }
    let content = vec![0x5a; many.size];
    for index in 0..many.each {
        let (made, renamed) = (dir.join(format!("f{index:03}")), dir.join(format!("r{index:03}")));
        match act {
            Act::Create => {
                let mut file = OpenOptions::new().write(true).create_new(true).open(made)?;
                if !content.is_empty() {
                    file.write_all(&content)?;
                }
            }
            Act::Stat => {
                fs::symlink_metadata(made)?;
            }
            Act::Rename => fs::rename(made, renamed)?,
            Act::Unlink => fs::remove_file(renamed)?,
        }
    }
    if act == Act::Unlink {
        fs::remove_dir(dir)?;
    }
    Ok(())
}

/// Makes a tree as tar(1) does: each file is written, then gets its time and its mode. Returns the number of names.
pub(super) fn unpack(dir: &Path, dirs: usize, each: usize) -> Result<u64> {
    let content = vec![0x5a; 20_000];
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = FileTimes::new().set_modified(time).set_accessed(time);
    for number in 0..dirs {
        let dir = dir.join(format!("d{number:03}"));
        fs::create_dir_all(&dir)?;
        for index in 0..each {
            let mut file =
                OpenOptions::new().write(true).create_new(true).open(dir.join(format!("f{index:03}")))?;
            // Sizes spread evenly from nothing to the whole: 7919 is prime to their number.
            file.write_all(&content[..(number * each + index) * 7919 % content.len()])?;
            file.set_times(times)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
        }
        File::open(&dir)?.set_permissions(Permissions::from_mode(0o755))?;
    }
    Ok((dirs * (each + 1)) as u64)
}
