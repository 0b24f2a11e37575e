//go:build unix

package session

import (
	"os"
	"syscall"
)

var (
	// endSignals are passed on, or end rnx. SIGQUIT is one of them: Ctrl-\ is a key
	// too, and Go would show what all its goroutines do.
	endSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}
	// terminalSignals end rnx while it has a raw terminal, and leave the job.
	terminalSignals = []os.Signal{syscall.SIGABRT}
)
