#!/bin/sh
# Makes every secret of ops/compose.yaml, once: random words, the addresses that hold them, a key for access tokens.
#
#   sh ops/secrets.sh [FOLDER]
#
# Reads Trackstar's API key, which nobody can make up, from standard input: a line that is typed, or `< FILE`. Overwrites
# nothing: the volumes of a running service know these words.
#
# To renew one, write its file anew, and the address that holds it, and let Compose make the containers anew that have it:
# `up --detach --force-recreate`. Where it is a role's of PostgreSQL, `postgres` comes first, and is told:
# `exec postgres /docker-entrypoint-initdb.d/init.sh`.
#
# The folder is for its owner alone (700), so that no other user of this machine reaches a file in it. The files themselves can
# be read (444): a container gets its own ones, as they are, and each container runs as another user.
set -eu
umask 077

folder=${1:-$(dirname -- "$0")/secrets}
new=$folder.new

fail() {
  echo "$1" >&2
  exit 1
}

# 64 hexadecimal digits: they can stand in an address as they are.
word() {
  od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n'
}

# A Fernet key: 32 bytes in the base64 of addresses.
fernet_key() {
  dd if=/dev/urandom bs=32 count=1 2>/dev/null | base64 | tr '+/' '-_' | tr -d '\n'
}

ask_for_api_key() {
  if [ -t 0 ]; then
    printf 'Trackstar API key (it is not shown): ' >&2
    stty -echo
    trap 'stty echo; rm -rf -- "$new"' EXIT
  fi
  IFS= read -r api_key || :
  if [ -t 0 ]; then
    stty echo
    echo >&2
  fi
  [ -n "$api_key" ] || fail "No API key was given: nothing was made."
}

put() {
  printf '%s\n' "$2" >"$new/$1"
  chmod 444 "$new/$1"
}

[ ! -e "$folder" ] || fail "$folder is there already: nothing was changed. Its passwords are those of the volumes."
mkdir -- "$new" || fail "$new is in the way: an earlier run was cut off, or another one is at work. Remove it."
trap 'rm -rf -- "$new"' EXIT
trap 'exit 1' HUP INT TERM
ask_for_api_key

for user in admin producer events worker flower; do
  put "redis_$user" "$(word)"
done
redis_url() {
  put "$1_redis_url" "redis://$2:$(cat "$new/redis_$2")@redis:6379/0"
}
redis_url worker worker
redis_url flower flower
redis_url operator admin # a command may need any right: it reads, repairs and enqueues
for role in superuser owner worker operator reader; do
  put "postgres_$role" "$(word)"
done
for role in owner worker operator; do
  put "${role}_database_url" "postgresql://cancel_$role:$(cat "$new/postgres_$role")@postgres:5432/cancel_worker"
done
put trackstar_api_key "$api_key"
put credential_keys "$(fernet_key)"
put flower_basic_auth "flower:$(word)"
put grafana_admin "$(word)"

mv -- "$new" "$folder"
echo "Made $folder. Keep credential_keys apart from backups of the database: it opens the access tokens there."
