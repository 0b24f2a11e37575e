#!/bin/sh
# install-peers.sh installs the programs that test/bench compares Joblet with, from
# the packages of Debian or Ubuntu, and only those that are missing.
#
#   scripts/install-peers.sh            bubblewrap crun runc uidmap util-linux bsdutils openssh-server openssh-client
#   scripts/install-peers.sh --podman   podman too (with its dependencies some 85 MB)
set -eu

usage() {
	sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
}

packages='bubblewrap crun runc uidmap util-linux bsdutils openssh-server openssh-client'
for arg; do
	case $arg in
	--podman) packages="$packages podman" ;;
	-h | --help) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
done

missing=
for p in $packages; do
	case $(dpkg-query --show --showformat='${db:Status-Status}' "$p" 2>/dev/null || true) in
	installed) ;;
	*) missing="$missing $p" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "install-peers.sh: root is needed to install$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
install() {
	# shellcheck disable=SC2086 # the list is meant to be split
	apt-get install --quiet=2 --yes --no-install-recommends $missing </dev/null >"$log" 2>&1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists of a fresh or long-unused machine are absent or stale.
if ! install && ! { apt-get update --quiet=2 >"$log" 2>&1 && install; }; then
	cat "$log" >&2
	echo "install-peers.sh: could not install$missing" >&2
	exit 1
fi
echo "installed:$missing"
