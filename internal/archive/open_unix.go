//go:build !windows

package archive

import "syscall"

// nonblock lets open(2) return from a fifo that nobody writes to.
const nonblock = syscall.O_NONBLOCK
