#!/bin/sh
# sweep.sh runs PROGRAM once for each PARAMETER, each run as a job of its own, and
# copies what the runs write to /work/out into RESULTS/PARAMETER.
#
#	examples/sweep.sh RESULTS PROGRAM PARAMETER...
#
# The daemon limits how many jobs run at once (joblet serve --max-concurrent=N). The
# jobs continue when sweep.sh is interrupted: start it again with the same SWEEP to
# collect their results. Jobs that were accepted are not started a second time.
set -eu
if [ $# -lt 3 ]; then
	echo "usage: sweep.sh RESULTS PROGRAM PARAMETER..." >&2
	exit 2
fi
results=$1 program=$2
shift 2
sweep=${SWEEP:-$(date +%Y%m%d-%H%M%S)}
echo "sweep $sweep: $# jobs"

start() { # PARAMETER; prints the job's id
	rnx job run --detach --name="sweep-$1" \
		--label=sweep="$sweep" --label=parameter="$1" --idempotency-key="sweep-$sweep-$1" \
		--max-cpu=100 --max-memory=1G --timeout=1h \
		--upload="$program" "./${program##*/}" "$1"
}

for parameter; do
	start "$parameter" >/dev/null
done

failed=0
for parameter; do
	id=$(start "$parameter") # the same job, because the idempotency key is the same
	status=0
	rnx job wait "$id" >/dev/null || status=$?
	if [ "$status" -eq 0 ]; then
		mkdir -p "$results/$parameter"
		rnx job cp "$id:out/." "$results/$parameter"
	else
		echo "$parameter: job $id ended with status $status" >&2
		rnx job log --tail=5 "$id" >&2
		failed=1
	fi
done
rnx job list --label=sweep="$sweep"
exit "$failed"
