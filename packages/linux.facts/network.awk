# Interfaces and the kernel's address tables, each line with the name of its table first -> a JSON list. Needs
# json.awk.

function number(hex,    value, i) {
    for (i = 1; i <= length(hex); i++)
        value = value * 16 + index("0123456789abcdef", tolower(substr(hex, i, 1))) - 1
    return value + 0
}

# The kernel prints an IPv4 address as a number of the machine, which is little-endian wherever people run this.
function octet(hex, i) {
    return number(substr(hex, 9 - 2 * i, 2))
}

function prefix_length(mask,    i, byte, bits) {
    for (i = 1; i <= 4; i++)
        for (byte = octet(mask, i); byte > 0; byte = (byte * 2) % 256)
            bits++
    return bits + 0
}

function within(address, destination, mask,    parts, i) {
    split(address, parts, ".")
    for (i = 1; i <= 4; i++)
        if (parts[i] - parts[i] % (256 - octet(mask, i)) != octet(destination, i))
            return 0
    return 1
}

# 32 digits -> the usual form, in which :: stands for the longest run of zeros (RFC 5952).
function ipv6(hex,    groups, i, start, best, best_start, text) {
    for (i = 1; i <= 8; i++) {
        groups[i] = substr(hex, 4 * i - 3, 4)
        sub(/^0+/, "", groups[i])
        if (groups[i] != "")
            start = 0
        else {
            if (!start)
                start = i
            if (i - start + 1 > best) {
                best = i - start + 1
                best_start = start
            }
        }
    }
    for (i = 1; i <= 8; i++) {
        if (best > 1 && i == best_start) {
            text = text "::"
            i += best - 1
        } else
            text = text (text == "" || text ~ /:$/ ? "" : ":") (groups[i] == "" ? "0" : groups[i])
    }
    return text
}

function add(name, address) {
    if (!(name in known)) {
        known[name] = 1
        names[++count] = name
    }
    if (address != "")
        addresses[name] = addresses[name] (addresses[name] == "" ? "" : ",") quoted(address)
}

$1 == "interface" {
    add($2, "")
    state[$2] = $3
    mac[$2] = $4
}

# Networks that are reached directly: interface, destination, gateway, …, mask.
$1 == "route" && $4 == "00000000" && $9 != "00000000" {
    route_name[++routes] = $2
    route_destination[routes] = $3
    route_mask[routes] = $9
}

$1 == "fib_trie" && $2 == "|--" { candidate = $3 }

# Each address is in the main table and in the local one.
$1 == "fib_trie" && $2 == "/32" && $3 == "host" && $4 == "LOCAL" && !(candidate in taken) {
    taken[candidate] = 1
    name = candidate ~ /^127\./ ? "lo" : ""
    longest = name == "" ? 0 : 8
    for (i = 1; i <= routes; i++) {
        bits = prefix_length(route_mask[i])
        if (bits > longest && within(candidate, route_destination[i], route_mask[i])) {
            longest = bits
            name = route_name[i]
        }
    }
    add(name, candidate "/" (longest ? longest : 32))
}

$1 == "if_inet6" { add($7, ipv6($2) "/" number($4)) }

END {
    for (i = 1; i <= count; i++) {
        name = names[i]
        # Not by sprintf: that of mawk ends at 8 KiB.
        entry = "{\"name\":" quoted(name) ",\"mac\":" quoted(mac[name]) ",\"state\":" quoted(state[name]) \
            ",\"addresses\":[" addresses[name] "]}"
        list = append(list, entry)
    }
    print "[" list "]"
}
