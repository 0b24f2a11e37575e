#!/bin/sh
# train.sh runs PROGRAM as a job, copies its checkpoint to DIR/checkpoint while it
# runs, and starts it again from there when the job is lost, for instance in a crash
# of the host.
#
#	examples/train.sh DIR PROGRAM [ARG...]
#
# The program reads its checkpoint from /work/checkpoint and writes it there: to a
# temporary file that it renames, so that a copy never has half a file. INTERVAL is the
# time between two copies (default 5m), ATTEMPTS the number of jobs (default 10).
set -eu
if [ $# -lt 2 ]; then
	echo "usage: train.sh DIR PROGRAM [ARG...]" >&2
	exit 2
fi
dir=$1 program=$2
shift 2
if [ ! -d "$dir/checkpoint" ] && [ -d "$dir/old" ]; then # save was interrupted
	mv "$dir/old" "$dir/checkpoint"
fi
mkdir -p "$dir/checkpoint"

save() { # replaces DIR/checkpoint once the copy is complete
	rm -rf "$dir/new"
	if rnx job cp "$id:checkpoint" "$dir/new" 2>/dev/null; then
		rm -rf "$dir/old"
		mv "$dir/checkpoint" "$dir/old"
		mv "$dir/new" "$dir/checkpoint"
	fi
}

attempt=1
while :; do
	id=$(rnx job run --detach --name=train --label=attempt="$attempt" \
		--upload="$program" --upload="$dir/checkpoint" "./${program##*/}" "$@")
	echo "attempt $attempt: job $id"
	while :; do
		timeout "${INTERVAL:-5m}" rnx job wait "$id" >/dev/null 2>&1 || true
		save
		# Without an answer of the daemon the job continues, and so does this loop.
		state=$(rnx job status --format='{{.Status}}' "$id") || sleep 5
		case $state in
		COMPLETED | FAILED | STOPPED | CANCELED | TIMEOUT | LOST) break ;;
		esac
	done
	if [ "$state" != LOST ] || [ "$attempt" -ge "${ATTEMPTS:-10}" ]; then
		break
	fi
	attempt=$((attempt + 1))
done
echo "job $id: $state"
status=0
rnx job wait "$id" >/dev/null || status=$?
exit "$status"
