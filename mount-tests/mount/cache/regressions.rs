//! What went wrong with `cache=notify`, each by its name.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::mount;
use crate::harness::{Mount, Need, Watchdog, ready, scratch, shell, splicefs_binary};

/// A look at a new directory held up renames that held it up.
#[test]
fn renames_and_looks_at_new_directories_do_not_wait_for_each_other() {
    let Some(mount) = mount("cache=notify,passthrough=off") else { return };
    let _watchdog = Watchdog::new("renames and looks", Duration::from_secs(60));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let names = ["d0/f0", "d0/renamed"].map(|name| mount.point().join(name));
            while !over.load(Ordering::Relaxed) {
                fs::rename(&names[0], &names[1]).expect("rename");
                fs::rename(&names[1], &names[0]).expect("rename back");
            }
        });
        for number in 0..500 {
            let name = format!("d1/new{number}");
            fs::create_dir(mount.source().join(&name)).expect("mkdir");
            fs::metadata(mount.point().join(&name)).expect("stat");
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// The kernel keeps the targets of all links, or of none.
#[test]
fn a_link_of_procfs_leads_each_reader_to_itself() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let mount = Mount::builder().mirroring("/proc").options("cache=notify").start();
    for _ in 0..3 {
        let reader = Command::new("readlink")
            .arg(mount.point().join("self"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("readlink");
        let pid = reader.id();
        let read = reader.wait_with_output().expect("readlink");
        assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), pid.to_string());
    }
}

/// Its directory elsewhere hears of it, and the one that it is mounted in does not.
#[test]
fn a_file_that_is_mounted_on_a_name_is_heard_of() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("unshare")]) {
        return;
    }
    let dir = scratch();
    let script = format!(
        r#"cd "$1" && exec unshare -m sh -ec '
        mkdir s m o; echo 1 > o/f; touch s/x; mount --bind o/f s/x
        {binary} passthrough s m -o cache=notify,passthrough=off,log=log > said
        cat m/x m/x; echo changed > o/f; sleep 1; cat m/x; {binary} unmount m'"#,
        binary = splicefs_binary().display()
    );
    assert_eq!(shell(&script, dir.path()), "1\n1\nchanged\n");
}

/// The kernel trusts a name where it has moved as long as it did where it was.
#[test]
fn a_name_that_moves_where_nobody_listens_is_looked_at_again() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("unshare")]) {
        return;
    }
    let dir = scratch();
    let script = format!(
        r#"cd "$1" && exec unshare -Urm sh -ec '
        mkdir -p s/heard/sub s/unheard m; touch s/heard/sub/old
        echo 3 > /proc/sys/user/max_inotify_watches
        {binary} passthrough s m -o cache=notify,passthrough=off,log=log > said
        ls m/heard/sub; mv m/heard/sub m/unheard/sub; ls m/unheard/sub
        mv s/unheard/sub s/unheard/gone; mkdir s/unheard/sub; touch s/unheard/sub/new
        sleep 1.5; ls m/unheard/sub; {binary} unmount m'"#,
        binary = splicefs_binary().display()
    );
    assert_eq!(shell(&script, dir.path()), "old\nold\nnew\n");
}
