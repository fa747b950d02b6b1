//! `splicefs overlay`, and the forms in which mount(8) and container engines call it, as they meet it.

mod in_use;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Signal, kill_process};

use super::{Place, assert_complains, assert_success, run, stderr, stdout, user_command};
use crate::harness::{
    Identity, Need, as_caller, command, entry_at, is_mounted, ready, splicefs_binary, unprivileged_user,
    until, until_dead, until_umounted,
};

/// Two lower directories `a` and `b`, `upper` and `work`, in the directory of a [`Place`].
struct Layers {
    place: Place,
}

impl Layers {
    fn new() -> Option<Self> {
        let layers = Self { place: Place::new()? };
        for name in ["a", "b/sub", "upper", "work"] {
            fs::create_dir_all(layers.at(name)).expect("mkdir");
        }
        fs::write(layers.at("a/both"), b"above").expect("write");
        fs::write(layers.at("b/both"), b"below").expect("write");
        fs::write(layers.at("b/sub/only"), b"only below").expect("write");
        Some(layers)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.dir.path().join(name)
    }

    fn point(&self) -> PathBuf {
        self.place.point()
    }

    /// The options for all of them, with absolute paths.
    fn options(&self) -> String {
        let at = |name: &str| self.at(name).display().to_string();
        format!("lowerdir={}:{},upperdir={},workdir={}", at("a"), at("b"), at("upper"), at("work"))
    }

    /// `splicefs overlay MNT -o OPTIONS`, run in the directory of the layers.
    fn mount(&self, options: &str) -> Output {
        run(self.program().arg("overlay").arg(self.point()).args(["-o", options]))
    }

    fn program(&self) -> Command {
        let mut program = command();
        program.current_dir(self.place.dir.path());
        program
    }

    fn assert_merged(&self) {
        assert_eq!(self.read("both"), b"above");
        assert_eq!(self.read("sub/only"), b"only below");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.point().join(name)).expect("reading through the mount")
    }

    /// Changes files of both lower directories; where that went is looked at by the test.
    fn change(&self) {
        fs::write(self.point().join("both"), b"changed").expect("write");
        fs::write(self.point().join("sub/new"), b"new").expect("write");
        fs::remove_file(self.point().join("sub/only")).expect("unlink");
    }

    fn assert_lowers_unchanged(&self) {
        assert_eq!(fs::read(self.at("a/both")).expect("read"), b"above");
        assert_eq!(fs::read(self.at("b/both")).expect("read"), b"below");
        assert_eq!(fs::read(self.at("b/sub/only")).expect("read"), b"only below");
        assert!(!self.at("b/sub/new").exists());
    }

    fn unmount(&self) {
        assert_success(&self.place.unmount());
    }
}

#[test]
fn an_overlay_is_announced_and_takes_changes() {
    let Some(layers) = Layers::new() else { return };
    let output = layers.mount(&layers.options());
    assert_success(&output);
    let (point, upper) = (layers.point(), layers.at("upper"));
    let shown = point.display();
    assert_eq!(
        stdout(&output),
        format!(
            "splicefs: overlay of 3 layers is mounted on {shown}, changes go to {}; look: ls {shown}; stop: splicefs unmount {shown}\n",
            upper.display()
        )
    );
    let entry = entry_at(&point).expect("a mount");
    assert_eq!((entry.kind.as_str(), entry.source.to_str()), ("fuse.splicefs", Some("overlay")));
    assert!(!entry.has("ro") && !entry.has("allow_other"), "{entry:?}");
    layers.assert_merged();
    layers.change();
    layers.assert_lowers_unchanged();
    assert_eq!(fs::read(upper.join("both")).expect("copied up"), b"changed");
    assert_eq!(fs::read(upper.join("sub/new")).expect("made"), b"new");
    layers.unmount();
    assert_success(&layers.mount(&layers.options()));
    assert_eq!(layers.read("both"), b"changed");
    assert!(!point.join("sub/only").exists(), "what was removed stays so");
    layers.unmount();
}

