#!/bin/sh
# ci.sh runs COMMAND in a clean job on a copy of the directory SOURCE, with limits,
# and exits with the status of the job.
#
#	examples/ci.sh DIR SOURCE COMMAND [ARG...]
#
# The job finds the directory of $CACHE as the last successful run left it; ci.sh keeps
# it in DIR/cache. Files that the job writes to /work/artifacts are in DIR/artifacts
# afterwards. RUNTIME names the runtime to use (default: the host's programs).
set -eu
if [ $# -lt 3 ]; then
	echo "usage: ci.sh DIR SOURCE COMMAND [ARG...]" >&2
	exit 2
fi
dir=$1 source=$2
shift 2
mkdir -p "$dir/cache"
new=$(mktemp -d "$dir/new.XXXXXX")
trap 'rm -rf "$new"' EXIT

status=0
rnx job run --name=ci ${RUNTIME:+--runtime="$RUNTIME"} \
	--timeout=30m --max-cpu=200 --max-memory=4G --max-pids=1000 \
	--upload-dir="$source" --exclude=/.git --upload="$dir/cache" --env=CACHE=/work/cache \
	--download='cache/**' --download='artifacts/**' --download-to="$new" \
	"$@" || status=$?

rm -rf "$dir/artifacts"
if [ -d "$new/artifacts" ]; then
	mv "$new/artifacts" "$dir/artifacts"
fi
if [ "$status" -eq 0 ] && [ -d "$new/cache" ]; then # a failed run may leave half a cache
	rm -rf "$dir/cache"
	mv "$new/cache" "$dir/cache"
fi
exit "$status"
