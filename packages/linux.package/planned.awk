# Installed packages, and then what would come and go -> name, version now, version then. FS is a tab.

FILENAME == ARGV[1] { installed[$1] = $2; next }
# As text: to awk 1.1 and 1.10 are one number.
$2 "" != installed[$1] { print $1 "\t" installed[$1] "\t" $2 }
