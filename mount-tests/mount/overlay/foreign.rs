//! Lower files of others, changed by a user who may write them and cannot own them for others: what was acknowledged is there after a
//! remount, and what is not there was refused.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::XattrFlags;

use super::Layers;
use crate::differential::runner::first_seed;
use crate::harness::{
    ACCESS_ACL, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER, ACL_USER, ACL_USER_OBJ, Identity, NO_ID, Need, Random,
    Stats, acl, as_caller, long_run, ready, shell, splicefs_binary, unprivileged_user,
};
use crate::mapped::Mapping;

const OLD: &[u8] = b"contents of before";
/// Somebody who is neither root nor the user.
const STRANGER: u32 = 12345;

/// How a file is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// As `echo >>`.
    Append,
    /// As cp(1): emptied and written.
    Replace,
    /// Written in the middle, and closed without a look at what close(2) says.
    Overwrite,
    /// Stored to through a mapping, then msync(2).
    Store,
    Truncate,
    Rename,
    Chmod,
}

const WAYS: [Way; 7] =
    [Way::Append, Way::Replace, Way::Overwrite, Way::Store, Way::Truncate, Way::Rename, Way::Chmod];

impl Way {
    fn change(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Append => File::options().append(true).open(path)?.write_all(b" and more"),
            Self::Replace => fs::write(path, b"replaced"),
            Self::Overwrite => File::options().write(true).open(path)?.write_all_at(b"CONTENTS", 0),
            Self::Store => {
                let file = File::options().read(true).write(true).open(path)?;
                Mapping::writable(&file, OLD.len())?.store(0, b'C');
                file.sync_all()
            }
            Self::Truncate => File::options().write(true).open(path)?.set_len(8),
            Self::Rename => fs::rename(path, path.with_extension("renamed")),
            Self::Chmod => fs::set_permissions(path, fs::Permissions::from_mode(0o640)),
        }
    }

    /// What the file holds once that is done.
    fn result(self) -> Vec<u8> {
        match self {
            Self::Append => [OLD, b" and more"].concat(),
            Self::Replace => b"replaced".to_vec(),
            Self::Overwrite => [b"CONTENTS", &OLD[8..]].concat(),
            Self::Store => [b"C", &OLD[1..]].concat(),
            Self::Truncate => OLD[..8].to_vec(),
            Self::Rename | Self::Chmod => OLD.to_vec(),
        }
    }
}

fn pick<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[usize::try_from(random.below(all.len() as u64)).expect("small")]
}

/// A lower file of a random owner, group and mode, some with an ACL, a capability or a flag; what it is, for messages, and
/// whether it is the user's own.
fn make(path: &Path, random: &mut Random, user: &Identity) -> (String, bool) {
    fs::write(path, OLD).expect("write");
    let uid = pick(random, &[0, 0, STRANGER, user.uid]);
    let gid = pick(random, &[0, STRANGER, user.gid]);
    let mode = pick(random, &[0o666, 0o666, 0o664, 0o660, 0o646, 0o622, 0o606, 0o466, 0o4777, 0o2766, 0o644]);
    chown(path, Some(uid), Some(gid)).expect("chown");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    let extra = pick(random, &["", "", "", "", "acl", "capability", "+i", "+a"]);
    match extra {
        "acl" => {
            let entries = [
                (ACL_USER_OBJ, 6, NO_ID),
                (ACL_USER, 6, user.uid),
                (ACL_GROUP_OBJ, 4, NO_ID),
                (ACL_MASK, 6, NO_ID),
                (ACL_OTHER, 4, NO_ID),
            ];
            rustix::fs::setxattr(path, ACCESS_ACL, &acl(&entries), XattrFlags::empty()).expect("an ACL");
        }
        "capability" => {
            let value = [&[1, 0, 0, 2][..], &[0; 16]].concat();
            rustix::fs::setxattr(path, "security.capability", &value, XattrFlags::empty())
                .expect("a capability");
        }
        "+i" | "+a" => drop(shell(&format!("chattr {extra} \"$1\""), path)),
        _ => {}
    }
    (format!("{uid}:{gid} {mode:o} {extra}"), (uid, gid) == (user.uid, user.gid))
}

