#!/bin/sh
# Runs roles.sql after a migration: each role's rights, also on what the migration has just made. It runs as
# the owner of the tables, and can be run again and again.
set -eu

# In the environment: in an argument the password could be seen.
PGPASSWORD=$(cat /run/secrets/postgres_owner)
export PGPASSWORD
exec psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=cancel_owner --file=/etc/postgres/roles.sql
