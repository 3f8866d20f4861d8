#!/bin/sh
# Makes the roles of an empty PostgreSQL, each with the password from its file. The image runs it once, as the superuser, on the
# socket of a server that nobody else reaches. What a role may do, roles.sql says.
set -eu

# psql reads the files itself: in an argument a password could be seen.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\set owner `cat /run/secrets/postgres_owner`
\set worker `cat /run/secrets/postgres_worker`
\set operator `cat /run/secrets/postgres_operator`
\set reader `cat /run/secrets/postgres_reader`
\i /etc/postgres/roles.sql
ALTER ROLE cancel_owner PASSWORD :'owner';
ALTER ROLE cancel_worker PASSWORD :'worker';
ALTER ROLE cancel_operator PASSWORD :'operator';
ALTER ROLE cancel_reader PASSWORD :'reader';
SQL
