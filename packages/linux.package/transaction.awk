# The table that dnf shows of a transaction -> name, version after; "" when removed. `native` as everywhere.
#
# Sections such as "Installing:" and "Removing dependent packages:" have a row for each package: name, architecture,
# version and more. Rows are indented by one blank; what does not fit goes on in the next line, indented further. Under
# "Skipping packages with conflicts:" and the like is what stays as it is.

function flush(    field) {
    if (split(row, field, " ") >= 3 && section != "") {
        sub(/^0:/, "", field[3])
        if (field[2] != "noarch" && "." field[2] != native)
            field[1] = field[1] "." field[2]
        print field[1] "\t" (section ~ /^Remov/ ? "" : field[3])
    }
    row = ""
}

/^Transaction Summary/ {
    flush()
    exit
}
/^[A-Z][a-z ]*:$/ {
    flush()
    section = /^Skipping/ ? "" : $0
}
/^ [^ ]/ {
    flush()
    row = $0
}
# "replacing ..." says what goes for the package above it, which has a row of its own where that matters.
/^  / && $1 != "replacing" && row != "" { row = row " " $0 }
