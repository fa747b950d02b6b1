//! `auto_unmount`: a process of ours that unmounts when the daemon is gone, however it went.
//!
//! fusermount3 has such a mode, but up to libfuse 3.14 it does nothing for a user without `allow_other`: as root it may
//! not look whether the mount is dead. So the program executes itself once more, and that process does nothing but
//! read a pipe whose other end only the daemon holds. At its end it unmounts the very mount it was told of, if that
//! still stands.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::{MountPoint, Trouble, mountinfo};
use crate::daemon;
use crate::failure::Failure;

/// Without arguments, so that who looks for the daemon by its arguments finds the daemon only.
const NAME: &str = "splicefs-keeper";

/// The daemon's end. It is never read from nor closed before the process ends; the kernel closes it in every case.
#[derive(Debug)]
pub(super) struct Keeper(ChildStdin);

impl Keeper {
    /// Starts the process. Call it before mounting: without it, what the option promises is not kept.
    pub(super) fn start() -> Result<Self, Failure> {
        let cannot =
            |error: io::Error| Failure::new(format!("cannot start the process for auto_unmount: {error}"));
        let mut child = daemon::execute_again(|command: &mut Command| {
            command.arg0(NAME).env(daemon::ROLE_VARIABLE, daemon::ROLE_KEEPER).current_dir("/");
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        })
        .map_err(cannot)?;
        child.stdin.take().map(Self).ok_or_else(|| cannot(io::ErrorKind::BrokenPipe.into()))
    }

    /// Says which mount to unmount at the end.
    pub(super) fn watch(&mut self, point: &MountPoint) -> Result<(), Failure> {
        let told = match &point.entry {
            Some(entry) => self.0.write_all(&encode(point, entry)).and_then(|()| self.0.flush()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "the mount is not in the mount table")),
        };
        told.map_err(|error| Failure::new(format!("auto_unmount cannot be kept: {error}")))
    }
}

/// The whole life of the keeper's process.
pub fn keep() {
    // What ends the daemon from a terminal or a service manager must not end this process first.
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        // A signal that cannot be caught ends this process early, as it would have without this line.
        if let Err(_stays_deadly) = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))) {}
    }
    daemon::close_inherited();
    daemon::take_name(c"splicefs-keeper");
    let mut told = Vec::new();
    if io::stdin().lock().read_to_end(&mut told).is_err() {
        return;
    }
    let Some(point) = decode(&told) else { return };
    // Nobody reads what this process says; a mount it cannot unmount stays, and `splicefs unmount` says why.
    match point.unmount_dead() {
        Ok(()) | Err(Trouble::NotMounted) => {}
        Err(trouble) => log::error!("{}", trouble.describe(&point.current_path())),
    }
}

/// The fields, NUL after each; no field can hold one.
fn encode(point: &MountPoint, entry: &mountinfo::Entry) -> Vec<u8> {
    let id = entry.id.to_string();
    let unique = point.unique.map_or_else(String::new, |unique| unique.to_string());
    let fields = [
        point.path.as_os_str().as_bytes(),
        id.as_bytes(),
        entry.device.as_bytes(),
        entry.fs_type.as_bytes(),
        unique.as_bytes(),
    ];
    fields.iter().flat_map(|field| field.iter().copied().chain([0])).collect()
}

/// `None` when the daemon went before it had said anything, or in the middle.
fn decode(told: &[u8]) -> Option<MountPoint> {
    let mut fields = told.strip_suffix(&[0])?.split(|&byte| byte == 0);
    let path = PathBuf::from(OsString::from_vec(fields.next()?.to_vec()));
    let mut text = || String::from_utf8(fields.next()?.to_vec()).ok();
    let (id, device, fs_type, unique) = (text()?.parse().ok()?, text()?, text()?, text()?.parse().ok());
    let identity = mountinfo::Entry {
        id,
        parent: 0,
        device,
        mount_point: path.clone(),
        fs_type,
        source: OsString::new(),
    };
    Some(MountPoint { path, entry: Some(identity), unique })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keeper_understands_the_daemon() {
        let table = b"36 27 0:40 / /mnt/\xff,x rw - fuse.splicefs /src rw\n";
        let entry = mountinfo::parse(table).pop().expect("one mount");
        for unique in [None, Some(4_294_967_399)] {
            let point = MountPoint { path: entry.mount_point.clone(), entry: Some(entry.clone()), unique };
            let told = encode(&point, &entry);
            let heard = decode(&told).expect("the whole message");
            assert_eq!((&heard.path, heard.unique), (&point.path, unique));
            assert!(entry.is_same_mount(&heard.entry.expect("an identity")));
            for end in 0..told.len() {
                // A message cut between fields lacks some, cut within one it lacks its end.
                assert!(decode(&told[..end]).is_none(), "{end}");
            }
        }
    }
}