#[test]
fn each_mistake_has_its_line() {
    let Some(layers) = Layers::new() else { return };
    fs::write(layers.at("file"), b"").expect("write");
    symlink("a", layers.at("link")).expect("symlink");
    let many = vec!["a"; 501].join(":");
    let cases = [
        ("ro", "needs a lower directory: `-o lowerdir=DIR`"),
        ("lowerdir=a:none", "lowerdir none does not exist"),
        ("lowerdir=a:file", "lowerdir file is not a directory"),
        ("lowerdir=a,upperdir=none,workdir=work", "upperdir none does not exist"),
        ("lowerdir=a,upperdir=upper,workdir=file", "workdir file is not a directory"),
        ("lowerdir=a,upperdir=upper", "`upperdir` needs a `workdir`"),
        ("lowerdir=a,workdir=work", "of no use without `upperdir`"),
        ("lowerdir=a,upper=tmpfs,upperdir=upper,workdir=work", "leave `upperdir` and `workdir` out"),
        ("lowerdir=a:b:link", "lowerdir a and lowerdir link are the same directory"),
        ("lowerdir=a,upperdir=a,workdir=work", "lowerdir a and upperdir a are the same directory"),
        ("lowerdir=a,upperdir=b,workdir=b/sub", "workdir b/sub lies inside upperdir b"),
        ("lowerdir=b/sub,upperdir=b,workdir=work", "lowerdir b/sub lies inside upperdir b"),
        ("lowerdir=a:", "`\\:` is a colon in a name"),
        ("lowerdir=a::b:upper", "data-only directories last"),
        ("datadir+=a", "at least one must have names"),
        ("lowerdir=a,lowerdir+=b", "not both"),
        (&format!("lowerdir={many}"), "at most 500 directories"),
        ("lowerdir=a,upper=b", "a directory is given as `upperdir`"),
        ("lowerdir=a,upper=tmpfs:size=lots", "for `size` bytes"),
        ("lowerdirs=a", "the nearest known one is `lowerdir`"),
        ("lowerdir=a,metacopy=on,userxattr", "not to be had with `userxattr`"),
        ("lowerdir=a,metacopy=on,redirect_dir=off", "`metacopy=on` needs `redirect_dir=on`"),
        ("lowerdir=a,nfs_export=on", "expected `off`: a file handle"),
        ("lowerdir=a,verity=require", "expected `off`: digests"),
        ("lowerdir=a,nooverride_creds", "is not to be had"),
        ("lowerdir=a,context=x", "unknown option `context`"),
        ("lowerdir=a,xattr_permissions=3", "expected `1` or `2`"),
        ("lowerdir=a,size=1g", "option `size` is for tmpfs, and means nothing to overlay"),
        ("lowerdir=a,backend=tmpfs", "contradict each other"),
    ];
    for (options, expected) in cases {
        assert_complains(&layers.mount(options), &[expected]);
    }
    assert_complains(&layers.place.mount(&["-o", "lowerdir=/"]), &["`lowerdir` is for overlay"]);
    let words = |words: &[&str]| run(layers.program().args(words));
    assert_complains(&words(&["overlay"]), &["`splicefs overlay MNT -o lowerdir=DIR`"]);
    assert_complains(&words(&["overlay", "a", "mnt"]), &["`splicefs overlay mnt -o lowerdir=DIR`?"]);
    assert_complains(&words(&["overlai", "mnt"]), &["`splicefs overlay mnt`?"]);
    assert!(!is_mounted(&layers.point()), "a failed start leaves no mount");
    assert!(layers.place.daemons().is_empty());
}

#[test]
fn a_work_directory_elsewhere_is_refused() {
    let Some(layers) = Layers::new() else { return };
    let device = |path: &Path| fs::metadata(path).expect("stat").dev();
    let other = Path::new("/dev/shm");
    if !other.is_dir() || device(other) == device(&layers.at("upper")) {
        eprintln!("SKIPPED: there is no second file system at /dev/shm");
        return;
    }
    let work = tempfile::tempdir_in(other).expect("a temporary directory");
    let output = layers.mount(&format!("lowerdir=a,upperdir=upper,workdir={}", work.path().display()));
    assert_complains(&output, &["upperdir upper and workdir", "must lie on the same mount"]);
}

#[test]
fn names_with_colons_and_commas_are_escaped_or_come_one_by_one() {
    let Some(layers) = Layers::new() else { return };
    for (name, file) in [("x:y", "colon"), ("x,ro", "comma"), (r"x\z", "backslash")] {
        fs::create_dir(layers.at(name)).expect("mkdir");
        fs::write(layers.at(name).join(file), file).expect("write");
    }
    for options in
        [r"lowerdir=x\:y:x\,ro:x\\z,upper=tmpfs", r"lowerdir+=x:y,lowerdir+=x\,ro,lowerdir+=x\z,upper=tmpfs"]
    {
        assert_success(&layers.mount(options));
        for file in ["colon", "comma", "backslash"] {
            assert_eq!(layers.read(file), file.as_bytes());
        }
        assert!(!entry_at(&layers.point()).expect("a mount").has("ro"), "a path is no option");
        layers.unmount();
    }
}

