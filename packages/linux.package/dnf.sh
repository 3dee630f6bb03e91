# dnf and rpm, for operation.sh.

native=.$(uname -m)

# Some packages, such as kernels, are there in several versions, a line each.
installed() {
    rpm -qa --qf '%{NAME} %{ARCH} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n' > "$work/all" || return
    # Keys are no packages.
    sed '/^gpg-pubkey /d' "$work/all" | named
}

# "name architecture version" -> "name<TAB>version"
named() {
    awk -v native="$native" 'NF == 3 {
        sub(/^0:/, "", $3)
        print $1 ($2 == "noarch" || "." $2 == native ? "" : "." $2) "\t" $3
    }'
}

# dnf would wait for its locks without a bound.
dnf_unlocked() {
    when_unlocked dnf --setopt=exit_on_lock=True ${private:+"--setopt=cachedir=$private"} "$@"
}

locked() {
    grep -q -e 'already locked by' -e 'transaction lock' "$work/errors"
}

candidates() {
    case "$*" in
        *=*) fail "a name with = and a version is for apt only: dnf has no such names" ;;
    esac
    dnf_unlocked -q repoquery --available --latest-limit=1 --qf '%{name} %{arch} %{evr}\n' "$@" > "$work/available" ||
        fail "dnf cannot read the repositories: see above"
    named < "$work/available"
}

refresh() {
    dnf_unlocked -y --refresh makecache
}

plan() {
    # It ends as if somebody had said no to what it shows.
    if ! dnf_unlocked --assumeno "$@" > "$work/simulation" && ! grep -q '^Operation aborted' "$work/errors"; then
        cat "$work/simulation" >&2
        return 1
    fi
    awk -v native="$native" -f "$SIS_PACKAGE_DIR/transaction.awk" "$work/simulation"
}

change() {
    dnf_unlocked -y "$@"
}
