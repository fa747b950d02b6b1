#!/bin/bash
# Every test of splicefs: unit, conformance, plan oracle, real mounts as root and as a user, pjdfstest and fsx.
# Usage: mount-tests/run.sh [--long] [--keep]; what it needs and leaves behind is in mount-tests/README.md.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
repository=$(dirname -- "$here")
cd -- "$repository"

readonly PJDFSTEST=0.2.2 FSX=0.3.2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/splicefs-tests
operations=${FSX_OPERATIONS:-20000}
long=0 keep=0
work='' fuse_mode='' passed=0 failed=0 failures=()

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'mount-tests/run.sh: %s\n' "$*" >&2
    exit 2
}

# Runs a command as root, with the environment that tests look at.
as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo --preserve-env=PATH,SPLICEFS_TESTS_REQUIRE,SPLICEFS_TESTS_DIR,SPLICEFS_TESTS_LONG,SPLICEFS_TESTS_SEED,RUST_BACKTRACE -- "$@"
    fi
}

# Installs what is missing, once for all: PROGRAM PACKAGE pairs.
install_missing() {
    local pairs=(
        fusermount3 fuse3 setfacl acl setfattr attr strace strace lsattr e2fsprogs mkfs.ext4 e2fsprogs mkfs.xfs xfsprogs
        losetup mount unshare util-linux prlimit util-linux chrt util-linux setpriv util-linux sha256sum coreutils cc gcc python3 python3
        git git fuse-overlayfs fuse-overlayfs
    )
    local packages=() index
    PATH=$PATH:/usr/sbin:/sbin
    for ((index = 0; index < ${#pairs[@]}; index += 2)); do
        command -v "${pairs[index]}" >/dev/null || packages+=("${pairs[index + 1]}")
    done
    if ((${#packages[@]})); then
        say "installing ${packages[*]}"
        command -v apt-get >/dev/null || fail "install ${packages[*]}: there is no apt-get to do it with"
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
    fi
    command -v cargo >/dev/null || fail 'cargo is missing: install Rust from https://rustup.rs'
}

check_system() {
    ((EUID == 0)) || command -v sudo >/dev/null || fail 'the tests mount file systems: run as root or install sudo'
    if [[ ! -c /dev/fuse ]]; then
        as_root modprobe fuse || fail 'there is no /dev/fuse and the fuse module cannot be loaded'
        [[ -c /dev/fuse ]] || fail 'there is no /dev/fuse'
    fi
    # udev lets every user open it; a container or a bare machine may not have it so.
    fuse_mode=$(stat -c %a /dev/fuse)
    if (((8#$fuse_mode & 6) != 6)); then
        echo "/dev/fuse has mode $fuse_mode: it gets 666 for the tests as users, and $fuse_mode back at the end" >&2
        as_root chmod 666 /dev/fuse
    fi
}

# Sets `work` and, in it, `base`: an ext4 of our own, or a plain directory where there are no loop devices.
make_work() {
    work=$(mktemp -d /var/tmp/splicefs-tests.XXXXXX)
    chmod 755 "$work"
    base=$work/fs
    mkdir "$base"
    truncate -s 16G "$work/image"
    mkfs.ext4 -q -F -I 256 "$work/image"
    if ! as_root mount -o loop "$work/image" "$base"; then
        echo 'no loop device: the sources lie on the file system of /var/tmp' >&2
        rm "$work/image"
    fi
    as_root chmod 755 "$base"
    as_root mkdir -m 1777 "$base/tests"
}

mounted_below() {
    awk -v root="$1/" 'index($5, root) == 1 { print $5 }' /proc/self/mountinfo | sort -r
}

clean_up() {
    local status=$? point
    trap - EXIT
    [[ -z $fuse_mode ]] || as_root chmod "$fuse_mode" /dev/fuse
    [[ $work ]] || exit "$status"
    if ((keep)); then
        echo "kept: $work" >&2
        exit "$status"
    fi
    while IFS= read -r point; do
        as_root umount -l -- "$(printf "%b" "$point")" || echo "$point stays mounted" >&2
    done < <(mounted_below "$work")
    as_root rm -rf --one-file-system -- "$work"
    exit "$status"
}

# Runs a suite and counts it: NAME COMMAND...
suite() {
    local name=$1 start=$SECONDS
    shift
    say "$name"
    # A function called in a condition would run on after a failure: so a subshell with its own `set -e`.
    local status=0
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    if ((status == 0)); then
        passed=$((passed + 1))
        echo "-- $name: passed in $((SECONDS - start)) s"
    else
        failed=$((failed + 1))
        failures+=("$name")
        echo "-- $name: FAILED ($status) after $((SECONDS - start)) s"
    fi
}

# Lets cargo run what it has built as root.
run_as_root_by_cargo() {
    local host runner
    host=$(rustc -vV | sed -n 's/^host: //p')
    runner=CARGO_TARGET_${host//-/_}_RUNNER
    ((EUID == 0)) || export "${runner^^}"='sudo --preserve-env=PATH,SPLICEFS_TESTS_REQUIRE,SPLICEFS_TESTS_DIR,SPLICEFS_TESTS_LONG,SPLICEFS_TESTS_SEED --'
}

cargo_tests() {
    run_as_root_by_cargo
    # Random sequences are the same each time, so that a failure is of the change that is tested; other ones come with --long.
    ((long)) || export SPLICEFS_TESTS_SEED=${SPLICEFS_TESTS_SEED:-1}
    # A daemon leaves alone what is ignored when it starts, as SIGHUP is under nohup(1).
    SPLICEFS_TESTS_REQUIRE=1 SPLICEFS_TESTS_DIR=$base/tests SPLICEFS_TESTS_LONG=$long \
        env --default-signal=HUP,INT,TERM cargo test --workspace --no-fail-fast
}

# Every workload of the benchmark on every system, once, as root and as a user; nothing may be left of it.
benchmark_suite() {
    local user left
    run_as_root_by_cargo
    as_root mkdir -p -- "$base/bench"
    for user in '' 'nobody'; do
        cargo bench --profile dev --bench field -- --dir "$base/bench" --small --reps 1 \
            --workloads '*,memory-many,read-sizes' ${user:+--user "$user"}
        left=$(mounted_below "$base/bench"; as_root ls -A -- "$base/bench")
        [[ -z $left ]] || { echo "left behind: $left" && return 1; }
    done
}

install_tool() {
    local name=$1 version=$2
    if [[ $("$cache/bin/$name" --version 2>/dev/null) != *" $version" ]]; then
        # A build elsewhere than in this workspace, whose settings are not the tool's.
        (cd / && CARGO_TARGET_DIR=$cache/build cargo install --quiet --locked --root "$cache" "$name@$version")
    fi
}

# The layers of an overlay, as mount options: NAME
layers() {
    local at=$base/$1-layers
    as_root mkdir -p -- "$at"/{lower/below,upper,work}
    as_root chmod 755 "$at"/{lower,upper}
    printf 'lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work' "$at" "$at" "$at"
}

# Mounts a backend at $work/NAME, passthrough with $base/NAME-source as its source, an overlay of $base/NAME-layers:
# BACKEND NAME OPTIONS
mount_splicefs() {
    local source=() options=$3
    as_root mkdir -p -- "$work/$2"
    [[ $1 != overlay ]] || options=$(layers "$2"),$3
    if [[ $1 == passthrough ]]; then
        source=("$base/$2-source")
        as_root mkdir -p -- "${source[@]}"
        as_root chmod 755 "${source[@]}"
    fi
    as_root "$splicefs" "$1" "${source[@]}" "$work/$2" -o "$options"
}

# The results of pjdfstest in a directory: `NAME ok`, `NAME FAILED` or `NAME skipped` a line, sorted.
# The two directories have paths of one length: tests of PATH_MAX depend on it.
run_pjdfstest() {
    local directory=$1 output=$2
    as_root mkdir -p -- "$directory"
    as_root chmod 755 "$directory"
    # It fails when any test does, which is for the comparison to judge.
    as_root "$cache/bin/pjdfstest" -c "$here/suites/pjdfstest.toml" -p "$directory" >"$output.full" 2>&1 || :
    sed 's/\x1b\[[0-9;]*m//g' "$output.full" |
        awk 'NF == 2 && $2 ~ /^(ok|FAILED|skipped)$/ { print $1, $2 }' | LC_ALL=C sort >"$output"
    (($(wc -l <"$output") > 300)) || { tail -n 20 "$output.full" && return 1; }
}

# No failure that the kernel's own file system does not have: the source's, or the kernel's tmpfs or overlayfs.
# BACKEND OPTIONS
pjdfstest_suite() {
    local backend=$1 options=$2
    if [[ $backend == tmpfs ]]; then
        as_root mkdir -p -- "$work/ktm"
        as_root mount -t tmpfs tmpfs "$work/ktm"
        run_pjdfstest "$work/ktm/mount" "$work/native"
        as_root umount "$work/ktm"
    elif [[ $backend == overlay ]]; then
        as_root mkdir -p -- "$work/kov"
        as_root mount -t overlay overlay "$work/kov" -o "$(layers kov),redirect_dir=on"
        run_pjdfstest "$work/kov/mount" "$work/native"
        as_root umount "$work/kov"
    else
        run_pjdfstest "$base/native" "$work/native"
    fi
    mount_splicefs "$backend" pjd "allow_other,suid,dev,$options"
    run_pjdfstest "$work/pjd/mount" "$work/mounted"
    as_root "$splicefs" unmount "$work/pjd"
    local side
    for side in native mounted; do
        printf '%s: ' "$side"
        awk '{ n[$2]++ } END { printf "%d ok, %d failed, %d skipped\n", n["ok"], n["FAILED"], n["skipped"] }' "$work/$side"
    done
    # A skipped test is no failure: it asks pathconf(3), which knows file systems by their type.
    failures_only() { sed -n 's/ FAILED$//p' "$1"; }
    local new
    new=$(LC_ALL=C comm -13 <(failures_only "$work/native") <(failures_only "$work/mounted"))
    if [[ $new ]]; then
        printf "failed, and not so on the kernel's own file system:\n%s\n" "$new"
        while IFS= read -r test; do
            sed 's/\x1b\[[0-9;]*m//g' "$work/mounted.full" | grep -F -A 4 -- "$test " || :
        done <<<"$new"
        return 1
    fi
}

# One variant, on a mount of its own: CONFIG BACKEND OPTIONS OPERATIONS
fsx_variant() {
    local config=$1 backend=$2 options=$3 count=$4 name seed attempt status
    name=$(basename -- "$config" .toml)
    for attempt in 1 2 3; do
        # Chosen anew in each run, and printed, so that a failure can be repeated.
        seed=${FSX_SEED:-$((RANDOM * 32768 + RANDOM))}
        mount_splicefs "$backend" fsx "$options"
        echo "fsx $name on $backend: $count operations, seed $seed, -o $options"
        status=0
        as_root "$cache/bin/fsx" -q -N "$count" -S "$seed" -f "$config" -P "$work" "$work/fsx/$name" \
            >"$work/fsx.log" 2>&1 || status=$?
        as_root "$splicefs" unmount "$work/fsx"
        ((status)) || return 0
        # fsx itself draws a length of 0 now and then, which posix_fallocate(3) refuses everywhere (EINVAL).
        grep -q 'POSIX_FALLOCATE.*( *0x0 bytes)' <<<"$(tail -n 1 "$work/fsx.log")" || break
        echo "attempt $attempt asked for nothing to be allocated: once more, with another seed"
    done
    tail -n 40 "$work/fsx.log"
    return 1
}

# BACKEND OPTIONS OPERATIONS
fsx_suite() {
    local config
    for config in "$here"/suites/fsx/*.toml; do
        fsx_variant "$config" "$@"
    done
}

while (($#)); do
    case $1 in
        --long) long=1 operations=${FSX_OPERATIONS:-200000} ;;
        --keep) keep=1 ;;
        *) fail "usage: mount-tests/run.sh [--long] [--keep]" ;;
    esac
    shift
done

trap clean_up EXIT
check_system
install_missing
make_work
say 'building'
cargo build --workspace
splicefs=${CARGO_TARGET_DIR:-$repository/target}/debug/splicefs
[[ -x $splicefs ]] || fail "there is no program at $splicefs"

suite 'unit, conformance, plan oracle and mount tests' cargo_tests
suite 'the benchmark, in small' benchmark_suite
say "pjdfstest $PJDFSTEST and fsx $FSX"
install_tool pjdfstest "$PJDFSTEST"
install_tool fsx "$FSX"
for backend in passthrough tmpfs overlay; do
    suite "pjdfstest $PJDFSTEST on $backend" pjdfstest_suite "$backend" splice=auto
    suite "fsx $FSX on $backend, spliced" fsx_suite "$backend" passthrough=off,splice=on,splice_min=1 "$operations"
    suite "fsx $FSX on $backend, copied" fsx_suite "$backend" passthrough=off,splice=off "$operations"
    [[ $backend == passthrough ]] ||
        suite "fsx $FSX on $backend, written back later" fsx_suite "$backend" writeback=on "$operations"
    [[ $backend == tmpfs ]] ||
        suite "fsx $FSX on $backend, by the kernel itself" fsx_suite "$backend" passthrough=on "$operations"
done
if ((long)); then
    suite 'images built by buildah on overlay' as_root "$here/suites/buildah/run" "$splicefs"
    suite 'containers of podman on overlay' as_root "$here/suites/podman/run" "$splicefs"
fi

if ((failed)); then
    printf '\nfailed: %s\n' "${failures[@]}"
fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
