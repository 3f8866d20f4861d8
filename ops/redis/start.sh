#!/bin/sh
# Starts Redis or Valkey with the users of users.acl, each with the password in its file: /run/secrets/redis_USER.
#
#   sh start.sh [OPTION]...        options of redis-server
#
# A user without a file gets no password, and so nobody can log in as it. The server reads the result, which holds hashes
# only, from /tmp: a file system in memory. SECRETS names another folder of passwords, USERS another file to write.
set -eu

here=$(dirname -- "$0")
secrets=${SECRETS:-/run/secrets}
users=${USERS:-/tmp/users.acl}

sha256() {
  tr -d '\n' <"$1" | sha256sum | cut -d ' ' -f 1
}

umask 077
grep '^user ' "$here/users.acl" | while read -r word name rights; do
  password=
  if [ -s "$secrets/redis_$name" ]; then
    password="#$(sha256 "$secrets/redis_$name")"
  fi
  echo "$word $name $rights $password"
done >"$users"

server=${REDIS_SERVER:-$(command -v redis-server || command -v valkey-server)}
exec "$server" "$@" --aclfile "$users"