struct Case {
    name: PathBuf,
    way: Way,
    what: String,
    is_own: bool,
    told: io::Result<()>,
}

/// Changes as many random files as the length of the run allows, mounts once more, and compares what was told with what is there. A
/// file that cannot be changed any more is the last word on all of them: the flags go at the end.
fn nothing_acknowledged_is_lost(own: &str) {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts, Need::Program("chattr")]) {
        return;
    }
    let user = Identity::unprivileged();
    let layers = Layers::simple().of_user();
    let count = if long_run() { 5000 } else { 300 };
    let seed = first_seed() | 1;
    eprintln!("SPLICEFS_TESTS_SEED={seed}");
    let mut random = Random(seed);
    let mut cases: Vec<Case> = (0..count)
        .map(|number| {
            let name = PathBuf::from(format!("{number}"));
            let (what, is_own) = make(&layers.lower().join(&name), &mut random, &user);
            Case { name, way: pick(&mut random, &WAYS), what, is_own, told: Ok(()) }
        })
        .collect();
    {
        let mount = layers.mount_with(own);
        as_caller(&user, || {
            for case in &mut cases {
                case.told = case.way.change(&mount.at(&case.name));
            }
        });
    }
    let _mount = layers.mount_with(own);
    let mut kept = 0;
    for Case { name, way, what, is_own, told } in &cases {
        let upper = layers.upper().join(name);
        let at = if *way == Way::Rename { upper.with_extension("renamed") } else { upper.clone() };
        let there = fs::symlink_metadata(&at).is_ok_and(|meta| meta.is_file());
        let holds = there.then(|| fs::read(&at).expect("read"));
        match told {
            Ok(()) => {
                kept += 1;
                assert_eq!(
                    holds,
                    Some(way.result()),
                    "{name:?} ({what}), {way:?}: acknowledged and not there"
                );
                let meta = fs::symlink_metadata(&at).expect("stat");
                let (owner, bits) = (meta.uid(), meta.mode() & 0o6000);
                assert!(
                    owner == user.uid && (*is_own || bits == 0),
                    "{name:?} ({what}), {way:?}: {owner} {bits:o}"
                );
            }
            // A copy that was made before the change was refused holds what the lower file holds.
            Err(e) => assert!(
                holds.as_deref().is_none_or(|holds| holds == OLD),
                "{name:?} ({what}), {way:?}: refused ({e}), and changed"
            ),
        }
    }
    assert!(kept > 0 || own.contains("keep"), "nothing was changed at all");
    shell("chattr -R -i -a \"$1\"", layers.lower());
    layers.unseal();
}

/// What [`Way::change`] does, to each of the files that standard input names with a way, by a process of another user namespace. Says `1` of
/// each change that was acknowledged, and `0` of the others.
const CHANGES: &str = r#"
import mmap, os, sys
def change(way, path):
    if way == "Append":
        with open(path, "ab", 0) as f: f.write(b" and more")
    elif way == "Replace":
        with open(path, "wb", 0) as f: f.write(b"replaced")
    elif way == "Overwrite":
        f = os.open(path, os.O_WRONLY)
        os.pwrite(f, b"CONTENTS", 0)
        try: os.close(f)
        except OSError: pass
    elif way == "Store":
        f = os.open(path, os.O_RDWR)
        m = mmap.mmap(f, 18)
        m[0:1] = b"C"
        m.close()
        os.fsync(f)
    elif way == "Truncate": os.truncate(path, 8)
    elif way == "Rename": os.rename(path, path + ".renamed")
    elif way == "Chmod": os.chmod(path, 0o640)
for line in sys.stdin:
    way, path = line.split()
    try:
        change(way, path)
        print(1)
    except OSError:
        print(0)
"#;

