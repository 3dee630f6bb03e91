# apt-get and dpkg, for operation.sh.

export DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none UCF_FORCE_CONFFOLD=1
native=:$(dpkg --print-architecture)

# A package that is neither in order nor gone has its state behind its version, so that it is no version asked for.
installed() {
    dpkg-query -W -f '${binary:Package}\t${Version}\t${db:Status-Status}\n' > "$work/all" || return
    awk -F '\t' -v native="$native" '
        $3 == "not-installed" || $3 == "config-files" { next }
        {
            sub(native "$", "", $1)
            print $1 "\t" $2 ($3 ~ /^(installed|triggers-)/ ? "" : " (" $3 ")")
        }' "$work/all"
}

with_index() {
    program=$1
    shift
    "$program" ${private:+-o} ${private:+"Dir::State::Lists=$private/lists"} \
        ${private:+-o} ${private:+"Dir::Cache=$private"} ${private:+-o} ${private:+APT::Sandbox::User=root} "$@"
}

candidates() {
    # Without the versions that were asked for. What is left has no blanks.
    with_index apt-cache policy -- $(printf '%s\n' "$@" | sed 's/=.*//') > "$work/policy" || return
    awk -v native="$native" '
        /^[^ ].*:$/ {
            name = substr($0, 1, length($0) - 1)
            sub(native "$", "", name)
        }
        $1 == "Candidate:" && $2 != "(none)" { print name "\t" $2 }' "$work/policy"
}

refresh() {
    if [ -n "$private" ]; then
        mkdir -p "$private/lists/partial" "$private/archives/partial"
    fi
    # A repository that cannot be reached is a mere warning otherwise.
    when_unlocked with_index apt-get -q -o APT::Update::Error-Mode=any update
}

# The index and the fetched packages have locks for which apt does not wait by itself, and which it takes before it
# changes anything. For those of dpkg it has waited already.
locked() {
    grep -q '^E: Could not get lock' "$work/errors" && grep -q '^E: Unable to lock directory' "$work/errors"
}

apt_get() {
    verb=$1
    shift
    if [ "$verb" = upgrade ] && [ $# = 0 ]; then
        set -- upgrade --with-new-pkgs
    elif [ "$verb" = upgrade ]; then
        set -- install --only-upgrade -- "$@"
    else
        case "$*" in
            # Who names a version means it.
            *=*) set -- "$verb" --allow-downgrades -- "$@" ;;
            *) set -- "$verb" -- "$@" ;;
        esac
    fi
    with_index apt-get -q -y $simulate -o DPkg::Lock::Timeout="$lock_timeout" \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

plan() {
    simulate=-s
    if ! apt_get "$@" > "$work/simulation"; then
        cat "$work/simulation" >&2
        return 1
    fi
    awk -v native="$native" '
        $1 ~ /^(Remv|Purg|Inst|Conf)$/ {
            name = $2
            sub(native "$", "", name)
        }
        $1 == "Remv" || $1 == "Purg" { print name "\t" }
        $1 == "Inst" || ($1 == "Conf" && !(name in seen)) {
            seen[name] = 1
            match($0, /\([^ )]+/)
            print name "\t" substr($0, RSTART + 1, RLENGTH - 1)
        }' "$work/simulation"
}

change() {
    simulate=
    when_unlocked apt_get "$@"
}
