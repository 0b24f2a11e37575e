package cli

import (
	"os"
	"strings"
	"unsafe"
)

// HideSecrets overwrites the values of secret variables on our own command
// line, so that ps and /proc/PID/cmdline, which anyone here may read, stop
// showing them. The kernel shows the memory in which it once put the arguments,
// and the strings of os.Args lie in that very memory; so os.Args gets copies
// first, and then the originals are written over. Nobody else may hold on to
// one of them, which is why main does this before anything else. What ps shows
// in the moment until then remains: a secret in a file or in the environment
// (--secret-env-file, --secret-env NAME) is never seen at all.
func HideSecrets() {
	shown := os.Args
	os.Args = make([]string, len(shown))
	for i, arg := range shown {
		os.Args[i] = strings.Clone(arg)
	}
	secretValues(os.Args, func(i, from int) {
		b := unsafe.Slice(unsafe.StringData(shown[i]), len(shown[i]))
		for j := from; j < len(b); j++ {
			b[j] = '*'
		}
	})
}

// secretValues calls found for each argument in which the value of a secret
// begins at from. It does not know where the job's command begins and may take
// something in that for a secret, so that ps shows less than it could.
func secretValues(args []string, found func(i, from int)) {
	const long = "--secret-env"
	next := false // this argument is the value of the flag before it
	for i, arg := range args {
		from := -1
		switch {
		case next:
			from, next = 0, false
		case arg == "--":
			return
		case arg == long:
			next = true
		case strings.HasPrefix(arg, long+"="):
			from = len(long) + 1
		case strings.HasPrefix(arg, "-") && !strings.HasPrefix(arg, "--"):
			// Short flags may share an argument: -dsNAME=VALUE. Behind one that
			// takes a value there is no further flag.
			flag := strings.IndexByte(arg, 's')
			switch {
			case flag < 0 || strings.ContainsAny(arg[:flag], "ewlnmu"):
			case flag == len(arg)-1:
				next = true
			default:
				from = flag + 1
				if arg[from] == '=' {
					from++
				}
			}
		}
		if from < 0 {
			continue
		}
		if sign := strings.IndexByte(arg[from:], '='); sign >= 0 {
			found(i, from+sign+1)
		}
	}
}
