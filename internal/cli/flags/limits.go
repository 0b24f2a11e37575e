package flags

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
)

// limitFlag is a flag that is one of the limits, by the same name.
type limitFlag struct {
	limits *joblet.Limits
	name   string
	value  string // that it takes, for the help
	text   string // as it was given
}

func (f *limitFlag) String() string { return f.text }

func (f *limitFlag) Type() string { return f.value }

func (f *limitFlag) Set(s string) error {
	f.text = s
	err := f.limits.Set(f.name, s)
	if err != nil { // pflag says which flag it is
		return joblet.Errorf(joblet.InvalidArgument, "%s", strings.TrimPrefix(err.Error(), "--"+f.name+": "))
	}
	return nil
}

// AddLimits adds a flag for each limit that l can have but those of single
// processes.
func AddLimits(f *pflag.FlagSet, l *joblet.Limits) {
	for _, doc := range joblet.LimitDocs() {
		f.Var(&limitFlag{limits: l, name: doc.Name, value: doc.Value}, doc.Name, doc.Help)
	}
}

// AddRlimits adds flags for the limits of each process.
func AddRlimits(f *pflag.FlagSet, l *joblet.Limits) {
	f.Var(&limitFlag{limits: l, name: "nofile", value: "SOFT[:HARD]"}, "nofile", "open files per process")
	f.Var(&rlimitFlag{l}, "rlimit", "other limit per process: "+strings.Join(slices.DeleteFunc(joblet.RlimitNames(), func(n string) bool { return n == "nofile" }), ", ")+" (repeatable)")
}

// rlimitFlag is NAME=SOFT[:HARD], again and again.
type rlimitFlag struct{ limits *joblet.Limits }

func (f *rlimitFlag) String() string { return "" }

func (f *rlimitFlag) Type() string { return "NAME=SOFT[:HARD]" }

func (f *rlimitFlag) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || !slices.Contains(joblet.RlimitNames(), name) {
		return joblet.Errorf(joblet.InvalidArgument, "%.40q: give NAME=SOFT[:HARD], NAME one of %s", s, strings.Join(joblet.RlimitNames(), ", "))
	}
	return f.limits.Set(name, value)
}
