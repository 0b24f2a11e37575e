package flags

import (
	"strconv"
	"strings"

	"github.com/joblet/joblet"
)

// signals are Linux's numbers, whatever system rnx runs on (signal(7)).
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10,
	"SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19,
	"TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28,
	"IO": 29, "PWR": 30, "SYS": 31,
}

const (
	SIGHUP  = 1
	SIGINT  = 2
	SIGQUIT = 3
	SIGKILL = 9
)

// The first and the last signal without a name of their own, as Linux's C library
// has them: it keeps two for itself.
const (
	sigrtmin = 34
	sigrtmax = 64
)

// ParseSignal reads "TERM", "SIGTERM", "15", "RTMIN+3" or "RTMAX-1".
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 64 {
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	for base, n := range map[string]int{"RTMIN": sigrtmin, "RTMAX": sigrtmax} {
		rest, ok := strings.CutPrefix(name, base)
		off := 0
		if ok && rest != "" {
			var err error
			off, err = strconv.Atoi(rest)
			ok = err == nil && (rest[0] == '+' || rest[0] == '-')
		}
		if n += off; ok && n >= sigrtmin && n <= sigrtmax {
			return n, nil
		}
	}
	return 0, joblet.Errorf(joblet.InvalidArgument, "unknown signal %q: give a name such as TERM or a number from 1 to 64", s)
}

// SignalName returns "SIGTERM", or "signal 40" for one without a name.
func SignalName(n int) string {
	for name, number := range signals {
		if number == n {
			return "SIG" + name
		}
	}
	return "signal " + strconv.Itoa(n)
}