/// The same in a user namespace, by its root, who has most rights and cannot keep every owner.
fn nothing_is_lost_in_a_namespace(own: &str) {
    let needs = [Need::Root, Need::Fuse, Need::Splicefs, Need::Program("chattr"), Need::Program("python3")];
    if !ready(&needs) {
        return;
    }
    let user = Identity::unprivileged();
    let layers = Layers::simple().of_user();
    layers.seal();
    let count = if long_run() { 5000 } else { 300 };
    let seed = first_seed() | 1;
    eprintln!("SPLICEFS_TESTS_SEED={seed}");
    let mut random = Random(seed);
    let mut input = String::new();
    let mut cases = Vec::new();
    for number in 0..count {
        let name = PathBuf::from(number.to_string());
        let (what, _) = make(&layers.lower().join(&name), &mut random, &user);
        let way = pick(&mut random, &WAYS);
        input += &format!("{way:?} {}\n", layers.point().join(&name).display());
        cases.push((name, way, what));
    }
    let at = |name: &str| layers.dir().join(name);
    fs::write(at("changes"), input).expect("write");
    fs::write(at("change.py"), CHANGES).expect("write");
    shell("chmod 755 \"$1\" && chmod 777 \"$1/fs\"", layers.dir());
    let script = format!(
        r#"cd "$1"
        "$2" overlay mnt -o "lowerdir=$1/fs/l0,upperdir=$1/fs/upper,workdir=$1/fs/work,log=$1/fs/log,{own}" >&2 || exit 1
        python3 change.py <changes
        umount mnt"#
    );
    let said = in_namespace(&script, layers.dir());
    let told: Vec<_> = said.lines().filter(|line| matches!(*line, "0" | "1")).collect();
    assert_eq!(told.len(), cases.len(), "{said}");
    for ((name, way, what), told) in cases.iter().zip(&told) {
        let upper = layers.upper().join(name);
        let renamed = layers.upper().join(format!("{}.renamed", name.display()));
        let at = if *way == Way::Rename { renamed } else { upper };
        let there = fs::symlink_metadata(&at).is_ok_and(|meta| meta.is_file());
        let holds = there.then(|| fs::read(&at).expect("read"));
        if *told == "1" {
            assert_eq!(holds, Some(way.result()), "{name:?} ({what}), {way:?}: acknowledged and not there");
        } else {
            let changed = holds.is_some_and(|holds| holds != OLD);
            assert!(!changed, "{name:?} ({what}), {way:?}: refused, and changed");
        }
    }
    assert!(told.contains(&"1") && told.contains(&"0"), "all of them were {}", told[0]);
    shell("chattr -R -i -a \"$1\"", layers.lower());
    layers.unseal();
}

#[test]
fn nothing_that_was_told_in_a_user_namespace_is_lost() {
    nothing_is_lost_in_a_namespace("copyup_owner=keep");
}

#[test]
fn nothing_that_was_told_in_a_user_namespace_is_lost_where_copies_are_the_mounters() {
    nothing_is_lost_in_a_namespace("copyup_owner=mounter");
}

#[test]
fn nothing_that_was_told_in_a_user_namespace_is_lost_without_opens() {
    nothing_is_lost_in_a_namespace("open=zero");
}

#[test]
fn nothing_a_user_was_told_is_lost() {
    nothing_acknowledged_is_lost("");
}

#[test]
fn nothing_a_user_was_told_is_lost_where_owners_are_kept() {
    nothing_acknowledged_is_lost("copyup_owner=keep");
}

#[test]
fn nothing_a_user_was_told_is_lost_where_files_are_opened() {
    nothing_acknowledged_is_lost("open=handle");
}

