use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;

fn parse(list: &str) -> Result<Options, Failure> {
    Options::parse(&[list], Unknown::Refuse)
}

#[track_caller]
fn parsed(list: &str) -> Options {
    parse(list).unwrap_or_else(|failure| panic!("{list}: {failure}"))
}

#[test]
fn each_option_sets_its_field_and_no_other() {
    type Case = (&'static str, fn(&mut Options));
    let cases: &[Case] = &[
        ("", |_| ()),
        ("backend=passthrough", |o| o.backend = Some(BackendName::Passthrough)),
        ("allow_other", |o| o.access = Access::Everybody),
        ("allow_root", |o| o.access = Access::Root),
        ("ro", |o| o.read_only = true),
        ("default_permissions", |o| o.default_permissions = true),
        ("noatime", |o| o.atime = Atime::Never),
        ("suid", |o| o.suid = true),
        ("dev", |o| o.dev = true),
        ("noexec", |o| o.exec = false),
        ("sync", |o| o.sync = true),
        ("dirsync", |o| o.ignored = vec!["dirsync".into()]),
        ("fsname=a=b", |o| o.fsname = Some("a=b".into())),
        ("subtype=x.y-z_1", |o| o.subtype = "x.y-z_1".into()),
        ("subtype=", |o| o.subtype = String::new()),
        ("auto_unmount", |o| o.auto_unmount = true),
        ("entry_timeout=0.25", |o| o.entry_timeout = Some(Duration::from_millis(250))),
        ("attr_timeout=0", |o| o.attr_timeout = Some(Duration::ZERO)),
        ("threads=4", |o| o.threads = NonZeroUsize::new(4)),
        ("splice=off", |o| o.splice = Choice::Off),
        ("splice=on", |o| o.splice = Choice::On),
        ("writeback=on", |o| o.writeback = Choice::On),
        ("splice_min=64K", |o| o.splice_min = 65536),
        ("splice_min=0", |o| o.splice_min = 0),
        ("splice_min=1m", |o| o.splice_min = 1 << 20),
        ("log=/l", |o| o.log = Some("/l".into())),
        ("block_devices_as_files", |o| o.block_devices_as_files = true),
        ("x-systemd.automount", |o| o.ignored = vec!["x-systemd.automount".into()]),
        ("comment=a,user=me", |o| o.ignored = vec!["comment=a".into(), "user=me".into()]),
    ];
    for (list, change) in cases {
        assert_sets(list, BackendName::Passthrough, change);
    }
}

/// What `list` says to `backend` is what `change` makes of the defaults.
#[track_caller]
fn assert_sets(list: &str, backend: BackendName, change: &dyn Fn(&mut Options)) {
    let mut expected = Options::default();
    change(&mut expected);
    assert_eq!(parsed(list).for_backend(backend), Ok(expected), "{list}");
}

#[test]
fn each_option_of_tmpfs_sets_its_field_and_no_other() {
    type Case = (&'static str, fn(&mut Options));
    let cases: &[Case] = &[
        ("backend=tmpfs", |o| o.backend = Some(BackendName::Tmpfs)),
        ("size=12k", |o| o.limits.pages = Some(NonZeroU64::new(3))),
        ("nr_blocks=2k", |o| o.limits.pages = Some(NonZeroU64::new(2048))),
        ("size=0", |o| o.limits.pages = Some(None)),
        ("nr_inodes=5", |o| o.limits.inodes = Some(NonZeroU64::new(5))),
        ("mode=0750", |o| o.root_mode = 0o750),
        ("uid=12,gid=34", |o| (o.root_uid, o.root_gid) = (Some(12), Some(34))),
        ("uid=root,gid=root", |o| (o.root_uid, o.root_gid) = (Some(0), Some(0))),
        ("inode32", |o| o.inode32 = true),
        ("inode32,inode64", |_| ()),
        ("noatime", |o| o.atime = Atime::Never),
        ("strictatime", |o| o.atime = Atime::Strict),
        ("noatime,strictatime,relatime", |_| ()),
        ("strictatime,nostrictatime", |_| ()),
        ("noatime,nostrictatime", |o| o.atime = Atime::Never),
        ("norelatime", |o| o.ignored = vec!["norelatime".into()]),
        ("huge=never,mpol=default,mpol=local", |_| ()),
    ];
    for (list, change) in cases {
        assert_sets(list, BackendName::Tmpfs, change);
    }
}

#[test]
fn an_option_of_another_backend_is_refused_naming_it() {
    let cases = [
        ("size=1g", BackendName::Passthrough, "option `size` is for tmpfs, and means nothing to passthrough"),
        ("ro,inode32", BackendName::Passthrough, "`inode32` is for tmpfs"),
        ("uid=0", BackendName::Passthrough, "`uid` is for tmpfs"),
        ("block_devices_as_files", BackendName::Tmpfs, "is for passthrough, and means nothing to tmpfs"),
        (
            "backend=tmpfs",
            BackendName::Passthrough,
            "`splicefs passthrough` and the option `backend=tmpfs` contradict",
        ),
        ("backend=passthrough", BackendName::Tmpfs, "contradict each other"),
    ];
    for (list, backend, expected) in cases {
        let message = parsed(list).for_backend(backend).expect_err(list).to_string();
        assert!(message.contains(expected), "{list}: {message}");
    }
    // fstab has these for any file system.
    let everywhere = |o: &mut Options| o.ignored = vec!["relatime".into(), "strictatime".into()];
    assert_sets("relatime,strictatime", BackendName::Passthrough, &everywhere);
}

#[test]
fn what_tmpfs_cannot_have_is_refused_with_the_way_out() {
    let cases = [
        ("noswap", "MemorySwapMax=0"),
        ("usrquota", "nothing is counted for each user"),
        ("grpquota_block_hardlimit=1m", "nothing is counted for each user"),
        ("casefold", "byte by byte"),
        ("huge=always", "expected `never`: the files lie in memory of the daemon"),
        ("huge=", "expected `never`"),
        ("mpol=interleave", "`numactl --interleave=all splicefs tmpfs ...`"),
        ("mpol=bind=static:0-1", "`numactl --membind=0-1 splicefs tmpfs ...`"),
        ("mpol=prefer:1", "`numactl --preferred=1 splicefs tmpfs ...`"),
        ("mpol=weighted interleave:0", "`numactl --weighted-interleave=0 splicefs tmpfs ...`"),
        ("mpol=local:1", "expected `default` or `local`"),
        ("mpol=else", "expected `default` or `local`"),
    ];
    for (list, expected) in cases {
        let message = parse(list).expect_err(list).to_string();
        assert!(message.contains(expected), "{list}: {message}");
        assert!(!message.contains('\n'), "{list}: {message}");
    }
}

#[test]
fn where_two_contradict_the_last_one_wins() {
    assert!(!parsed("ro,rw").read_only);
    assert!(parsed("rw,ro,ro").read_only);
    assert!(!parsed("suid,dev,nosuid,nodev").suid);
    assert!(parsed("noexec,exec").exec);
    assert_eq!(parsed("allow_other,allow_root").access, Access::Root);
    assert_eq!(parsed("threads=2,threads=3").threads, NonZeroUsize::new(3));
    let two_lists = Options::parse(&["ro,splice=on", "rw"], Unknown::Refuse).expect("both lists are good");
    assert!(!two_lists.read_only && two_lists.splice == Choice::On);
}

#[test]
fn an_unknown_option_is_refused_naming_the_nearest() {
    let cases = [
        ("allow_othr", "allow_other"),
        ("Allow_Other", "allow_other"),
        ("no_atime", "noatime"),
        ("thread=3", "threads"),
        ("splice-min=3", "splice_min"),
        ("fs_name=x", "fsname"),
        ("nr_inode=3", "nr_inodes"),
        ("sizes=1g", "size"),
        ("inode_32", "inode32"),
        ("strict_atime", "strictatime"),
    ];
    for (list, nearest) in cases {
        let message = parse(list).expect_err(list).to_string();
        assert!(message.contains(&format!("the nearest known one is `{nearest}`")), "{message}");
    }
    for far in ["udi=3", "gdi", "frobnicate", "comments", "noswop"] {
        let message = parse(far).expect_err(far).to_string();
        assert!(!message.contains("nearest") && message.contains("--help"), "{message}");
    }
    for unknown in [Unknown::Refuse, Unknown::Ignore] {
        let failure = Options::parse(&["remount,ro"], unknown).expect_err("a remount");
        assert!(failure.to_string().contains("mount -i -o remount,ro MNT"), "{failure}");
    }
    for smuggled in ["fd=3", "rootmode=40000", "user_id=0", "group_id=0", "max_read=1", "blkdev"] {
        parse(smuggled).expect_err(smuggled);
    }
}

#[test]
fn mount_8s_sloppy_flag_passes_over_unknown_options() {
    let options = Options::parse(&["ro,frobnicate=1"], Unknown::Ignore).expect("-s");
    assert!(options.read_only);
    assert_eq!(options.ignored, ["frobnicate=1"]);
    let options = Options::parse(&["noswap,size=1g"], Unknown::Ignore).expect("-s");
    assert_eq!(options.ignored, ["noswap"]);
    Options::parse(&["size=x"], Unknown::Ignore).expect_err("a known option with a bad value");
}

#[test]
fn a_bad_value_says_what_is_expected() {
    let cases = [
        ("entry_timeout=soon", "seconds"),
        ("entry_timeout=-1", "seconds"),
        ("entry_timeout=nan", "seconds"),
        ("attr_timeout=inf", "seconds"),
        ("threads=0", "a whole number"),
        ("threads=100000", "a whole number"),
        ("splice=yes", "`auto`, `on` or `off`"),
        ("splice_min=4X", "a size"),
        ("splice_min=", "a size"),
        ("splice_min=+4", "a size"),
        ("splice_min=99999999999G", "a size"),
        ("subtype=a,b", "unknown option"),
        ("subtype=a\\,b", "letters"),
        ("subtype=a b", "letters"),
        ("subtype=../x", "letters"),
        ("fsname=", "a name"),
        ("fsname=a\nb", "a name"),
        ("log=", "a file"),
        ("backend=nfs", "`passthrough`, `tmpfs` or `overlay`"),
        ("size=lots", "`512m`"),
        ("size", "size=SIZE"),
        ("nr_blocks=-1", "pages of 4 KiB"),
        ("nr_inodes=1.5k", "a number of files"),
        ("mode=0888", "octal"),
        ("mode=17777", "octal"),
        ("mode=+755", "octal"),
        ("mode=", "octal"),
        ("uid=-1", "a user's number or name"),
        ("uid=4294967295", "a user's number or name"),
        ("gid=no such group", "a group's number or name"),
        ("gid=", "a group's number or name"),
        ("inode32=1", "takes no value"),
        ("ro=1", "takes no value"),
        ("threads", "threads=N"),
    ];
    for (list, expected) in cases {
        let message = parse(list).expect_err(list).to_string();
        assert!(message.contains(expected), "{list}: {message}");
        assert!(!message.contains('\n'), "{list}: {message}");
    }
    let too_long = format!("fsname={}", "x".repeat(values::FSNAME_MAX_BYTES + 1));
    parse(&too_long).expect_err("longer than the kernel takes");
}

#[test]
fn names_are_declared_once_and_described() {
    for (at, spec) in table::all().enumerate() {
        assert!(table::all().take(at).all(|other| other.name != spec.name), "{} twice", spec.name);
    }
    for group in [Group::Common, Group::Passthrough, Group::Tmpfs, Group::Overlay] {
        for (written, help) in help_rows(group) {
            assert!(!help.is_empty(), "{written}");
        }
    }
}

/// Any name the kernel could show, with a liking for what a parser could trip over.
fn fsnames() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => any::<u8>(),
        2 => prop::sample::select(b",\\=x- ".to_vec()),
    ];
    let smuggle = prop::sample::select(vec![&b",allow_other"[..], b"\\,suid", b",x-a", b"\\", b",fd=3,"]);
    prop::collection::vec(prop_oneof![byte.prop_map(|b| vec![b]), smuggle.prop_map(<[u8]>::to_vec)], 1..40)
        .prop_map(|parts| parts.concat().into_iter().filter(|&b| b != 0 && b != b'\n').collect::<Vec<u8>>())
        .prop_filter("a name is not empty", |name| !name.is_empty())
}

proptest! {
    #[test]
    fn any_fsname_comes_back_and_sets_nothing_else(name in fsnames()) {
        let name = OsStr::from_bytes(&name);
        let mut list = OsString::from("ro,fsname=");
        list.push(escape(name));
        list.push(",noexec");
        let options = Options::parse(&[list], Unknown::Refuse);
        let expected =
            Options { read_only: true, exec: false, fsname: Some(name.to_owned()), ..Options::default() };
        prop_assert_eq!(options, Ok(expected));
    }

    #[test]
    fn no_text_panics(list in prop::collection::vec(any::<u8>(), 0..200)) {
        let result = Options::parse(&[OsStr::from_bytes(&list)], Unknown::Refuse);
        prop_assert!(result.is_ok() || !result.unwrap_err().to_string().contains('\n'));
    }
}
