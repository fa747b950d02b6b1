//! More changes than can be told, more directories than can be watched, users without privileges.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{mount, plant, shows_the_source, stats, try_walk, walk};
use crate::harness::{
    Identity, Mount, Need, as_caller, ready, shell, splicefs_binary, unprivileged_user, until, until_stopped,
};

/// The daemon stands still until its queue has run over; then everything is looked at again.
#[test]
fn after_an_overflow_everything_is_asked_for_again() {
    let Some(mount) = mount("cache=notify,passthrough=off") else { return };
    let at = |name: &str| mount.source().join(name);
    walk(mount.point());
    assert!(!mount.point().join("d0/new").exists());
    until("the source", || shows_the_source(&mount));
    let pid = mount.pid().expect("a daemon");
    let daemon = Pid::from_raw(pid.cast_signed());
    kill(daemon, Signal::SIGSTOP).expect("stopping the daemon");
    until_stopped(pid);
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("the limit");
    for round in 0..limit.trim().parse::<u32>().expect("a number") {
        // Two events at least, which differ from those before and so are not merged with them: twice the limit.
        fs::write(at(&format!("d1/f{}", round % 2)), "x").expect("write");
    }
    fs::write(at("d0/new"), "new").expect("write");
    fs::write(at("d2/f5"), "new").expect("write");
    fs::rename(at("d3"), at("e3")).expect("rename");
    kill(daemon, Signal::SIGCONT).expect("continuing the daemon");
    until("an overflow", || stats(&mount).change("overflows") > 0);
    // Before a listing shows it.
    until("a name that was missing", || mount.point().join("d0/new").exists());
    until("the source again", || shows_the_source(&mount));
}

#[test]
fn a_user_sees_at_once_what_others_change() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let (uid, gid) = unprivileged_user();
    let user = Identity::unprivileged();
    let builder = Mount::builder().user((uid, gid)).options("cache=notify");
    as_caller(&user, || plant(builder.source()));
    // What may not be read cannot be watched, and is looked at again after a second.
    fs::create_dir(builder.source().join("roots")).expect("mkdir");
    shell("chmod 711 \"$1\"", &builder.source().join("roots"));
    let mount = builder.start();
    let same = || {
        as_caller(&user, || {
            let below = |dir: &std::path::Path| {
                (0..5).map(|number| try_walk(&dir.join(format!("d{number}"))).ok()).collect::<Vec<_>>()
            };
            below(mount.point()) == below(mount.source())
        })
    };
    until("the source", same);
    fs::write(mount.source().join("d0/f0"), "by root").expect("write");
    fs::rename(mount.source().join("d1/f1"), mount.source().join("d2/other")).expect("rename");
    until("the source again", same);
    fs::write(mount.source().join("roots/file"), "1").expect("write");
    let length =
        || as_caller(&user, || fs::metadata(mount.point().join("roots/file")).map_or(0, |m| m.len()));
    until("what is not watched", || length() == 1);
    fs::write(mount.source().join("roots/file"), "22").expect("write");
    until("what is not watched to be looked at again", || length() == 2);
}

/// In a user namespace that may have three watches: what is not watched is looked at again after a second, and that is said once.
#[test]
fn where_there_are_no_more_watches_the_rest_is_asked_for_again() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("unshare")]) {
        return;
    }
    let dir = crate::harness::scratch();
    for name in ["src", "mnt"] {
        fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    plant(&dir.path().join("src"));
    let script = format!(
        r#"cd "$1" && exec unshare -Urm sh -ec '
        echo 3 > /proc/sys/user/max_inotify_watches
        {binary} passthrough src mnt -o cache=notify,log=log > said
        ls -lR mnt > first
        for n in 0 1 2 3 4; do test "$(cat mnt/d$n/f0)" = old; test ! -e mnt/d$n/new; done
        for n in 0 1 2 3 4; do echo new > src/d$n/f0; touch src/d$n/new; done
        sleep 1.5
        for n in 0 1 2 3 4; do cat mnt/d$n/f0; ls mnt/d$n/new; done
        {binary} stats mnt --json > stats
        {binary} unmount mnt'"#,
        binary = splicefs_binary().display()
    );
    let said = shell(&script, dir.path());
    assert_eq!((said.matches("new\n").count(), said.matches("mnt/d").count()), (10, 5), "{said}");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("read");
    let stats: serde_json::Value = serde_json::from_str(&read("stats")).expect("stats");
    assert_eq!(stats.pointer("/changes/watches").and_then(serde_json::Value::as_u64), Some(3));
    assert_eq!(read("log").matches("as many watches").count(), 1, "{}", read("log"));
}
