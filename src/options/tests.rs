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
        ("noatime", |o| o.noatime = true),
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
        ("splice=off", |o| o.splice = SpliceMode::Off),
        ("splice=on", |o| o.splice = SpliceMode::On),
        ("splice_min=64K", |o| o.splice_min = 65536),
        ("splice_min=0", |o| o.splice_min = 0),
        ("splice_min=1m", |o| o.splice_min = 1 << 20),
        ("log=/l", |o| o.log = Some("/l".into())),
        ("block_devices_as_files", |o| o.block_devices_as_files = true),
        ("x-systemd.automount", |o| o.ignored = vec!["x-systemd.automount".into()]),
        ("comment=a,user=me", |o| o.ignored = vec!["comment=a".into(), "user=me".into()]),
    ];
    for (list, change) in cases {
        let mut expected = Options::default();
        change(&mut expected);
        assert_eq!(parsed(list), expected, "{list}");
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
    assert!(!two_lists.read_only && two_lists.splice == SpliceMode::On);
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
    ];
    for (list, nearest) in cases {
        let message = parse(list).expect_err(list).to_string();
        assert!(message.contains(&format!("the nearest known one is `{nearest}`")), "{message}");
    }
    for far in ["uid=3", "gid", "frobnicate", "comments", "relatme"] {
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
        ("backend=nfs", "`passthrough`"),
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
    for (at, spec) in SPECS.iter().enumerate() {
        assert!(SPECS[..at].iter().all(|other| other.name != spec.name), "{} twice", spec.name);
    }
    for group in [Group::Common, Group::Passthrough] {
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
