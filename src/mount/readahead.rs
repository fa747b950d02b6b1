//! The mount's read-ahead: the kernel offers 128 KiB, and the splice path is limited by it (README, Decisions).

use std::fs;
use std::io;

use super::MountPoint;

/// The longest read-ahead worth asking for, in KiB: 254 pages, which with the reply's header fit a pipe of 256 buffers.
const MOST_KIB: usize = 1016;

/// Raises the mount's read-ahead to what one read request can carry, `max_read` bytes. Only root may; for others, and
/// where /sys is not writable, it stays as it is and a debug line says so.
pub fn raise(point: &MountPoint, max_read: usize) {
    let Some(device) = point.device() else {
        log::debug!("read-ahead left alone: the mount's device number is not known");
        return;
    };
    let wanted = kib(max_read);
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match raise_file(&file, wanted) {
        Ok(true) => log::debug!("read-ahead raised to {wanted} KiB"),
        Ok(false) => log::debug!("read-ahead is {wanted} KiB or more already"),
        Err(error) => log::debug!("read-ahead left alone: {file}: {error}"),
    }
}

fn kib(max_read: usize) -> usize {
    (max_read / 1024).min(MOST_KIB)
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
    fn the_read_ahead_never_exceeds_a_read() {
        assert_eq!(kib(1 << 20), MOST_KIB);
        assert_eq!(kib(255 * 4096), MOST_KIB);
        assert_eq!(kib(65536), 64);
        assert_eq!(kib(60000), 58);
    }

    #[test]
    fn it_is_raised_and_never_lowered() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join("read_ahead_kb");
        fs::write(&file, "128\n").expect("writable");
        let name = file.to_str().expect("UTF-8");
        assert!(raise_file(name, 1016).expect("writable"));
        assert!(!raise_file(name, 64).expect("readable"));
        assert_eq!(fs::read_to_string(&file).expect("readable"), "1016\n");
    }
}
