//! What is mounted (proc_pid_mountinfo(5)).

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// The mount points at and below `directory`, the newest first.
pub(crate) fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    // Our own paths have no character that is escaped there.
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(directory)).collect();
    points.reverse();
    Ok(points)
}

/// Whether something is mounted at `point`. Unlike a stat(2) of it this asks no daemon.
pub(crate) fn is_mounted(point: &Path) -> Result<bool> {
    Ok(below(point)?.iter().any(|mounted| mounted == point))
}
