# Sourced by the scripts that run in the machine: a daemon, and checks.
set -uo pipefail
cgroups=/sys/fs/cgroup tmp=$(mktemp -d) failed=0 daemon=
prefix= # the cgroup that is mounted there

# check NAME WANT GOT: WANT is a pattern.
check() {
    if [[ $3 == $2 ]]; then echo "ok      $1"; else echo "FAILED  $1: want $2, got $3"; failed=1; fi
}

# serve CGROUP starts the daemon in there and waits until it is ready.
mkfifo "$tmp/ready"
serve() {
    { echo 0 >"$cgroups/$1/cgroup.procs"; exec joblet serve --ready-fd 3 3>"$tmp/ready"; } >>"$tmp/log" 2>&1 & daemon=$!
    read -r ready <"$tmp/ready"
    check "the daemon starts" ok "$ready"
}

# restart kills the daemon, and starts the next one in CGROUP.
restart() {
    kill -KILL "$daemon"
    wait "$daemon" 2>/dev/null
    serve "$1"
}

# finish ends the daemon; nothing may be left but the cgroups $@.
finish() {
    kill "$daemon" && wait "$daemon"
    check "the daemon ends" 0 $?
    check "no cgroup is left" "$*" "$(cd $cgroups && echo $(find * -type d | sort))"
    check "no mount is left" 0 "$(grep -c /joblet /proc/mounts)"
    check "no process is left" 0 "$(pgrep -c joblet)"
}

show() { rnx job status --format="$1" "$2"; }
at() { sed -n "s|^0::$prefix||p" "/proc/$1/cgroup"; }    # the cgroup of a process
group() { at "$(show '{{.HostPID}}' "$1")"; }             # that of a running job

# done_ ends the script with its status.
done_() {
    [ $failed = 0 ] || { echo "-- what the daemons said"; cat "$tmp/log"; }
    exit $failed
}
