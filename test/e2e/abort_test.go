package e2e

import (
	"strings"
	"testing"
)

// TestAbort: the status of a PID 1 that aborts is the kernel's doing, and
// "rnx job status" says so; with a reaper it is that of the program elsewhere.
func TestAbort(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const note = "\nNote:       abort() and a failed assertion of PID 1 "
	r := d.job(t, "--name=bare", "python3", "-c", "import os; os.abort()")
	if status := d.rnx(patient(t), "job", "status", "bare"); r.status != 139 && r.status != 133 || !strings.Contains(status.stdout, note) {
		t.Errorf("%v\n%v", r, status)
	}
	r = d.job(t, "--name=reaped", "--init", "python3", "-c", "import os; os.abort()")
	if status := d.rnx(patient(t), "job", "status", "reaped"); r.status != 134 || strings.Contains(status.stdout, "Note:") {
		t.Errorf("%v\n%v", r, status)
	}
}