#[test]
fn without_an_upper_directory_nothing_changes() {
    let Some(layers) = Layers::new() else { return };
    // mount(8) says rw whether or not anybody asked for it.
    let output = layers.mount("rw,lowerdir=a:b");
    assert_success(&output);
    assert!(stdout(&output).contains("overlay of 2 layers is mounted on"), "{}", stdout(&output));
    assert!(stdout(&output).contains("read-only for want of an upperdir"), "{}", stdout(&output));
    assert!(entry_at(&layers.point()).expect("a mount").has("ro"));
    layers.assert_merged();
    let refused = fs::write(layers.point().join("both"), b"x").expect_err("a read-only mount");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    layers.unmount();
}

#[test]
fn changes_in_memory_are_lost_at_unmount() {
    let Some(layers) = Layers::new() else { return };
    fs::set_permissions(layers.at("a"), fs::Permissions::from_mode(0o1751)).expect("chmod");
    chown(layers.at("a"), Some(12), Some(34)).expect("chown");
    let output = layers.mount("lowerdir=a:b,upper=tmpfs:size=8m:nr_inodes=100");
    assert_success(&output);
    let said = stdout(&output);
    assert!(said.contains("overlay of 3 layers is"), "{said}");
    assert!(said.contains("changes are kept in memory (size 8.0 MiB)"), "{said}");
    assert!(said.contains("stop, and lose the changes: splicefs unmount"), "{said}");
    let root = fs::metadata(layers.point()).expect("stat");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o1751, 12, 34), "as the topmost lower one");
    layers.change();
    assert_eq!(layers.read("both"), b"changed");
    assert!(!layers.point().join("sub/only").exists());
    layers.assert_lowers_unchanged();
    let full = fs::write(layers.point().join("large"), vec![1; 9 << 20]).expect_err("no room");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    layers.unmount();
    layers.assert_lowers_unchanged();
    assert_success(&layers.mount("lowerdir=a:b,upper=tmpfs"));
    layers.assert_merged();
    layers.unmount();
}

#[test]
fn a_directory_for_changes_has_one_mount() {
    let Some(layers) = Layers::new() else { return };
    fs::create_dir(layers.at("new")).expect("mkdir");
    for name in ["upper2", "work2"] {
        fs::create_dir(layers.at(name)).expect("mkdir");
    }
    assert_success(&layers.mount(&layers.options()));
    let second = |options: &str| run(layers.program().arg("overlay").arg("new").args(["-o", options]));
    let refused = second("lowerdir=b,upperdir=upper,workdir=work2");
    assert_complains(&refused, &["upperdir upper is in use by another splicefs mount"]);
    let refused = second("lowerdir=b,upperdir=upper2,workdir=work");
    assert_complains(&refused, &["workdir work is in use by another splicefs mount"]);
    assert_success(&second("lowerdir=a:b,upperdir=upper2,workdir=work2"));
    assert_success(&run(layers.program().args(["unmount", "new"])));
    layers.unmount();
    // At once: a daemon whose mount is gone lets go soon, and is waited for.
    for _ in 0..5 {
        assert_success(&layers.mount(&layers.options()));
        fs::write(layers.point().join("file"), vec![7; 1 << 20]).expect("write");
        until_umounted(&layers.point());
    }
    assert_success(&layers.mount(&layers.options()));
    // A daemon whose mount is gone looks for a second whether it stands dead (`MountPoint::unmount_dead`), and takes a dead one
    // that has its place and its numbers for its own.
    until("the daemons before to end", || layers.place.daemons().len() == 1);
    for pid in layers.place.daemons() {
        kill_process(pid, Signal::KILL).expect("kill");
    }
    until_dead(&layers.point());
    layers.unmount();
    assert_success(&layers.mount(&layers.options()));
    layers.unmount();
}

