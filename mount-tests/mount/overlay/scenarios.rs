//! What was once wrong, each in a few commands, with remounts in between. The kernel's overlayfs passes them too
//! (`SPLICEFS_TESTS_NATIVE=1`), but where that is said.

use super::layers::{Ground, Layers};
use crate::harness::{Need, native_control, ready, scratch, shell, splicefs_binary};

/// `prepare` fills the layers; each of `steps` runs on a mount of its own. In both, `m` is the mount, `l0` and `l1` are the lower layers,
/// `upper` and `work` the others; every command must succeed.
fn scenario(options: &str, prepare: &str, steps: &[&str]) {
    if !ready(&[Need::Root, Need::Fuse]) {
        return;
    }
    let layers = Layers::new(Ground::Ext4(64), 2).options(options);
    let within = |script: &str| {
        let script = format!(
            "set -eu; cd \"$1\"; m=$1/mnt l0=$1/fs/l0 l1=$1/fs/l1 upper=$1/fs/upper work=$1/fs/work
             fails() {{ ! \"$@\" 2>/dev/null; }}
             is() {{ [ \"$1\" = \"$2\" ] || {{ echo \"'$1' is not '$2'\" >&2; exit 1; }}; }}
             {script}"
        );
        shell(&script, layers.dir());
    };
    within(prepare);
    for step in steps {
        let mount = layers.mount();
        within(step);
        mount.unmount();
    }
    within("chattr -R -i -f l0 l1 2>/dev/null || :");
}

const TWO_FILES: &str =
    "head -c 20000 /dev/urandom > $l0/a; head -c 20000 /dev/urandom > $l0/b; cp $l0/a a.copy";

#[test]
fn a_directory_moved_into_a_new_one_keeps_its_lower_part() {
    scenario(
        "redirect_dir=on",
        "mkdir $l0/d; echo x > $l0/d/f",
        &["mkdir $m/new; mv $m/d $m/new/", "is \"$(ls $m/new/d)\" f; fails rmdir $m/new/d"],
    );
}

#[test]
fn a_redirect_below_a_redirect_leads_on_from_there() {
    scenario(
        "redirect_dir=on",
        "mkdir -p $l0/a/b/c/d/e $l1/q/z/e $upper/x; touch $l1/q/z/e/deep
         mark() { setfattr -n trusted.overlay.$1 -v $2 $3; }
         mark redirect /q $l0/a/b/c; mark redirect z $l0/a/b/c/d; mark impure y $l0/a/b; mark impure y $l0/a/b/c
         mark redirect /a/b/c/d/e $upper/x; mark impure y $upper",
        &["is \"$(ls $m/x)\" deep"],
    );
}

#[test]
fn a_small_metacopy_is_not_taken_for_the_file() {
    scenario(
        "redirect_dir=on,metacopy=on",
        "echo hello > $l0/a; setfattr -n user.big -v $(head -c 900 /dev/zero | tr '\\0' x) $l0/a",
        &["chmod 600 $m/a", "is \"$(cat $m/a)\" hello; echo more >> $m/a; is \"$(head -n 1 $m/a)\" hello"],
    );
}

#[test]
fn a_metacopy_is_seen_through_the_index() {
    scenario(
        "redirect_dir=on,metacopy=on,index=on",
        "head -c 20000 /dev/urandom > $l0/a; ln $l0/a $l0/b; cp $l0/a a.copy",
        &["chmod 600 $m/a", "cmp $m/b a.copy; cmp $m/a a.copy; echo x >> $m/b; cmp -n 20000 $m/a a.copy"],
    );
}

#[test]
fn a_link_of_a_metacopy_finds_the_data() {
    scenario(
        "redirect_dir=on,metacopy=on",
        TWO_FILES,
        &["chmod 600 $m/a; rm $m/b; ln $m/a $m/b; ln $m/a $m/n", "cmp $m/b a.copy; cmp $m/n a.copy"],
    );
}

#[test]
fn metacopies_without_any_data_are_refused() {
    scenario(
        "redirect_dir=on,metacopy=on",
        "for l in $l0 $upper; do truncate -s 20000 $l/a; setfattr -n trusted.overlay.metacopy $l/a; done
         setfattr -n trusted.overlay.impure -v y $upper; setfattr -n trusted.overlay.impure -v y $l0",
        &["fails cat $m/a"],
    );
}

#[test]
fn a_copy_that_cannot_be_named_leaves_the_index_as_it_was() {
    scenario(
        "index=on",
        "mkdir $l0/d; echo one > $l0/a; ln $l0/a $l0/d/b",
        &[
            "chmod 700 $m/d; chattr +i $upper/d; fails sh -c \"echo two >> $m/d/b\"; chattr -i $upper/d
             echo two >> $m/a; is \"$(tail -n 1 $m/d/b)\" two",
            "rm $m/a; is \"$(tail -n 1 $m/d/b)\" two; is $(stat -c %h $m/d/b) 1",
            "is \"$(tail -n 1 $m/d/b)\" two",
        ],
    );
}

#[test]
fn the_index_counts_names_that_are_removed_first() {
    scenario(
        "index=on",
        "echo one > $l0/a; ln $l0/a $l0/b",
        &[
            "rm $m/a; is $(stat -c %h $m/b) 1; echo two >> $m/b",
            "is \"$(tail -n 1 $m/b)\" two; rm $m/b",
            "is \"$(ls $m)\" ''; is \"$(ls $work/index)\" ''",
        ],
    );
}

#[test]
fn names_of_a_lower_file_are_two_files_without_an_index() {
    scenario(
        "index=off",
        "echo one > $l0/a; ln $l0/a $l0/b",
        &[
            "echo two >> $m/a; is \"$(cat $m/b)\" one; fails test $m/a -ef $m/b; is $(stat -c %h $m/a) 1",
            "fails test $m/a -ef $m/b",
        ],
    );
}

/// Runs a script on an overlay that it mounts and unmounts itself: `$1` is a directory, `$2` the program.
fn script(script: &str) {
    if native_control() || !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    let dir = scratch();
    shell(
        &format!("set -eu; set -- \"$1\" '{}'; cd \"$1\"; {script}", splicefs_binary().display()),
        dir.path(),
    );
}

#[test]
fn a_file_deep_below_is_copied_up() {
    // Deeper than a thread's stack would take in as many calls.
    script(
        "mkdir l m
        each() { python3 -c \"
import os
os.chdir('$1')
for _ in range(11000):
    $2; os.chdir('d')
$3\"; }
        each l \"os.mkdir('d')\" \"open('f', 'w').write('deep')\"
        \"$2\" overlay m -o lowerdir=l,upper=tmpfs
        each m pass \"open('f', 'a').write('er'); assert open('f').read() == 'deeper'\"
        \"$2\" unmount m",
    );
}

#[test]
fn a_refusal_in_one_place_does_not_change_how_whiteouts_are_made() {
    scenario(
        "",
        "mkdir $l0/d; echo > $l0/d/f; echo > $l0/g",
        &["chmod 700 $m/d; chattr +i $upper/d; fails rm $m/d/f; chattr -i $upper/d
           rm $m/g; is \"$(stat -c %F $upper/g)\" 'character special file'; rm $m/d/f; is \"$(ls -A $upper/d)\" f"],
    );
}

#[test]
fn a_renamed_directory_has_one_inode_number() {
    scenario(
        "redirect_dir=on",
        "mkdir $l0/d",
        &["before=$(stat -c %i $m/d); mv $m/d $m/e; is $(stat -c %i $m/e) $before
           is $(python3 -c \"import os; print([e.inode() for e in os.scandir('mnt') if e.name == 'e'][0])\") $before"],
    );
}

#[test]
fn what_is_immutable_below_stays_as_it_is() {
    scenario(
        "",
        "echo 1 > $l0/f; chattr +i $l0/f",
        &[
            "fails sh -c \"echo 2 >> $m/f\"; fails rm -f $m/f; fails mv $m/f $m/g; fails chmod 600 $m/f; is \"$(cat $m/f)\" 1",
        ],
    );
}

#[test]
fn a_directory_that_moves_as_a_copy_is_complete() {
    if native_control() {
        // The kernel has no redirect_dir=copy.
        return;
    }
    scenario(
        "redirect_dir=copy",
        "mkdir -p $l0/d/sub; echo 1 > $l0/d/f; ln $l0/d/f $l0/d/h; echo 2 > $l0/d/sub/g; mkdir -p $l1/d; echo 3 > $l1/d/below",
        &[
            "mv $m/d $m/e; is \"$(cd $m && find e | sort | tr '\\n' ' ')\" 'e e/below e/f e/h e/sub e/sub/g '",
            "is \"$(cd $m && find . | sort | tr '\\n' ' ')\" '. ./e ./e/below ./e/f ./e/h ./e/sub ./e/sub/g '
             is \"$(cat $m/e/sub/g $m/e/f $m/e/below | tr '\\n' ' ')\" '2 1 3 '; is \"$(ls $m)\" e",
        ],
    );
}

#[test]
fn what_takes_the_changes_cannot_be_entered_through_a_lower_layer() {
    script(
        "mkdir -p l/inner/u l/inner/w m
        \"$2\" overlay m -o lowerdir=l,upperdir=l/inner/u,workdir=l/inner/w
        touch m/made; test -e l/inner/u/made
        ! ls m/inner/u 2>/dev/null
        \"$2\" unmount m",
    );
}

#[test]
fn whiteouts_that_are_names_hide_what_is_below() {
    if native_control() {
        // To the kernel they are files like any other.
        return;
    }
    scenario(
        "",
        "mkdir $l0/d $l1/d $l0/o $l1/o; touch $l0/.wh.gone $l0/d/.wh.gone $l0/o/.wh..wh..opq $l0/d/own
         touch $l1/gone $l1/kept $l1/d/gone $l1/d/kept $l1/o/below",
        &[
            "is \"$(cd $m && find . | sort | tr '\\n' ' ')\" '. ./d ./d/kept ./d/own ./kept ./o '
             fails stat $m/gone; fails stat $m/d/gone; fails stat $m/.wh.gone; fails touch $m/.wh.x
             echo new > $m/gone; mkdir $m/d/gone; is \"$(ls $m/d/gone)\" ''",
            "is \"$(cat $m/gone)\" new; is \"$(ls -A $m/d/gone)\" ''; rm $m/gone",
            "fails stat $m/gone",
        ],
    );
}

#[test]
fn whiteouts_that_are_one_file_hide_names_and_devices_beside_them_show() {
    scenario(
        "",
        "mkdir $l0/d $l1/d; mknod $l0/d/a c 0 0; ln $l0/d/a $l0/d/b; ln $l0/d/a $l0/d/c; mknod $l0/d/e c 5 0
         ln $l0/d/e $l0/d/f; mknod $l0/d/g c 0 0; touch $l1/d/a $l1/d/b $l1/d/c $l1/d/g $l1/d/h $l1/d/i $l1/d/j",
        &[
            "is \"$(ls -A $m/d | tr '\\n' ' ')\" 'e f h i j '; is \"$(stat -c %t:%T $m/d/f)\" 5:0
             rm $m/d/h $m/d/i; mknod $m/d/k c 1 3; is \"$(ls -A $m/d | tr '\\n' ' ')\" 'e f j k '",
            "is \"$(ls -A $m/d | tr '\\n' ' ')\" 'e f j k '; echo new > $m/d/h; rm $m/d/k $m/d/j",
            "is \"$(ls -A $m/d | tr '\\n' ' ')\" 'e f h '; rm -r $m/d; fails stat $m/d; mkdir $m/d; is \"$(ls -A $m/d)\" ''",
            "is \"$(ls -A $m/d)\" ''",
        ],
    );
}

#[test]
fn a_copy_on_a_file_system_with_reflinks_takes_no_room() {
    script(
        "truncate -s 600M image; mkfs.xfs -q -m reflink=1 image; mkdir fs m; mount -o loop image fs
        trap 'umount fs' EXIT
        mkdir fs/l fs/u fs/w; head -c 200000000 /dev/urandom > fs/l/f; sync -f fs
        used() { df --output=used -k fs | tail -n 1; }
        before=$(used)
        \"$2\" overlay m -o lowerdir=fs/l,upperdir=fs/u,workdir=fs/w
        chmod 600 m/f; cmp m/f fs/u/f; \"$2\" unmount m
        test $(stat -c %s fs/u/f) = 200000000; sync -f fs; test $(( $(used) - before )) -lt 4096",
    );
}
