//! What happens around a mount that nobody planned: renamed parents, copies elsewhere, dead mounts, closed streams.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    NEEDS, Place, assert_complains, assert_success, daemon_of, mount_in_use, run, stderr, user_command,
};
use crate::harness::{Mount, Need, command, is_mounted, ready, splicefs_binary, unprivileged_user, until};

/// `bash -c script` in the repository, `$1` the program.
fn shell(script: &str, arguments: &[&Path]) -> std::process::Output {
    let mut command = Command::new("bash");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", script, "bash"]).arg(splicefs_binary());
    run(command.args(arguments))
}

#[test]
fn a_mount_whose_parent_was_renamed_is_unmounted() {
    for signal in [Signal::TERM, Signal::KILL] {
        let Some(place) = Place::new() else { return };
        let at = |name: &str| place.dir.path().join(name);
        fs::create_dir(at("new")).expect("mkdir");
        let mut mount = command();
        mount.args(["passthrough", "-f", "-o", "auto_unmount"]).arg(place.source()).arg(at("new/mnt"));
        let mut daemon = mount.stdout(Stdio::null()).spawn().expect("starting the program");
        until("the mount to serve", || at("new/mnt/file").exists());
        fs::rename(at("new"), at("renamed")).expect("rename");
        assert!(is_mounted(&at("renamed/mnt")));
        kill_process(Pid::from_child(&daemon), signal).expect("kill");
        daemon.wait().expect("waiting for the daemon");
        until("the mount to go", || !is_mounted(&at("renamed/mnt")));
    }
}

#[test]
fn a_signal_says_when_somebody_still_uses_what_was_detached() {
    let Some((mut mount, held)) = mount_in_use() else { return };
    umount2(mount.point(), MntFlags::MNT_DETACH).expect("umount");
    kill_process(daemon_of(&mount), Signal::TERM).expect("kill");
    until("the daemon to say what it waits for", || mount.log().contains("still uses it"));
    drop(held);
    mount.wait_exit();
}

#[test]
fn inside_a_dead_mount_the_mount_is_named() {
    if !ready(&NEEDS) {
        return;
    }
    let builder = Mount::builder();
    fs::create_dir_all(builder.source().join("sub/deep")).expect("mkdir");
    let mut mount = builder.start();
    mount.kill_daemon();
    let hint = format!("splicefs unmount {}`", mount.point().display());
    for inside in ["", "sub", "sub/deep"] {
        let inside: PathBuf =
            if inside.is_empty() { mount.point().into() } else { mount.point().join(inside) };
        let mount_it = run(command().arg("passthrough").arg(&inside).arg(mount.plain()));
        assert_complains(&mount_it, &[&hint]);
        let mount_on = run(command().arg("passthrough").arg(mount.source()).arg(&inside));
        assert_complains(&mount_on, &[&hint]);
        assert_complains(&run(command().arg("stats").arg(&inside)), &[&hint]);
        if inside != mount.point() {
            assert_complains(&run(command().arg("unmount").arg(&inside)), &[&hint]);
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let Some(place) = Place::new() else { return };
    let on = |point: &Path| run(command().arg("passthrough").arg(place.source()).arg(point));
    assert_complains(&on(Path::new("/")), &["cannot mount on /"]);
    for options in ["subtype=", "subtype=other"] {
        assert_success(&place.mount(&["-o", options]));
        assert_complains(&place.mount(&[]), &["already", "splicefs unmount"]);
        assert_success(&place.unmount());
    }
    for words in [["passthru", "a", "b"], ["overlays", "a", "b"], ["mount", "a", "b"]] {
        assert_complains(&run(command().args(words)), &["is no command", "passthrough"]);
    }
    assert_complains(&run(command().args(["-f", "passthrough", "a", "b"])), &["behind the command"]);
}

#[test]
fn a_source_that_cannot_be_read_is_refused() {
    if !ready(&NEEDS) || !ready(&[Need::UserMounts]) {
        return;
    }
    let builder = Mount::builder().user(unprivileged_user());
    fs::set_permissions(builder.source(), std::os::unix::fs::PermissionsExt::from_mode(0o300))
        .expect("chmod");
    let mut start = user_command(builder.dir(), unprivileged_user());
    let output = run(start.arg("passthrough").arg(builder.source()).arg(builder.dir().join("mnt")));
    assert_complains(&output, &["you may not read and enter source"]);
}

#[test]
fn the_reason_survives_an_ignored_sigchld_and_a_full_stderr() {
    let Some(place) = Place::new() else { return };
    let missing = place.dir.path().join("missing");
    let output = shell(r#"env --ignore-signal=CHLD "$1" passthrough "$2" "$3""#, &[&missing, &place.point()]);
    assert_complains(&output, &["does not exist"]);
    let full = r#""$1" passthrough "$2" "$3" 2>/dev/full"#;
    let output = shell(full, &[&missing, &place.point()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn the_mount_helper_reads_quotes_as_mount_8_does() {
    if !ready(&[Need::Splicefs]) {
        return;
    }
    let options = r#"ro,fsname="a,b",comment="x,allow_other,x-y",fsname=c\,d"#;
    let script = format!("SPLICEFS=echo xfstests-config/mount.fuse.splicefs src mnt -o '{options}'");
    let output = shell(&script, &[]);
    assert_success(&output);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = r"src mnt -o ro,fsname=a\,b,comment=x\,allow_other\,x-y,fsname=c\,d";
    assert!(said.starts_with(expected), "{said}");
}
