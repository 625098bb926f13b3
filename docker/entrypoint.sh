#!/bin/bash
# Makes the cluster at the first start, then becomes the server (or whatever command is given), under an init process.
#   POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE   the superuser's password; wanted at the first start only
#   POSTGRES_DB                                   a database to make at the first start, beside "postgres"
#   PG_DISTILL_INIT=off                           no init process: the postmaster is PID 1
set -euo pipefail

# The password must not stay in the environment of a server that runs Python.
password=${POSTGRES_PASSWORD:-}
database=${POSTGRES_DB:-postgres}
if [[ -n ${POSTGRES_PASSWORD_FILE:-} ]]; then
    password=$(<"$POSTGRES_PASSWORD_FILE")
fi
unset POSTGRES_PASSWORD POSTGRES_PASSWORD_FILE POSTGRES_DB

[[ ${1:-} == -* ]] && set -- postgres "$@"

make_cluster() {
    if [[ -z $password ]]; then
        echo "pg_distill: no cluster in $PGDATA yet: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE to make one" >&2
        exit 1
    fi
    # A start that was killed half-way must not leave a directory that looks like a cluster.
    local fresh=$PGDATA/.initdb
    rm -rf "$fresh"
    initdb --pgdata="$fresh" --username=postgres --pwfile=<(printf '%s\n' "$password") \
        --encoding=UTF8 --locale=C.UTF-8 --data-checksums --auth-local=peer --auth-host=scram-sha-256
    echo 'host all all all scram-sha-256' >> "$fresh/pg_hba.conf"
    if [[ $database != postgres ]]; then
        printf 'CREATE DATABASE "%s";\n' "${database//\"/\"\"}" | postgres --single -D "$fresh" postgres > /dev/null
    fi
    # PG_VERSION, which marks a cluster, is moved last.
    find "$fresh" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv -t "$PGDATA" {} +
    mv "$fresh/PG_VERSION" "$PGDATA"
    rmdir "$fresh"
}

if [[ ${1:-} == postgres && "$*" != *--version* && ! -s $PGDATA/PG_VERSION ]]; then
    make_cluster
fi
unset password database
# An init process, not the postmaster, adopts what a session leaves behind. It starts here, not as the image's entrypoint,
# so that its environment, which the server's user can read, has no password either.
if [[ $$ == 1 && ${PG_DISTILL_INIT:-on} != off ]]; then
    exec tini -- "$@"
fi
exec "$@"
