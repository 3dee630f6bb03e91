# name, version before, version after -> a JSON list. FS is a tab. Needs json.awk.

{ list = append(list, "{\"name\":" quoted($1) ",\"from\":" text_or_null($2) ",\"to\":" text_or_null($3) "}") }

END {
    print "[" list "]"
    if (left_out)
        print left_out " entries more than the output holds: what is printed above has all of them" > "/dev/stderr"
}
