# Packages before and after, "name<TAB>version" -> name, version before, version after, for those that differ. Of a
# package that is there in several versions, such as a kernel, the ones that came and went. FS is a tab.

FILENAME == ARGV[1] { before[$0]; next }
$0 in before { delete before[$0]; next }
{ add(came, $1, $2) }

function add(list, name, version) {
    list[name] = list[name] (list[name] == "" ? "" : ", ") version
    names[name]
}

END {
    for (line in before) {
        tab = index(line, "\t")
        add(gone, substr(line, 1, tab - 1), substr(line, tab + 1))
    }
    for (name in names)
        print name "\t" gone[name] "\t" came[name]
}
