# /proc/self/mountinfo -> id, type, device and mount point of each local file system, separated by tabs.

# Spaces and the like are written as \ooo. A name with a tab or a line break gives "".
function plain(text,    result, code) {
    result = ""
    while (match(text, /\\[0-7][0-7][0-7]/)) {
        code = substr(text, RSTART + 1, 1) * 64 + substr(text, RSTART + 2, 1) * 8 + substr(text, RSTART + 3, 1)
        if (code == 9 || code == 10)
            return ""
        result = result substr(text, 1, RSTART - 1) sprintf("%c", code)
        text = substr(text, RSTART + 4)
    }
    return result text
}

{
    # Optional fields end with a dash.
    for (dash = 7; dash <= NF && $dash != "-"; dash++) { }
    type = $(dash + 1)
    # Asking a remote file system for its size can take for ever; those in memory and images are no disks.
    if (type ~ /^(autofs|nfs4?|cifs|smb3|smbfs|ceph|glusterfs|lustre|afs|fuse|fuse\..*)$/)
        next
    if (type ~ /^(tmpfs|ramfs|devtmpfs|hugetlbfs|efivarfs|squashfs)$/)
        next
    device = plain($(dash + 2))
    mount = plain($5)
    if (mount != "" && device != "")
        print $3 "\t" type "\t" device "\t" mount
}
