#!/bin/sh
# What PostgreSQL's image does before it becomes the server, with the same words: an empty volume becomes a cluster, on whose
# socket the scripts of /docker-entrypoint-initdb.d are run.
set -eu
export PGDATA=/var/lib/postgresql/data
server="-c unix_socket_directories=/var/run/postgresql"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  chmod 700 "$PGDATA"
  initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-host=trust --auth-local=trust --no-sync --locale=C --encoding=UTF8
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --silent --wait --options="$server -c listen_addresses=''" start
  export PGHOST=/var/run/postgresql
  psql --quiet --username="$POSTGRES_USER" --dbname=postgres --command="CREATE DATABASE $POSTGRES_DB"
  for script in /docker-entrypoint-initdb.d/*.sh; do
    if [ -x "$script" ]; then "$script"; else . "$script"; fi
  done
  pg_ctl --silent --wait --mode=fast stop
fi
exec postgres $server -c listen_addresses='*' -c fsync=off
