# Scripts in /etc/init.d, for operation.sh.

script=/etc/init.d/$name

# service_script SECONDS VERB
service_script() {
    if command -v service > /dev/null; then
        bounded "$1" service "$name" "$2"
    else
        bounded "$1" env -i PATH="$PATH" "$script" "$2"
    fi
}

look() {
    if [ ! -x "$script" ]; then
        fail "there is no service called $name: no systemd runs here, and $script is no script"
    fi
    code=0
    service_script $look_limit status > "$SIS_WORK_DIR/status" 2>&1 || code=$?
    # The codes of the Linux Standard Base.
    case $code in
        0) running=started ;;
        1 | 2 | 3) running=stopped ;;
        124) fail "$script cannot tell whether $name runs: its status has not ended within $look_limit seconds" ;;
        *)
            cat "$SIS_WORK_DIR/status" >&2
            fail "$script cannot tell whether $name runs: its status ends with $code"
            ;;
    esac
    enabled=no
    # The folders of the runlevels that people use.
    set +f
    for link in /etc/rc[2345].d/S[0-9][0-9]"$name"; do
        if [ -e "$link" ]; then
            enabled=yes
        fi
    done
    set -f
    words=$running
    [ "$enabled" = yes ] && words="$words, enabled" || words="$words, not enabled"
    main_pid=
    for file in "/run/$name.pid" "/run/$name/$name.pid"; do
        if [ "$running" = started ] && [ -r "$file" ]; then
            read -r main_pid rest < "$file" || :
        fi
    done
    case $main_pid in
        *[!0-9]*) main_pid= ;;
    esac
}

enable() {
    if command -v update-rc.d > /dev/null; then
        # The first makes the links where there are none; the second turns round those of disable.
        bounded "$limit" update-rc.d "$name" defaults && bounded "$limit" update-rc.d "$name" enable
    elif command -v chkconfig > /dev/null; then
        bounded "$limit" chkconfig "$name" on
    else
        fail "this machine has neither update-rc.d nor chkconfig, which enable services"
    fi
}

disable() {
    if command -v update-rc.d > /dev/null; then
        bounded "$limit" update-rc.d "$name" disable
    elif command -v chkconfig > /dev/null; then
        bounded "$limit" chkconfig "$name" off
    else
        fail "this machine has neither update-rc.d nor chkconfig, which disable services"
    fi
}

act() {
    case $1 in
        start | restart) hand_over "$1" || return ;;
        *)
            give changed true
            service_script "$limit" "$1" || return
            ;;
    esac
    [ "$1" = stop ] && expected=stopped || expected=started
    # Many scripts end before their service has started or stopped.
    look
    for _ in 1 2 3 4 5; do
        if [ "$running" != "$expected" ]; then
            sleep 1
            look
        fi
    done
    [ "$running" = "$expected" ]
}

# What a job starts ends with the job: have atd start the service, and wait for what its script says.
hand_over() {
    answer=$SIS_WORK_DIR/answer
    cat > "$SIS_WORK_DIR/hand_over" << EOF
cd /
exec > '$answer.output' 2>&1 < /dev/null
timeout $limit env -i PATH='$PATH' '$script' $1
echo \$? > '$answer.new'
mv '$answer.new' '$answer'
EOF
    if ! command -v at > /dev/null || ! pidof atd > /dev/null; then
        fail "cannot $1 $name: without systemd it takes atd, since what a job starts itself ends with the job" \
            "Install at and start atd on this machine."
    fi
    give changed true
    bounded "$limit" env -i PATH="$PATH" at -f "$SIS_WORK_DIR/hand_over" now 2> "$answer.at" || {
        cat "$answer.at" >&2
        return 1
    }
    waited=0
    while [ ! -e "$answer" ] && [ "$waited" -le "$((limit + 10))" ]; do
        sleep 1
        waited=$((waited + 1))
    done
    cat "$answer.output" || :
    if [ ! -e "$answer" ]; then
        fail "atd has not done it within $limit seconds: see whether it runs"
    fi
    read -r code < "$answer"
    if [ "$code" = 124 ]; then
        fail "$name has not done it within $limit seconds: look at its log, or give it a longer timeout"
    fi
    return "$code"
}
