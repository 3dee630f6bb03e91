# systemd, for operation.sh.

# What systemd calls the service, once it was looked at. $name may be an alias, of which systemctl does not say whether
# it is enabled, and which may go when it is disabled.
unit=
# yes once it was enabled: then indirect, of a unit that only has others enabled, is all that it can become.
also=

# systemd SECONDS ARGUMENT...
systemd() {
    seconds=$1
    shift
    bounded "$seconds" systemctl --no-pager --no-ask-password "$@"
}

property() {
    printf '%s\n' "$properties" | sed -n "s/^$1=//p"
}

look() {
    properties=$(systemd $look_limit show \
        -p Id,LoadState,ActiveState,SubState,MainPID,NeedDaemonReload,CanReload -- "${unit:-$name}") ||
        fail "systemd does not answer: see above"
    unit=$(property Id)
    case $(property LoadState) in
        loaded | masked) ;;
        not-found) fail "there is no service called $name: correct the name" ;;
        *) fail "the unit of $name cannot be read; systemctl status $name says why" ;;
    esac
    active=$(property ActiveState)
    case $active in
        active | reloading) running=started ;;
        inactive | failed) running=stopped ;;
        *) running=$active ;;
    esac
    # It fails where the word is no form of enabled.
    code=0
    enablement=$(systemd $look_limit is-enabled -- "$unit" 2> /dev/null) || code=$?
    if [ "$code" = 124 ]; then
        fail "systemd does not say whether $name is enabled within $look_limit seconds"
    fi
    case $enablement,$also in
        enabled,* | indirect,yes) enabled=yes ;;
        # Where it is indirect, something else may be enabled, or there is an alias: not the unit itself.
        *) enabled=no ;;
    esac
    words="$active ($(property SubState)), ${enablement:-not enabled}"
    main_pid=$(property MainPID)
    if [ "$main_pid" = 0 ]; then
        main_pid=
    fi
}

enable() {
    systemd "$limit" enable -- "$unit" || return
    # A unit that only has others enabled (Also=) stays indirect.
    also=yes
}

disable() {
    systemd "$limit" disable -- "$unit"
}

act() {
    result=0
    if [ "$(property NeedDaemonReload)" = yes ]; then
        printf '%s\n' "The unit of $name has changed since systemd read it: having it read again"
        systemd "$limit" daemon-reload || return
        look
    fi
    case $1,$(property LoadState),$(property CanReload) in
        # Refused at once.
        start,masked,* | restart,masked,* | reload,*,no) ;;
        *) give changed true ;;
    esac
    systemd "$limit" "$1" -- "$unit" || result=$?
    look
    # A service may die once systemd has called it started; activating means then that it is tried again and again.
    case $1:$active in
        stop:*) ;;
        *:failed | *:activating) result=1 ;;
    esac
    if [ "$result" != 0 ]; then
        systemd $look_limit status -n 20 -- "$unit" >&2 || :
        return 1
    fi
}
