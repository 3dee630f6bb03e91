# What is to be done for the packages called `names` to be in `state`, "verb name" a line. Needs versions.awk.

function refuse(message) {
    print message > "/dev/stderr"
    refused = 1
}

END {
    count = split(names, asked, " ")
    for (i = 1; i <= count; i++) {
        name = plain(asked[i])
        wanted = version(asked[i])
        if (name in seen && seen[name] != wanted)
            refuse(name " is named twice, with different versions: name it once")
        else if (name in seen)
            continue
        seen[name] = wanted

        if (wanted != "" && state != "present")
            refuse(asked[i] ": a version goes with the state present only: remove it")
        else if (state == "absent") {
            if (name in installed)
                print "remove", name
        } else if (!(name in installed) && !(name in candidate))
            # Also what is no name of a package to the package manager, but a pattern for some.
            refuse("no repository has a package called " name ": correct the name, or set refresh for a newer index")
        else if (!(name in installed) || installed[name] ~ / /)
            print "install", asked[i]
        else if (wanted != "" && installed[name] != wanted)
            print "install", asked[i]
        else if (state == "latest" && name in candidate && candidate[name] != installed[name])
            print "upgrade", name
    }
    exit refused
}
