package job

import "github.com/joblet/joblet/internal/help"

// runSections are the flags of "rnx job run", in the order of its help.
var runSections = []help.Section{
	{Title: "Identity", Flags: []string{"name", "label", "idempotency-key", "user"}},
	{Title: "Process", Flags: []string{"runtime", "workdir", "init", "timeout", "env", "env-file", "secret-env", "secret-env-file"}},
	{Title: "Resources", Flags: []string{"max-cpu", "cpu-weight", "cpu-cores", "max-memory", "memory-high", "max-swap", "max-pids", "max-iobps", "max-read-bps", "max-write-bps", "max-iops", "max-disk", "shm-size", "nofile", "rlimit"}},
	{Title: "Files", Flags: []string{"upload", "upload-dir", "exclude", "download", "download-to"}},
	{Title: "Scheduling", Flags: []string{"schedule", "overlap", "depends-on", "priority", "retry", "retry-delay", "retry-on"}},
	{Title: "Security", Flags: []string{"security", "cap-add", "cap-drop", "log-denied"}},
	{Title: "Terminal and output", Flags: []string{"detach", "tty", "no-tty", "interactive", "stdin", "detach-keys", "merge", "log-max"}},
}
