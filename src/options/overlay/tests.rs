use std::num::NonZeroU64;
use std::time::Duration;

use super::*;
use crate::options::{BackendName, Options, Unknown};

fn parse(list: &str) -> Result<Options, Failure> {
    Options::parse(&[list], Unknown::Refuse)
}

/// What `list` says to the overlay.
fn read(list: &str) -> Result<Options, Failure> {
    parse(list)?.for_backend(BackendName::Overlay)
}

#[track_caller]
fn overlay(list: &str) -> OverlayOptions {
    read(list).unwrap_or_else(|failure| panic!("{list}: {failure}")).overlay
}

fn lower(path: &str, data_only: bool) -> LowerDir {
    LowerDir { path: path.into(), data_only }
}

#[test]
fn each_option_sets_its_field_and_no_other() {
    type Case = (&'static str, fn(&mut OverlayOptions));
    let cases: &[Case] = &[
        ("", |_| ()),
        ("upperdir=/u,workdir=w/x", |o| (o.upper, o.work) = (Some("/u".into()), Some("w/x".into()))),
        ("upper=tmpfs", |o| o.in_memory = Some(Resize::default())),
        ("redirect_dir=on", |o| o.redirect = Some(Redirect::On)),
        ("redirect_dir=off", |o| o.redirect = Some(Redirect::Follow)),
        ("redirect_dir=copy", |o| o.redirect = Some(Redirect::Copy)),
        ("redirect_dir=follow", |o| o.redirect = Some(Redirect::Follow)),
        ("redirect_dir=nofollow", |o| o.redirect = Some(Redirect::NoFollow)),
        ("metacopy=on", |o| o.metacopy = true),
        ("metacopy=on,metacopy=off", |_| ()),
        ("index=off", |o| o.index = false),
        ("index=off,index=on", |_| ()),
        ("xino=off", |o| o.xino = Xino::Off),
        ("xino=off,xino=auto", |_| ()),
        ("xino=off,xino=on", |_| ()),
        ("userxattr", |o| o.userxattr = true),
        ("volatile", |o| o.volatile = true),
        ("fsync=0", |o| o.volatile = true),
        ("fsync=0,fsync=1", |_| ()),
        ("prefetch=0", |o| o.prefetch = 0),
        ("prefetch=64K", |o| o.prefetch = 65536),
        ("static_nlink", |o| o.static_nlink = true),
        ("nfs_export=off,verity=off", |_| ()),
    ];
    for (list, change) in cases {
        let mut expected = OverlayOptions { lowers: vec![lower("/l", false)], ..OverlayOptions::default() };
        change(&mut expected);
        assert_eq!(overlay(&format!("lowerdir=/l,{list}")), expected, "{list}");
    }
    let options = read("lowerdir=/l,timeout=7,uuid=null,override_creds").expect("good options");
    assert_eq!(options.entry_timeout, Some(Duration::from_secs(7)));
    assert_eq!(options.attr_timeout, options.entry_timeout);
    assert_eq!(options.ignored, ["uuid=null", "override_creds"]);
}

#[test]
fn escapes_of_the_list_and_of_the_directories_are_one_level() {
    let lowers = |list: &str| overlay(list).lowers;
    assert_eq!(
        lowers(r"ro,lowerdir=/a\,b:/c\:d:e\\,noexec"),
        [lower("/a,b", false), lower("/c:d", false), lower(r"e\", false)]
    );
    assert_eq!(
        lowers("lowerdir=/a=b:c::/d,ro"),
        [lower("/a=b", false), lower("c", false), lower("/d", true)]
    );
    let both = overlay(r"lowerdir=/l,upperdir=/u\,v:w,workdir=/w\\x\:y");
    assert_eq!((both.upper, both.work), (Some("/u,v:w".into()), Some(r"/w\x:y".into())));
    let options = read(r"lowerdir=/l\,allow_other\,suid:/m").expect("good options");
    assert_eq!(options.access, crate::options::Access::Owner, "a path is no option");
    assert!(!options.suid);
}

#[test]
fn layers_one_by_one_need_no_escapes() {
    let lowers = |list: &str| overlay(list).lowers;
    assert_eq!(
        lowers(r"lowerdir+=/a:b,lowerdir+=c\:d\,e,datadir+=/f,datadir+=/g"),
        [lower("/a:b", false), lower(r"c\:d,e", false), lower("/f", true), lower("/g", true)]
    );
    assert_eq!(lowers("lowerdir=/a:/b,lowerdir=/c"), [lower("/c", false)], "the last list counts");
    let many = |n: usize| vec!["lowerdir+=/l"; n].join(",");
    assert_eq!(lowers(&many(500)).len(), 500);
    assert!(parse(&many(501)).expect_err("too many").to_string().contains("at most 500 directories"));
}

#[test]
fn a_bad_value_says_what_is_expected() {
    let cases = [
        ("lowerdir=", "a directory on each side"),
        ("lowerdir=/a:", "`\\:` is a colon in a name"),
        ("lowerdir=/a::/b:/c", "data-only directories last, each behind `::`"),
        ("lowerdir", "lowerdir=DIR:DIR::DATA"),
        ("lowerdir+=", "expected a directory"),
        ("lowerdir=/a,lowerdir+=/b", "not both"),
        ("lowerdir=/a,datadir+=/b", "not both"),
        ("lowerdir+=/a,lowerdir=/b", "not both"),
        ("lowerdir+=/a,datadir+=/b,lowerdir+=/c", "after the first `datadir+`"),
        ("upperdir=", "expected a directory"),
        ("workdir", "workdir=DIR"),
        ("upper=/u", "a directory is given as `upperdir`"),
        ("upper=tmpfs:size=lots", "for `size` bytes with k"),
        ("upper=tmpfs:mode=1", "`tmpfs:size=1g:nr_inodes=10k`"),
        ("upper=tmpfs:", "`tmpfs:size=1g:nr_inodes=10k`"),
        ("redirect_dir=yes", "`on`, `copy`, `follow`, `nofollow` or `off`"),
        ("metacopy=1", "`on` or `off`"),
        ("xino=maybe", "`on`, `auto` or `off`"),
        ("fsync=2", "`0` or `1`"),
        ("timeout=x", "seconds"),
        ("uidmapping=0:1", "ID:SHOWN:COUNT"),
        ("gidmapping=0:0:2:1:5:1", "none is part of another"),
        ("xattr_permissions=3", "`1` or `2`"),
        ("squash_to_uid=-1", "a user's number or name"),
        ("nfs_export=on", "expected `off`: a file handle would lead nowhere"),
        ("verity=require", "expected `off`: digests"),
        ("userxattr=1", "takes no value"),
        ("lowerdirs=/a", "the nearest known one is `lowerdir`"),
        ("upper_dir=/a", "the nearest known one is `upperdir`"),
        ("redirectdir=on", "the nearest known one is `redirect_dir`"),
    ];
    for (list, expected) in cases {
        let message = parse(list).expect_err(list).to_string();
        assert!(message.contains(expected), "{list}: {message}");
    }
    let long =
        parse(&format!("lowerdir={}:", "/l".repeat(4000))).expect_err("a colon at the end").to_string();
    assert!(long.len() < 300 && long.contains("...`: expected"), "{long}");
}

#[test]
fn what_contradicts_or_lacks_something_is_refused() {
    let cases = [
        ("", "needs a lower directory: `-o lowerdir=DIR`"),
        ("upperdir=/u,workdir=/w", "needs a lower directory"),
        ("datadir+=/d", "at least one must have names"),
        ("lowerdir=/l,upperdir=/u", "`upperdir` needs a `workdir`"),
        ("lowerdir=/l,workdir=/w", "of no use without `upperdir`"),
        ("lowerdir=/l,upper=tmpfs,upperdir=/u", "leave `upperdir` and `workdir` out"),
        ("lowerdir=/l,upper=tmpfs,workdir=/w", "leave `upperdir` and `workdir` out"),
        ("lowerdir=/l,metacopy=on,redirect_dir=off", "needs `redirect_dir=on`"),
        ("lowerdir=/l,upperdir=/u,workdir=/w,metacopy=on,redirect_dir=nofollow", "needs `redirect_dir=on`"),
        ("lowerdir=/l,size=1g", "option `size` is for tmpfs, and means nothing to overlay"),
        ("lowerdir=/l,backend=tmpfs", "contradict each other"),
    ];
    for (list, expected) in cases {
        let message = read(list).expect_err(list).to_string();
        assert!(message.contains(expected), "{list}: {message}");
    }
    let elsewhere = parse("lowerdir=/l").and_then(|options| options.for_backend(BackendName::Tmpfs));
    assert!(
        elsewhere
            .expect_err("tmpfs")
            .to_string()
            .contains("`lowerdir` is for overlay, and means nothing to tmpfs")
    );
}

#[test]
fn without_an_upper_layer_the_mount_is_read_only() {
    let read_only = |list: &str| read(list).expect("good options").read_only;
    assert!(read_only("rw,lowerdir=/l"), "mount(8) always says rw");
    assert!(!read_only("lowerdir=/l,upper=tmpfs"));
    assert!(!read_only("lowerdir=/l,upperdir=/u,workdir=/w"));
    assert!(read_only("ro,lowerdir=/l,upper=tmpfs"));
}

#[test]
fn memory_for_changes_has_limits() {
    let limits = |list: &str| overlay(&format!("lowerdir=/l,{list}")).in_memory.expect("in memory");
    let both = limits("upper=tmpfs:size=8k:nr_inodes=1k");
    assert_eq!((both.pages, both.inodes), (Some(NonZeroU64::new(2)), Some(NonZeroU64::new(1024))));
    assert_eq!(limits("upper=tmpfs:nr_blocks=3").pages, Some(NonZeroU64::new(3)));
    assert_eq!(limits("upper=tmpfs:size=1g,upper=tmpfs"), Resize::default(), "the last one counts");
}

#[test]
fn what_is_usual_depends_on_where_attributes_are_kept() {
    let config =
        |list: &str, namespace| overlay(&format!("lowerdir=/l,{list}")).config(namespace, CopyupOwner::Keep);
    let redirect = |list, namespace| config(list, namespace).map(|config| config.redirect);
    assert_eq!(config("", Namespace::Trusted), Ok(Config::default()));
    assert_eq!(redirect("", Namespace::User), Ok(Redirect::Copy));
    assert_eq!(redirect("redirect_dir=on", Namespace::User), Ok(Redirect::On));
    assert_eq!(redirect("redirect_dir=nofollow", Namespace::Trusted), Ok(Redirect::NoFollow));
    assert_eq!(config("metacopy=on", Namespace::Trusted).map(|config| config.metacopy), Ok(true));
    let refused = config("metacopy=on", Namespace::User).expect_err("as the kernel refuses it").to_string();
    assert!(refused.contains("not to be had with `userxattr`"), "{refused}");
}

#[test]
fn container_engines_may_say_more_than_we_know() {
    let pass_over = |list: &str| {
        Options::parse(&[list], Unknown::PassOver)
            .and_then(|options| options.for_backend(BackendName::Overlay))
    };
    let label = r#"context="system_u:object_r:container_file_t:s0:c57,c971""#;
    let options = pass_over(&format!("lowerdir=l/A:l/B,upperdir=/u,workdir=/w,{label},private,volatile"))
        .expect("as podman calls it");
    assert_eq!(options.ignored, [label, "private"]);
    assert!(options.overlay.volatile);
    pass_over("lowerdir=/l,nooverride_creds").expect_err("known and refused");
    pass_over("lowerdir=/l,index=x").expect_err("a bad value");
}
