#!/bin/bash
# The official image, as far as our Compose file uses it: POSTGRES_USER owns the server and POSTGRES_DB, with the
# password of the file; an empty volume is filled by what lies in /docker-entrypoint-initdb.d, over the socket only.
set -euo pipefail
bin=$(echo /usr/lib/postgresql/*/bin)
folder=/var/lib/postgresql/data
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
chown postgres:postgres /var/lib/postgresql
install -d -o postgres -g postgres /var/run/postgresql
if [ ! -s "$folder/PG_VERSION" ]; then
    install -m 600 -o postgres -g postgres "$POSTGRES_PASSWORD_FILE" /tmp/password
    as "$bin/initdb" -D "$folder" -U "$POSTGRES_USER" --pwfile /tmp/password --auth-local trust \
        --auth-host scram-sha-256 -E UTF8 --locale C.UTF-8
    rm /tmp/password
    echo "host all all all scram-sha-256" >> "$folder/pg_hba.conf"
    as "$bin/pg_ctl" -D "$folder" -w -o "-c listen_addresses=" start
    as "$bin/createdb" -U "$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sql; do
        as "$bin/psql" -X -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" < "$script"
    done
    as "$bin/pg_ctl" -D "$folder" -w stop
fi
exec setpriv --reuid postgres --regid postgres --clear-groups "$bin/postgres" -D "$folder" -c "listen_addresses=*"
