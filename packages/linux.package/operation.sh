#!/bin/sh
# operation.sh query|ensure|check|upgrade NAME...
#
# Needs a POSIX shell, awk, and apt-get with dpkg or dnf with rpm. What differs between the two is in apt.sh and
# dnf.sh, which define the same functions:
#
#   installed             the installed packages, "name<TAB>version" a line, without the suffix $native of names
#   candidates NAME...    the newest version of each that can be had, likewise
#   refresh               fetches the index
#   plan VERB NAME...     simulates, and gives what would come and go: "name<TAB>new version, or nothing"
#   change VERB NAME...   does it; VERB is install, upgrade (all, without a name) or remove
#
# $private, if not empty, is the directory for an index and a cache of the job's own.
set -euf
export LC_ALL=C
operation=$1
shift

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

progress() {
    printf '%s %s\n' "$1" "$2" >> "$SIS_PROGRESS"
}

give() {
    printf '%s=%s\n' "$1" "$2" >> "$SIS_OUTPUT"
}

# Fedora's relatives may have apt, and Debian's dnf, as tools for other machines.
manager() (
    if [ -r /etc/os-release ]; then
        . /etc/os-release
    fi
    case " ${ID-} ${ID_LIKE-} " in
        *" fedora "* | *" rhel "*) order="dnf apt-get" ;;
        *) order="apt-get dnf" ;;
    esac
    for program in $order; do
        if command -v "$program" > /dev/null; then
            echo "${program%-get}"
            return
        fi
    done
    fail "this machine has neither apt-get nor dnf, the package managers that are supported"
)

# Runs a command whose error messages can wait, again while its last words in $work/errors are that another process
# has the lock.
when_unlocked() {
    waited=0
    while :; do
        code=0
        "$@" 2> "$work/errors" || code=$?
        if [ "$code" = 0 ] || ! locked || [ -n "$stopped" ]; then
            cat "$work/errors" >&2
            return "$code"
        fi
        if [ "$waited" -ge "$lock_timeout" ]; then
            cat "$work/errors" >&2
            echo "It has not come free within $lock_timeout seconds: try again later, or give a longer lock_timeout" >&2
            return "$code"
        fi
        if [ "$waited" = 0 ]; then
            cat "$work/errors"
            echo "Another process uses the package manager: waiting for up to $lock_timeout seconds"
        fi
        sleep 1
        waited=$((waited + 1))
        if [ -n "$stopped" ]; then
            cat "$work/errors" >&2
            return "$code"
        fi
    done
}

# Puts the names into $install, $upgrade and $remove, as far as something is to be done about them.
sort_out() {
    candidates "$@" > "$work/candidates"
    awk -F '\t' -v state="$state" -v native="$native" -v names="$*" \
        -f "$SIS_PACKAGE_DIR/versions.awk" -f "$SIS_PACKAGE_DIR/wanted.awk" \
        "$work/before" "$work/candidates" > "$work/wanted"
    install=$(verb_names install)
    upgrade=$(verb_names upgrade)
    remove=$(verb_names remove)
}

verb_names() {
    awk -v verb="$1" '$1 == verb { print $2 }' "$work/wanted"
}

# each COMMAND: plan or change, for what sort_out has found. After a cancel nothing more is begun.
each() {
    for verb in remove install upgrade; do
        [ -z "$stopped" ] || return
        eval "names=\$$verb"
        if [ -n "$names" ]; then
            # Validated names, without blanks.
            "$1" "$verb" $names || return
        fi
    done
}

# report OUTPUT OUTPUT < CHANGES: gives whether there are any, and what they are.
report() {
    sort -u | tee "$work/report" | awk -F '\t' '
        { printf "%s: %s -> %s\n", $1, $2 == "" ? "not installed" : $2, $3 == "" ? "not installed" : $3 }'
    give "$1" "$(test -s "$work/report" && echo true || echo false)"
    give "$2" "$(awk -F '\t' -f "$SIS_PACKAGE_DIR/json.awk" -f "$SIS_PACKAGE_DIR/changes.awk" "$work/report")"
}

# Says of a report without changes what it means, where nothing has failed.
conclude() {
    [ -s "$work/report" ] || echo "Everything is as asked for"
}

# What is installed now, compared with $work/before. This is the truth, also when the package manager has failed in
# the middle.
report_changes() {
    installed > "$work/after"
    awk -F '\t' -f "$SIS_PACKAGE_DIR/compare.awk" "$work/before" "$work/after" | report changed changes
}

# Runs a command that changes packages. It is not cut off by a cancel, but has the job's grace to come to an end.
apply() {
    progress 40 "Working"
    trap 'stopped=yes' TERM
    code=0
    "$@" || code=$?
    report_changes
    if [ -n "$stopped" ]; then
        fail "the job was stopped; the package manager had its time to end what it was at"
    fi
    if [ "$code" != 0 ]; then
        fail "$manager has failed: its messages above say why; what it had changed by then is in the output changes"
    fi
    conclude
}

work=$SIS_WORK_DIR
private=
stopped=
lock_timeout=${SIS_PARAM_LOCK_TIMEOUT-60}
state=${SIS_PARAM_STATE-latest}
manager=$(manager)
. "$SIS_PACKAGE_DIR/$manager.sh"

progress 0 "Looking at what is installed"
if [ "${SIS_PARAM_REFRESH-false}" = true ]; then
    if [ "$operation" = check ]; then
        private=$work/index
        mkdir "$private"
    fi
    progress 10 "Fetching the index"
    refresh ||
        fail "the index of the repositories cannot be fetched: see above" "Leave refresh out to use the present one."
fi
installed > "$work/before" || fail "the list of installed packages cannot be read: see above"

case $operation in
    query)
        candidates "$@" > "$work/candidates"
        packages=$(awk -F '\t' -v native="$native" -v names="$*" \
            -f "$SIS_PACKAGE_DIR/json.awk" -f "$SIS_PACKAGE_DIR/versions.awk" -f "$SIS_PACKAGE_DIR/query.awk" \
            "$work/before" "$work/candidates")
        give packages "$packages"
        printf '%s\n' "$packages"
        ;;
    check)
        sort_out "$@"
        progress 40 "Simulating"
        each plan > "$work/plan" ||
            fail "$manager cannot do this: its messages above say why"
        awk -F '\t' -f "$SIS_PACKAGE_DIR/planned.awk" "$work/before" "$work/plan" | report would_change differences
        conclude
        ;;
    ensure)
        sort_out "$@"
        apply each change
        ;;
    upgrade)
        if [ $# = 0 ]; then
            apply change upgrade
        else
            sort_out "$@"
            if [ -n "$install" ]; then
                fail "not installed, so it cannot be upgraded: $install" "Use ensure to install packages."
            fi
            apply each change
        fi
        ;;
esac
progress 100 "Done"