#[test]
fn the_forms_of_mount_8_mount_an_overlay() {
    let Some(layers) = Layers::new() else { return };
    let options = format!("rw,nosuid,nodev,relatime,_netdev,backend=overlay,{}", layers.options());
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("xfstests-config/mount.fuse.splicefs");
    let helped = || {
        let mut helped = Command::new(&helper);
        helped.env("SPLICEFS", splicefs_binary());
        helped
    };
    for (mut program, source) in
        [(command(), "anything"), (command(), "overlay"), (helped(), "anything"), (helped(), "overlay")]
    {
        let output = run(program.arg(source).arg(layers.point()).args(["-n", "-s", "-o", &options]));
        assert_success(&output);
        assert_eq!(stdout(&output), "", "mount(8) says nothing");
        assert_eq!(entry_at(&layers.point()).expect("a mount").source, source);
        layers.assert_merged();
        layers.unmount();
    }
}

/// What containers/storage gives its mount_program, run in its own directory: relative lower layers, absolute upper ones,
/// and a label with a comma in it.
fn podmans_options(layers: &Layers) -> String {
    fs::create_dir_all(layers.at("l")).expect("mkdir");
    for (link, to) in [("l/AAA", "../a"), ("l/BBB", "../b")] {
        // A second mount finds them there.
        if layers.at(link).symlink_metadata().is_err() {
            symlink(to, layers.at(link)).expect("symlink");
        }
    }
    format!(
        "lowerdir=l/AAA:l/BBB,upperdir={},workdir={},context=\"system_u:object_r:container_file_t:s0:c57,c971\",private",
        layers.at("upper").display(),
        layers.at("work").display()
    )
}

#[test]
fn container_engines_mount_with_what_the_kernel_would_take() {
    let Some(layers) = Layers::new() else { return };
    let options = podmans_options(&layers);
    let log = layers.at("log");
    let logged = format!("log={}", log.display());
    let output = run(layers.program().args(["-o", &options, "-o", &logged]).arg(layers.point()));
    assert_success(&output);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", ""));
    let entry = entry_at(&layers.point()).expect("a mount");
    assert_eq!(entry.source, "overlay");
    assert!(entry.has("allow_other") && !entry.has("nosuid") && entry.has("nodev"), "{entry:?}");
    layers.assert_merged();
    layers.change();
    layers.assert_lowers_unchanged();
    as_caller(&Identity::user(4009), || {
        assert_eq!(fs::read(layers.point().join("both")).expect("users of a container come in"), b"changed");
    });
    layers.unmount();
    let text = fs::read_to_string(&log).expect("a log");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("context=")).collect();
    assert_eq!(lines.len(), 1, "said once: {text}");
    assert!(lines[0].contains("s0:c57,c971\", private"), "{text}");
    let output = run(layers.program().args(["-o", &options, "-o", "nosuid"]).arg(layers.point()));
    assert_success(&output);
    assert!(entry_at(&layers.point()).expect("a mount").has("nosuid"), "their options win");
    layers.unmount();
    // Last, since a volatile mount leaves a mark that no mount accepts.
    let output = run(layers.program().args(["-o", &options, "-o", "volatile,index=off"]).arg(layers.point()));
    assert_success(&output);
    layers.unmount();
}

#[test]
fn container_engines_are_told_why_not_in_one_line() {
    let Some(layers) = Layers::new() else { return };
    let mount = |words: &[&str]| run(layers.program().args(words));
    assert_complains(&mount(&["-o", "lowerdir=none:a", "mnt"]), &["lowerdir none does not exist"]);
    assert_complains(&mount(&["-o", "lowerdir=a,index=x", "mnt"]), &["option `index=x`: expected"]);
    assert_complains(&mount(&["-o", "lowerdir=a,nooverride_creds", "mnt"]), &["is not to be had"]);
    assert_complains(&mount(&["-o", "lowerdir=a,upperdir=upper", "mnt"]), &["needs a `workdir`"]);
    assert_complains(
        &mount(&["-o", "upperdir=upper,workdir=work", "mnt"]),
        &["are needed", "splicefs overlay MNT"],
    );
    assert_complains(&mount(&["-o", "lowerdir=a", "none/mnt"]), &["mkdir -p"]);
    assert_complains(&mount(&["-o", "lowerdir=a,backend=tmpfs", "mnt"]), &["contradict each other"]);
    assert!(!is_mounted(&layers.point()));
}

