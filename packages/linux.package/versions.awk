# Reads the files of the installed packages and of the candidates. FS is a tab; `native` is the suffix of names that
# the two do without.

# As text: to awk 1.1 and 1.10 are one number.
FILENAME == ARGV[1] { installed[$1] = $2 ""; next }
{ candidate[$1] = $2 "" }

# A name as the files have it, without a version that was asked for.
function plain(name,    length_without) {
    sub(/=.*/, "", name)
    length_without = length(name) - length(native)
    return substr(name, length_without + 1) == native ? substr(name, 1, length_without) : name
}

# The version that was asked for, or "".
function version(name) {
    return sub(/^[^=]*=/, "", name) ? name : ""
}
