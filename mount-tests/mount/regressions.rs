//! Bugs that were found and fixed, each by the name of what went wrong.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::harness::{
    ACL_GROUP_OBJ, ACL_OTHER, ACL_USER_OBJ, Identity, Mount, NO_ID, Need, Watchdog, acl, as_caller, ready,
    shell, unprivileged_user,
};

fn root_mount(options: &str) -> Option<Mount> {
    ready(&[Need::Fuse, Need::Root]).then(|| Mount::builder().options(options).start())
}

/// With one thread, a request to ourselves is a deadlock. The kernel refuses to remove or rename a mount point, but
/// looks at the one underneath ours only through us.
#[test]
fn removing_or_renaming_what_the_mount_covers_is_busy_and_never_hangs() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let _watchdog = Watchdog::new("rmdir of the covered directory", Duration::from_secs(60));
    let builder = Mount::builder();
    let covering = builder.dir().to_owned();
    let mount = builder.mirroring(&covering).options("threads=1").start();
    let covered = mount.point().join(mount.point().strip_prefix(&covering).expect("inside the source"));
    assert!(covered.is_dir(), "{covered:?}");
    let busy =
        |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    busy(fs::remove_dir(&covered));
    busy(fs::rename(&covered, covered.with_file_name("elsewhere")));
    fs::create_dir(covered.with_file_name("other")).expect("mkdir");
    busy(fs::rename(covered.with_file_name("other"), &covered));
    fs::remove_dir(covered.with_file_name("other")).expect("rmdir");
}

/// A file system without POSIX ACLs answered EOPNOTSUPP, and the kernel failed every permission check with it.
#[test]
fn a_source_without_acls_can_be_entered_by_a_user() {
    if !ready(&[Need::Fuse, Need::Splicefs, Need::Program("fusermount3")]) {
        return;
    }
    let (uid, gid) = unprivileged_user();
    let mount = Mount::builder().mirroring("/proc").user((uid, gid)).start();
    let read = || fs::read(mount.point().join("version")).map(|text| text.len());
    let identity = Identity::unprivileged();
    let len = as_caller(&identity, read).expect("/proc/version through a user's mount");
    assert!(len > 10);
}

/// procfs shows each reader what that reader may see; read as root, it showed everyone everything.
#[test]
fn procfs_is_read_with_the_rights_of_its_reader() {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = Mount::builder().mirroring("/proc").options("allow_other").start();
    let stranger = Identity::user(4001);
    for file in ["1/environ", "1/maps"] {
        let read = |root: &std::path::Path| as_caller(&stranger, || fs::read(root.join(file)).map(|_| ()));
        let native = read(std::path::Path::new("/proc")).unwrap_err().raw_os_error();
        assert_eq!(read(mount.point()).unwrap_err().raw_os_error(), native, "{file}");
    }
    let link = |root: &std::path::Path| as_caller(&stranger, || fs::read_link(root.join("1/exe")));
    assert_eq!(
        link(mount.point()).unwrap_err().raw_os_error(),
        link(std::path::Path::new("/proc")).unwrap_err().raw_os_error()
    );
    assert_eq!(
        fs::read(mount.point().join("1/cmdline")).expect("root may"),
        fs::read("/proc/1/cmdline").expect("root may")
    );
}

/// Most files of procfs take write(2) and not pwrite(2).
#[test]
fn procfs_files_can_be_written() {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = Mount::builder().mirroring("/proc").options("allow_other").start();
    let mut child = Command::new("sleep").arg("60").spawn().expect("running sleep");
    let file = format!("{}/timerslack_ns", child.id());
    let written = OpenOptions::new()
        .write(true)
        .open(mount.point().join(&file))
        .and_then(|mut f| f.write_all(b"70000"));
    let value = fs::read_to_string(std::path::Path::new("/proc").join(&file));
    child.kill().expect("killing it");
    child.wait().expect("waiting for it");
    written.expect("writing timerslack_ns");
    assert_eq!(value.expect("reading it").trim(), "70000");
}

