# id, type, device, mount point, "block size, blocks, free, available" -> a JSON list. Needs json.awk.

BEGIN { FS = "\t" }

# A file system that is mounted in several places is one disk. Those without blocks hold no files.
!($1 in seen) && split($5, blocks, " ") == 4 && blocks[2] > 0 {
    seen[$1] = 1
    # Not all by sprintf: that of mawk ends at 8 KiB.
    entry = "{\"mount\":" quoted($4) ",\"device\":" quoted($3) ",\"type\":" quoted($2) \
        sprintf(",\"size_bytes\":%.0f,\"used_bytes\":%.0f,\"available_bytes\":%.0f}",
            blocks[1] * blocks[2], blocks[1] * (blocks[2] - blocks[3]), blocks[1] * blocks[4])
    list = append(list, entry)
}

END { print "[" list "]" }
