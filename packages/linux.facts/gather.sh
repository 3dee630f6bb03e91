#!/bin/sh
# Needs a POSIX shell, awk, stat and uname; reads /proc and /sys.
set -eu
export LC_ALL=C

progress() {
    printf '%s %s\n' "$1" "$2" >> "$SIS_PROGRESS"
}

# fact NAME LABEL VALUE: gives one output parameter, and shows it.
fact() {
    if [ -z "$3" ]; then
        printf 'cannot read %s\n' "$1" >&2
        exit 1
    fi
    printf '%s=%s\n' "$1" "$3" >> "$SIS_OUTPUT"
    printf '%-18s %s\n' "$2" "$3"
}

# release NAME: a field of os-release, which is written to be read by a shell.
release() (
    for file in /etc/os-release /usr/lib/os-release; do
        if [ -r "$file" ]; then
            . "$file"
            break
        fi
    done
    eval "printf '%s' \"\${$1:-unknown}\""
)

memory() {
    awk -v field="$1:" '$1 == field { printf "%.0f", $2 * 1024 }' /proc/meminfo
}

# Tab-separated: file system id, type, device, mount point, then block size, blocks, free and available ones.
file_systems() {
    tab=$(printf '\t')
    awk -f "$SIS_PACKAGE_DIR/mounts.awk" /proc/self/mountinfo |
        while IFS="$tab" read -r id type device mount; do
            [ -d "$mount" ] || continue
            blocks=$(stat -f -c '%S %b %f %a' -- "$mount" 2>/dev/null) || continue
            printf '%s\t%s\t%s\t%s\t%s\n' "$id" "$type" "$device" "$mount" "$blocks"
        done
}

interfaces() {
    for directory in /sys/class/net/*; do
        [ -e "$directory/address" ] || continue
        read -r state < "$directory/operstate" 2>/dev/null || state=unknown
        read -r mac < "$directory/address" 2>/dev/null || mac=
        printf 'interface %s %s %s\n' "${directory##*/}" "$state" "$mac"
    done
    for table in route fib_trie if_inet6; do
        if [ -r "/proc/net/$table" ]; then
            awk -v table="$table" '{ print table, $0 }' "/proc/net/$table"
        fi
    done
}

progress 0 "Reading the system"
fact os_name "Operating system" "$(release NAME)"
fact os_version "Version" "$(release VERSION_ID)"
fact kernel "Kernel" "$(uname -r)"
fact architecture "Architecture" "$(uname -m)"
fact hostname "Host name" "$(uname -n)"
fact cpu_model "CPU" "$(awk -F '[ \t]*: *' '$1 == "model name" { print $2; found = 1; exit }
    END { if (!found) print "unknown" }' /proc/cpuinfo)"
fact cpu_count "CPUs" "$(grep -c '^processor' /proc/cpuinfo)"
fact memory_total_bytes "Memory (bytes)" "$(memory MemTotal)"
fact memory_available_bytes "Available (bytes)" "$(memory MemAvailable)"
fact uptime_seconds "Uptime (seconds)" "$(awk '{ printf "%d", $1 }' /proc/uptime)"

progress 50 "Reading the disks"
fact disks "Disks" "$(file_systems | awk -f "$SIS_PACKAGE_DIR/json.awk" -f "$SIS_PACKAGE_DIR/disks.awk")"

progress 80 "Reading the network"
fact network "Network" "$(interfaces | awk -f "$SIS_PACKAGE_DIR/json.awk" -f "$SIS_PACKAGE_DIR/network.awk")"
progress 100 "Done"