/// The number that 32-bit programs use was passed on without the kernel having asked who owns the file.
#[test]
fn inode_flags_are_the_owners_to_set_by_any_number() {
    if !ready(&[Need::Program("python3")]) {
        return;
    }
    let Some(mount) = root_mount("allow_other") else { return };
    let path = mount.point().join("file");
    fs::write(&path, b"").expect("write");
    let outcome = as_caller(&Identity::user(4001), || {
        Command::new("python3")
            .args(["-c", "import fcntl,sys,struct\nf=open(sys.argv[1])\nfcntl.ioctl(f,0x40046602,struct.pack('i',0x10))"])
            .arg(&path)
            .output()
    });
    assert!(!outcome.expect("running python3").status.success());
    fs::write(mount.source().join("file"), b"still changeable").expect("no immutable flag on the source");
}

/// A process that has a lease on `paths`, as `script` takes it in Python; it says so when it has.
fn lease_holder(script: &str, paths: &[PathBuf]) -> Child {
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .args(paths)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("running python3");
    let mut said = std::io::BufReader::new(holder.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).expect("a line");
    assert_eq!(line, "leased\n");
    holder
}

/// Opened with O_NONBLOCK, a file under a lease was EAGAIN at once instead of waiting for its holder.
#[test]
fn a_lease_on_the_source_is_waited_for() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("python3")]) {
        return;
    }
    let mount = Mount::builder().start();
    let plain = mount.source().join("leased");
    fs::write(&plain, b"").expect("write");
    let script = "import fcntl,os,signal,sys
f=os.open(sys.argv[1],os.O_RDONLY)
def give_up(*_): fcntl.fcntl(f,1024,2); print('broken',flush=True); os._exit(0)
signal.signal(signal.SIGIO,give_up)
fcntl.fcntl(f,1024,0)
print('leased',flush=True)
while True: signal.pause()";
    let mut holder = lease_holder(script, &[plain]);
    let opened = OpenOptions::new().write(true).open(mount.point().join("leased"));
    holder.kill().expect("killing it");
    holder.wait().expect("waiting for it");
    opened.expect("the open waits until the lease is given up");
}

/// As many slow files as there were threads that waited for requests made the whole mount hang: here files under a lease
/// that its holder does not give up, for which the kernel waits 45 seconds.
#[test]
fn slow_files_hold_up_nobody_else() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("python3")]) {
        return;
    }
    const FILES: usize = 12;
    let _watchdog = Watchdog::new("a request beside slow ones", Duration::from_secs(40));
    let mount = Mount::builder().start();
    let script = "import fcntl,os,signal,sys,time
signal.signal(signal.SIGIO,signal.SIG_IGN)
parent=os.getppid()
for path in sys.argv[1:]: fcntl.fcntl(os.open(path,os.O_RDONLY|os.O_CREAT),1024,0)
print('leased',flush=True)
while os.getppid()==parent: time.sleep(0.1)";
    let names: Vec<String> = (0..FILES).map(|n| format!("leased{n}")).collect();
    let paths: Vec<_> = names.iter().map(|name| mount.source().join(name)).collect();
    let mut holder = lease_holder(script, &paths);
    let opens = || mount.stats().expect("statistics").requests("open");
    let before = opens();
    let slow: Vec<_> = names.iter().map(|name| mount.point().join(name)).collect();
    let slow: Vec<_> = slow
        .into_iter()
        .map(|path| std::thread::spawn(move || OpenOptions::new().write(true).open(path).map(drop)))
        .collect();
    // Each is asked for at once although those before it are not answered, and so is everything else.
    while opens() < before + FILES as u64 {
        std::thread::yield_now();
    }
    fs::write(mount.point().join("other"), b"in time").expect("a file that nobody holds");
    assert!(slow.iter().all(|open| !open.is_finished()), "the leases hold");
    holder.kill().expect("killing it");
    holder.wait().expect("waiting for it");
    for open in slow {
        open.join().expect("no panic").expect("the open goes on when the lease is gone");
    }
}

