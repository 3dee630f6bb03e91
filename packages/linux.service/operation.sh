#!/bin/sh
# operation.sh status|ensure|check
#
# Needs a POSIX shell, timeout, and systemctl or scripts in /etc/init.d. What differs between the two is in systemd.sh
# and sysv.sh, which define the same functions:
#
#   look              sets running (started, stopped, or another word), enabled (yes or no), words and main_pid; fails
#                     for an unknown service
#   act VERB          start, stop, restart or reload, within $limit seconds; fails when that cannot be done. Gives changed
#                     as true before it begins what may change something, also where it fails then
#   enable, disable
set -euf
export LC_ALL=C

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

truth() {
    [ "$1" = "$2" ] && echo true || echo false
}

# bounded SECONDS COMMAND...: what hangs is ended, with a message and the code 124. It does not fail the job itself, as
# callers may have put its words elsewhere.
bounded() {
    seconds=$1
    shift
    code=0
    timeout "$seconds" "$@" < /dev/null || code=$?
    if [ "$code" = 124 ]; then
        echo "$name has not done it within $seconds seconds: look at its log, or give it a longer timeout" >&2
    fi
    return "$code"
}

show() {
    look
    printf '%s: %s\n' "$name" "$words"
    give active "$(truth "$running" started)"
    give enabled "$(truth "$enabled" yes)"
    give state "$words"
    if [ -n "$main_pid" ]; then
        give main_pid "$main_pid"
    fi
}

# Puts into $verb and $enabling what is to be done, each empty for nothing.
compare() {
    look
    verb=
    enabling=
    case $wanted_state in
        started) [ "$running" = started ] || verb=start ;;
        stopped) [ "$running" = stopped ] || verb=stop ;;
        restarted) verb=restart ;;
        reloaded) [ "$running" = started ] && verb=reload || verb=start ;;
    esac
    case $wanted_enabled in
        "$enabled" | unchanged) ;;
        yes) enabling=enable ;;
        no) enabling=disable ;;
    esac
}

# differ NAME FROM TO: adds to $differences, none of which needs an escape in JSON.
differ() {
    differences=$differences${differences:+,}'{"name":"'$1'","from":"'$2'","to":"'$3'"}'
    echo "$1: $2 -> $3"
}

name=$SIS_PARAM_NAME
wanted_state=${SIS_PARAM_STATE-unchanged}
wanted_enabled=${SIS_PARAM_ENABLED-unchanged}
limit=${SIS_PARAM_TIMEOUT-90}
look_limit=60
# What systemd itself asks.
if [ -d /run/systemd/system ]; then
    . "$SIS_PACKAGE_DIR/systemd.sh"
else
    . "$SIS_PACKAGE_DIR/sysv.sh"
fi

progress 0 "Looking at $name"
case $1 in
    status)
        show
        ;;
    check)
        compare
        printf '%s: %s\n' "$name" "$words"
        differences=
        if [ -n "$verb" ]; then
            differ state "$running" "$wanted_state"
        fi
        if [ -n "$enabling" ]; then
            differ enabled "$enabled" "$wanted_enabled"
        fi
        [ -n "$differences" ] || echo "Everything is as asked for"
        give would_change "$([ -n "$differences" ] && echo true || echo false)"
        give differences "[$differences]"
        ;;
    ensure)
        compare
        changed=false
        if [ -n "$enabling" ]; then
            progress 20 "$enabling $name"
            "$enabling" || fail "$name cannot be set to enabled: $wanted_enabled: see above"
            compare
            if [ -n "$enabling" ]; then
                fail "$name cannot be set to enabled: $wanted_enabled; it is: $words"
            fi
            changed=true
            # Also where the rest fails.
            give changed true
        fi
        if [ -n "$verb" ]; then
            progress 40 "$verb $name"
            act "$verb" || fail "$name does not $verb: see above, and its log"
            changed=true
        fi
        progress 90 "Looking again"
        give changed "$changed"
        show
        ;;
esac
progress 100 "Done"
