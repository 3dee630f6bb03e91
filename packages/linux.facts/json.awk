# What the programs that print JSON share.

function quoted(text,    parts, count, i) {
    gsub(/\\/, "&&", text)
    gsub(/[\001-\037]/, "?", text)
    text = utf8(text)
    count = split(text, parts, "\"")
    text = parts[1]
    for (i = 2; i <= count; i++)
        text = text "\\\"" parts[i]
    return "\"" text "\""
}

# Names may be any bytes, outputs may not: what is no character of UTF-8 (RFC 3629) becomes a ? for each byte. Needs the
# locale C, in which an awk takes each byte for itself.
function utf8(text,    result, bytes) {
    result = ""
    while (match(text, /[\200-\377]/)) {
        result = result substr(text, 1, RSTART - 1)
        text = substr(text, RSTART)
        if (text ~ /^[\302-\337][\200-\277]/)
            bytes = 2
        else if (text ~ /^(\340[\240-\277]|[\341-\354\356\357][\200-\277]|\355[\200-\237])[\200-\277]/)
            bytes = 3
        else if (text ~ /^(\360[\220-\277]|[\361-\363][\200-\277]|\364[\200-\217])[\200-\277][\200-\277]/)
            bytes = 4
        else
            bytes = 0
        result = result (bytes ? substr(text, 1, bytes) : "?")
        text = substr(text, bytes ? bytes + 1 : 2)
    }
    return result text
}

# An output parameter holds 64 KiB: what goes beyond is left out.
function append(list, entry) {
    if (length(list) + length(entry) > 60000)
        return list
    return list (list == "" ? "" : ",") entry
}
