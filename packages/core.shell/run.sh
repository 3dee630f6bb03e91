#!/bin/sh
# Puts the script into the working directory and becomes its interpreter. Nothing is forked, so the script is the
# initial process of the job.
set -eu

printf '%s\n' "$SIS_PARAM_SCRIPT" > "$SIS_WORK_DIR/script"
# What is run, and what is assigned, is held in positional parameters alone: an assignment replaces any variable.
set -- "$SIS_PARAM_INTERPRETER" "$SIS_WORK_DIR/script" "$@"

assign() {
    unset IFS SIS_PARAM_SCRIPT SIS_PARAM_ARGUMENTS SIS_PARAM_ENVIRONMENT SIS_PARAM_INTERPRETER
    while [ "$#" != 0 ]; do
        export "$1"
        shift
    done
}

# One assignment a line, without expansion of what it holds.
set -f
IFS='
'
assign ${SIS_PARAM_ENVIRONMENT-}

exec "$@"
