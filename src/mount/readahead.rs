//! The mount's read-ahead: the kernel offers 128 KiB, and the splice path is limited by it (README, Decisions).

use std::fs;
use std::io;

use super::MountPoint;

/// As many READs of the longest kind are read ahead: two are answered at once, on two processors. More would gain little, and
/// whoever maps a file gets that much at each fault.
const READS: usize = 2;

/// Raises the mount's read-ahead to what [`READS`] requests of `max_read` bytes carry. Only root may; for others, and where
/// /sys is not writable, it stays as it is and a debug line says so.
pub fn raise(point: &MountPoint, max_read: usize) {
    let Some(device) = point.device() else {
        log::debug!("read-ahead left alone: the mount's device number is not known");
        return;
    };
    let wanted = wanted_kib(max_read);
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match raise_file(&file, wanted) {
        Ok(true) => log::debug!("read-ahead raised to {wanted} KiB"),
        Ok(false) => log::debug!("read-ahead is {wanted} KiB or more already"),
        Err(error) => log::debug!("read-ahead left alone: {file}: {error}"),
    }
}

fn wanted_kib(max_read: usize) -> usize {
    READS * (max_read / 1024)
}

fn raise_file(file: &str, wanted: usize) -> io::Result<bool> {
    let now = fs::read_to_string(file)?;
    if now.trim().parse::<usize>().is_ok_and(|now| now >= wanted) {
        return Ok(false);
    }
    fs::write(file, format!("{wanted}\n"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_read_ahead_is_two_whole_reads() {
        assert_eq!(wanted_kib(254 * 4096), 2032);
        assert_eq!(wanted_kib(60000), 2 * 58);
    }

    #[test]
    fn it_is_raised_and_never_lowered() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join("read_ahead_kb");
        fs::write(&file, "128\n").expect("writable");
        let name = file.to_str().expect("UTF-8");
        assert!(raise_file(name, 2032).expect("writable"));
        assert!(!raise_file(name, 64).expect("readable"));
        assert_eq!(fs::read_to_string(&file).expect("readable"), "2032\n");
    }
}