/// rustix answers 0 for the size of a value when it is asked with an empty buffer, and so did we.
#[test]
fn the_size_of_an_attribute_can_be_asked_for() {
    let Some(mount) = root_mount("") else { return };
    let path = mount.point().join("file");
    fs::write(&path, b"").expect("write");
    rustix::fs::setxattr(&path, "user.name", b"value", XattrFlags::empty()).expect("setxattr");
    let output =
        Command::new("getfattr").args(["-d", "--absolute-names"]).arg(&path).output().expect("getfattr");
    assert!(String::from_utf8_lossy(&output.stdout).contains("user.name=\"value\""), "{output:?}");
}

/// Opening without O_APPEND what may only be appended to is EPERM.
#[test]
fn an_append_only_file_can_be_appended_to() {
    let Some(mount) = root_mount("") else { return };
    if !ready(&[Need::Program("chattr")]) {
        return;
    }
    let path = mount.point().join("log");
    fs::write(&path, b"one\n").expect("write");
    let chattr = |flag: &str| {
        let status = Command::new("chattr").arg(flag).arg(&path).status().expect("running chattr");
        assert!(status.success(), "chattr {flag}");
    };
    chattr("+a");
    let appended = OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"two\n"));
    let overwritten = OpenOptions::new().write(true).open(&path);
    chattr("-a");
    appended.expect("appending");
    assert_eq!(overwritten.unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(fs::read(&path).expect("read"), b"one\ntwo\n");
}

/// The kernel went on showing the setuid bit that a write had cleared, for as long as it trusts attributes.
#[test]
fn a_cleared_setuid_bit_is_seen_at_once() {
    let Some(mount) = root_mount("allow_other,suid,attr_timeout=3600") else { return };
    let path = mount.point().join("file");
    let file = File::create(&path).expect("create");
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o6777)).expect("chmod");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o6777);
    as_caller(&Identity::user(4001), || {
        OpenOptions::new().append(true).custom_flags(libc::O_CLOEXEC).open(&path)?.write_all(b"x")
    })
    .expect("writing as another user");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o777);
}

/// With a default ACL the kernel asks for the bit to be cleared as with an access ACL, which no other file system does.
#[test]
fn a_default_acl_of_a_stranger_to_the_group_keeps_the_setgid_bit() {
    let Some(mount) = root_mount("allow_other") else { return };
    let path = mount.point().join("directory");
    fs::create_dir(&path).expect("mkdir");
    std::os::unix::fs::chown(&path, Some(1002), Some(0)).expect("chown");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).expect("chmod");
    let entries = [(ACL_USER_OBJ, 7, NO_ID), (ACL_GROUP_OBJ, 5, NO_ID), (ACL_OTHER, 0, NO_ID)];
    as_caller(&Identity { gid: 1002, ..Identity::user(1002) }, || {
        let value = acl(&entries);
        rustix::fs::setxattr(&path, "system.posix_acl_default", &value, XattrFlags::empty())
    })
    .expect("setxattr");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o2755);
}

/// open(2) with O_RDONLY and O_TRUNC said ETXTBSY, as it does natively, when it had truncated the program that was running.
#[test]
fn a_running_program_is_not_truncated_by_a_refused_open() {
    for options in ["passthrough=off", "passthrough=on"] {
        let Some(mount) = root_mount(options) else { return };
        let program = mount.point().join("program");
        shell("cp \"$(command -v sleep)\" \"$1\"", &program);
        let size = fs::metadata(&program).expect("stat").len();
        let truncate = || rustix::fs::open(&program, OFlags::RDONLY | OFlags::TRUNC, Mode::empty()).map(drop);
        let mut running = Command::new(&program).arg("60").spawn().expect("running it");
        let refused = truncate();
        let ended = running.try_wait().expect("looking after it");
        running.kill().expect("ending it");
        running.wait().expect("waiting for it");
        assert_eq!(refused, Err(Errno::TXTBSY), "{options}");
        assert_eq!(ended, None, "{options}: it is still running");
        assert_eq!(fs::metadata(&program).expect("stat").len(), size, "{options}");
        // Its process may be gone a little before the kernel says that it has closed the file.
        let given_up = Instant::now() + Duration::from_secs(10);
        while truncate() == Err(Errno::TXTBSY) && Instant::now() < given_up {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(fs::metadata(&program).expect("stat").len(), 0, "{options}: it has ended");
    }
}
