#!/bin/sh
# As much of the official image's entrypoint as the manifests rely on, but for its socket: Podman 4.3 gives what it mounts
# below /run to root. Arguments are PostgreSQL's.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    eval "initdb --username='$POSTGRES_USER' --pwfile='$POSTGRES_PASSWORD_FILE' --pgdata='$PGDATA' ${POSTGRES_INITDB_ARGS:-}"
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories= "$@"
