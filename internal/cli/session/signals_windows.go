package session

import (
	"os"
	"syscall"
)

var (
	endSignals      = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
	terminalSignals []os.Signal
)
