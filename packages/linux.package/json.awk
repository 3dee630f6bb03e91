# What the programs that print JSON share.

function quoted(text,    parts, count, i) {
    gsub(/\\/, "&&", text)
    gsub(/[\001-\037]/, "?", text)
    count = split(text, parts, "\"")
    text = parts[1]
    for (i = 2; i <= count; i++)
        text = text "\\\"" parts[i]
    return "\"" text "\""
}

# An output parameter holds 64 KiB: what goes beyond is left out, and counted in `left_out`.
function append(list, entry) {
    if (left_out || length(list) + length(entry) > 60000) {
        left_out++
        return list
    }
    return list (list == "" ? "" : ",") entry
}

function text_or_null(value) {
    return value == "" ? "null" : quoted(value)
}