/// A file of root's that everybody may write, and one that nobody may change.
fn of_root() -> Option<(Layers, Identity)> {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts, Need::Program("chattr")]) {
        return None;
    }
    let layers = Layers::simple().of_user();
    for name in ["file", "setuid", "fixed", "dir/below"] {
        let path = layers.lower().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        fs::write(&path, OLD).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
    }
    let mode = |name: &str, mode| {
        fs::set_permissions(layers.lower().join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    mode("setuid", 0o6777);
    mode("dir", 0o1777);
    shell("chattr +i \"$1/fixed\"", layers.lower());
    Some((layers, Identity::unprivileged()))
}

fn release(layers: &Layers) {
    shell("chattr -i \"$1/fixed\"", layers.lower());
    layers.unseal();
}

/// What cannot be kept is told by write(2), and not when the file is closed.
#[test]
fn a_write_that_cannot_be_kept_is_refused_by_write() {
    let Some((layers, user)) = of_root() else { return };
    {
        let mount = layers.mount_with("copyup_owner=keep");
        as_caller(&user, || {
            for name in ["file", "fixed", "dir/below"] {
                let file = File::options().append(true).open(mount.at(name)).expect("open");
                let told = (&file).write(b"x").expect_err("a write");
                assert_eq!(told.raw_os_error(), Some(libc::EPERM), "{name}");
                assert_eq!(fs::read(mount.at(name)).expect("read"), OLD, "{name}");
            }
            let stats = Stats::of(mount.point());
            assert_eq!(
                stats.json()["lost_writes"].as_object().map(serde_json::Map::len),
                Some(0),
                "{}",
                stats.json()
            );
            assert!(
                stats.json()["unopened"]["serving"].as_bool() == Some(true),
                "not the mount to be tested"
            );
        });
    }
    assert_eq!(fs::read_dir(layers.upper()).expect("readdir").count(), 0);
    release(&layers);
}

/// By default the copy is the user's, directories on the way to it included, and the kernel shows that at once.
#[test]
fn a_copy_of_anothers_file_is_the_users() {
    let Some((layers, user)) = of_root() else { return };
    {
        let mount = layers.mount();
        as_caller(&user, || {
            let owner = |name: &str| fs::metadata(mount.at(name)).expect("stat").uid();
            assert_eq!((owner("dir"), owner("dir/below"), owner("setuid")), (0, 0, 0));
            for name in ["file", "setuid", "dir/below"] {
                File::options()
                    .append(true)
                    .open(mount.at(name))
                    .and_then(|mut file| file.write_all(b"x"))
                    .expect("append");
            }
            fs::write(mount.at("dir/new"), b"new").expect("create");
            assert_eq!((owner("dir"), owner("dir/below"), owner("setuid")), (user.uid, user.uid, user.uid));
            let refused = File::options()
                .append(true)
                .open(mount.at("fixed"))
                .and_then(|mut file| file.write_all(b"x"));
            assert_eq!(refused.expect_err("a write").raw_os_error(), Some(libc::EPERM));
        });
    }
    for (name, mode) in [("file", 0o666), ("setuid", 0o777), ("dir", 0o1777), ("dir/below", 0o666)] {
        let meta = fs::metadata(layers.upper().join(name)).expect("stat");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (user.uid, user.gid, mode), "{name}");
    }
    assert_eq!(fs::read(layers.upper().join("file")).expect("read"), [OLD, b"x"].concat());
    release(&layers);
}

/// Two users' worth of owners in one: as fuse-overlayfs, without a user namespace.
#[test]
fn a_user_changes_what_is_squashed_to_them() {
    let Some((layers, user)) = of_root() else { return };
    fs::set_permissions(layers.lower().join("file"), fs::Permissions::from_mode(0o644)).expect("chmod");
    {
        let mount = layers.mount_with(&format!("squash_to_uid={},squash_to_gid={}", user.uid, user.gid));
        as_caller(&user, || {
            fs::write(mount.at("file"), b"mine").expect("write");
            fs::write(mount.at("new"), b"new").expect("create");
            fs::set_permissions(mount.at("dir/below"), fs::Permissions::from_mode(0o600)).expect("chmod");
            fs::remove_file(mount.at("setuid")).expect("unlink");
        });
    }
    assert_eq!(fs::read(layers.upper().join("file")).expect("read"), b"mine");
    assert_eq!(fs::metadata(layers.upper().join("dir/below")).expect("stat").mode() & 0o7777, 0o600);
    release(&layers);
}

