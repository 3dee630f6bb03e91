# The packages called `names` -> a JSON list. Needs json.awk and versions.awk.

END {
    count = split(names, asked, " ")
    for (i = 1; i <= count; i++) {
        name = plain(asked[i])
        list = append(list, "{\"name\":" quoted(asked[i]) ",\"installed\":" text_or_null(installed[name]) \
            ",\"candidate\":" text_or_null(candidate[name]) "}")
    }
    print "[" list "]"
    if (left_out)
        print left_out " of the packages are left out, more than the output holds: ask for fewer" > "/dev/stderr"
}
