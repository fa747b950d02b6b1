# What the suites of container engines share, to be sourced by their `run`: a mount namespace, a directory, a user, and what is
# left of them at the end. Expects `splicefs`, and sets `work`.

# Installs what is missing: PROGRAM:PACKAGE ...
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    if ((${#missing[@]})); then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
}

# Goes on in a mount namespace of our own: what is mounted from here goes with it.
own_namespace() {
    if [[ -z ${SPLICEFS_SUITE_INSIDE-} ]]; then
        SPLICEFS_SUITE_INSIDE=1 exec unshare --mount -- "$0" "$splicefs"
    fi
}

# Makes the directory `work`, with splicefs in it, and the user NAME with 65,536 further ids from FIRST on.
prepare() {
    user=$1
    work=$(mktemp -d "/var/tmp/$user.XXXXXX")
    made_user=''
    trap clean_up EXIT
    chmod 755 "$work"
    install -m 755 -- "$splicefs" "$work/splicefs"
    if ! id "$user" >/dev/null 2>&1; then
        useradd -m "$user"
        made_user=1
    fi
    grep -q "^$user:" /etc/subuid ||
        usermod --add-subuids "$2-$(($2 + 65535))" --add-subgids "$2-$(($2 + 65535))" "$user"
}

clean_up() {
    local point pause=$work/runtime/libpod/tmp/pause.pid
    # What keeps a user's namespaces for podman, and their account from being removed.
    if [[ -s $pause ]]; then
        kill -KILL "$(<"$pause")" || :
        for ((i = 0; i < 50; i++)); do
            [[ -e /proc/$(<"$pause") ]] || break
            sleep 0.1
        done
    fi
    while read -r point; do
        umount -l -- "$point" || :
    done < <(findmnt -rno TARGET | grep -F "$work/" | tac)
    rm -rf --one-file-system -- "$work"
    if [[ -n $made_user ]]; then
        rm -f -- "/dev/shm/libpod_rootless_lock_$(id -u "$user")"
        userdel -r "$user" 2>"$work.userdel" || grep -v 'mail spool' "$work.userdel" || :
        rm -f -- "$work.userdel"
    fi
}

# Runs a command as the user, in their home.
as_user() {
    local home
    home=$(getent passwd "$user" | cut -d: -f6)
    install -d -m 700 -o "$user" -- "$work/runtime"
    (cd -- "$home" && setpriv --reuid "$user" --regid "$user" --init-groups \
        env HOME="$home" XDG_RUNTIME_DIR="$work/runtime" "$@")
}