/// Whoever owned a lower file, and wrote what it holds, must not make a program of the copy, which is the mounter's, that runs as the mounter.
#[test]
fn a_stranger_gives_no_set_id_bit_to_the_mounters_copy() {
    let Some((layers, user)) = of_root() else { return };
    let file = layers.lower().join("file");
    chown(&file, Some(STRANGER), Some(STRANGER)).expect("chown");
    // As the daemon sees it: a request of the stranger's, who owns what is shown.
    let script = format!(
        r#"unshare -m --propagation private sh -ec '
            mkdir -p "$1/conf" && echo user_allow_other >"$1/conf/fuse.conf" && [ -e /etc/fuse.conf ] || : >/etc/fuse.conf
            mount --bind "$1/conf/fuse.conf" /etc/fuse.conf
            setpriv --reuid={uid} --regid={gid} --clear-groups env HOME=/nonexistent {splicefs} overlay "$1/mnt" \
                -o allow_other,lowerdir="$1/fs/l0",upperdir="$1/fs/upper",workdir="$1/fs/work",log="$2" >/dev/null
            setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups chmod 4777 "$1/mnt/file" || :
            umount "$1/mnt"
        ' sh "$1" /dev/null"#,
        uid = user.uid,
        gid = user.gid,
        splicefs = splicefs_binary().display(),
    );
    shell(&script, layers.dir());
    let copy = layers.upper().join("file");
    if let Ok(meta) = fs::metadata(&copy) {
        assert!(meta.uid() == STRANGER || meta.mode() & 0o6000 == 0, "{} {:o}", meta.uid(), meta.mode());
    }
    release(&layers);
}

/// Runs a script in a user namespace where `nobody` has an id, root is the user, and the machine's root has none.
fn in_namespace(script: &str, at: &Path) -> String {
    let (uid, _) = unprivileged_user();
    let outer = format!(
        r#"unshare -U -m --propagation private sleep 100 & pid=$!
           trap 'kill $pid' EXIT
           until [ "$(readlink /proc/$pid/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
           printf '0 {uid} 1\n1 100000 65534\n' >"$1/map"
           for map in uid_map gid_map; do dd if="$1/map" of=/proc/$pid/$map status=none; done
           nsenter -t $pid -U -m -S 0 -G 0 sh -c "$2" sh "$1" "$3""#
    );
    let output = Command::new("bash")
        .args(["-ec", &outer, "bash"])
        .arg(at)
        .arg(script)
        .arg(splicefs_binary())
        .output()
        .expect("running bash");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Where the owner of a file has no id, nobody changes it: not the namespace's `nobody`, whose id stat(2) shows, nor its root.
#[test]
fn files_of_owners_without_an_id_are_changed_by_nobody() {
    let Some((layers, _)) = of_root() else { return };
    let script = r#"
        cd "$1"; m="$1/mnt"
        "$2" overlay "$m" -o allow_other,lowerdir="$1/fs/l0",upperdir="$1/fs/upper",workdir="$1/fs/work",log="$1/fs/upper/../log" >/dev/null || exit 1
        stat -c %u "$m/file"
        as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
        for who in as_nobody env; do
            $who chmod 4755 "$m/file" 2>/dev/null && echo "$who: chmod"
            $who sh -c "echo x >>$m/file" 2>/dev/null && echo "$who: append"
            $who mv "$m/file" "$m/moved" 2>/dev/null && echo "$who: rename"
            $who touch "$m/file" 2>/dev/null && echo "$who: touch"
        done
        echo mine >"$m/own" && cat "$m/own"
        umount "$m"
        echo end"#;
    shell("chmod 755 \"$1\" && chmod 777 \"$1/fs\"", layers.dir());
    let said = in_namespace(script, layers.dir());
    assert_eq!(said, "65534\nmine\nend\n");
    assert_eq!(fs::read_dir(layers.upper()).expect("readdir").count(), 1, "nothing was copied up");
    release(&layers);
}
