#!/bin/sh
# Puts the script into the working directory and becomes its interpreter. Nothing is forked, so the script is the
# initial process of the job.
set -eu

script="$SIS_WORK_DIR/script"
interpreter="$SIS_PARAM_INTERPRETER"
environment="${SIS_PARAM_ENVIRONMENT-}"
printf '%s\n' "$SIS_PARAM_SCRIPT" > "$script"
unset SIS_PARAM_SCRIPT SIS_PARAM_ARGUMENTS SIS_PARAM_ENVIRONMENT SIS_PARAM_INTERPRETER

# One assignment a line, without expansion of what it holds.
set -f
IFS='
'
for assignment in $environment; do
    export "$assignment"
done
unset IFS

exec "$interpreter" "$script" "$@"