#[test]
fn under_the_name_of_fuse_overlayfs_it_is_one() {
    let Some(layers) = Layers::new() else { return };
    let program = layers.at("fuse-overlayfs");
    symlink(splicefs_binary(), &program).expect("symlink");
    let called =
        |words: &[&str]| run(Command::new(&program).current_dir(layers.place.dir.path()).args(words));
    let options = podmans_options(&layers);
    let point = layers.point();
    let point = point.to_str().expect("UTF-8");
    // mount.fuse3(8) has a source, and adds what root's mounts have.
    for (words, source) in [
        (&["-o", &options, point][..], "overlay"),
        (&["named", point, "-o", &format!("rw,{options},dev,suid")], "named"),
    ] {
        let output = called(words);
        assert_success(&output);
        assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", ""));
        assert_eq!(entry_at(&layers.point()).expect("a mount").source, source);
        layers.assert_merged();
        layers.unmount();
    }
    let version = called(&["--version"]);
    assert_success(&version);
    assert!(stdout(&version).contains(env!("CARGO_PKG_VERSION")), "{}", stdout(&version));
    assert!(stdout(&called(&["--help"])).contains("fuse-overlayfs"));
    assert_complains(&called(&["-o", "lowerdir=a"]), &["`fuse-overlayfs -o lowerdir="]);
    assert_complains(&called(&["-o", "upperdir=upper", "mnt"]), &["needs a lower directory"]);
    assert_complains(&called(&["--frobnicate", "mnt"]), &["--frobnicate", "`fuse-overlayfs -o lowerdir="]);
    // A word is a place, whatever it is called.
    assert_complains(&called(&["-o", "lowerdir=none", "stats"]), &["lowerdir none does not exist"]);
}

#[test]
fn an_overlay_may_cover_its_own_layers() {
    let Some(layers) = Layers::new() else { return };
    for options in ["lowerdir=mnt:b,upper=tmpfs", "lowerdir=b,upperdir=mnt,workdir=work"] {
        fs::write(layers.point().join("underneath"), b"seen").expect("write");
        let output = layers.mount(options);
        assert_success(&output);
        assert_eq!(stderr(&output), "", "nothing is hidden");
        assert_eq!(layers.read("underneath"), b"seen");
        assert_eq!(layers.read("both"), b"below");
        fs::write(layers.point().join("both"), b"changed").expect("write");
        layers.unmount();
    }
    assert_eq!(fs::read(layers.point().join("both")).expect("in the upper layer"), b"changed");
    // A layer that the mount hides.
    fs::create_dir(layers.point().join("inside")).expect("mkdir");
    fs::write(layers.point().join("inside/file"), b"hidden").expect("write");
    assert_success(&layers.mount("lowerdir=mnt/inside:a,upper=tmpfs"));
    assert_eq!(layers.read("file"), b"hidden");
    assert_eq!(layers.read("both"), b"above");
    layers.unmount();
}

#[test]
fn a_users_overlay_keeps_its_attributes_where_users_can() {
    if !ready(&[Need::UserMounts]) {
        return;
    }
    let Some(layers) = Layers::new() else { return };
    let user = unprivileged_user();
    for name in ["mnt", "upper", "work", "a", "b", "b/sub", "b/sub/only"] {
        chown(layers.at(name), Some(user.0), Some(user.1)).expect("chown");
    }
    let mount = |options: &str| {
        let mut program = user_command(layers.place.dir.path(), user);
        run(program.current_dir(layers.place.dir.path()).args(["-o", options, "mnt"]))
    };
    assert_complains(&mount("lowerdir=b,metacopy=on"), &["not to be had with `userxattr`"]);
    chown(layers.at("upper"), Some(0), Some(0)).expect("chown");
    assert_complains(
        &mount("lowerdir=b,upperdir=upper,workdir=work"),
        &["you may not write to upperdir upper"],
    );
    chown(layers.at("upper"), Some(user.0), Some(user.1)).expect("chown");
    assert_success(&mount("lowerdir=a:b,upperdir=upper,workdir=work"));
    let identity = Identity { uid: user.0, gid: user.1, ..Identity::root() };
    as_caller(&identity, || {
        layers.assert_merged();
        fs::remove_dir_all(layers.point().join("sub")).expect("rm -r");
        fs::create_dir(layers.point().join("sub")).expect("mkdir");
        assert_eq!(fs::read_dir(layers.point().join("sub")).expect("ls").count(), 0);
    });
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(layers.at("upper/sub"), "user.overlay.opaque", &mut value[..]);
    assert_eq!(&value[..length.expect("an attribute of a user's")], b"y");
    layers.assert_lowers_unchanged();
    assert_success(&run(user_command(layers.place.dir.path(), user).arg("unmount").arg(layers.point())));
}
