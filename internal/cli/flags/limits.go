package flags

import (
	"math"
	"slices"
	"strconv"
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

// AddDockerLimits adds limits by the names that they have in docker run, which the help
// does not show.
func AddDockerLimits(f *pflag.FlagSet, l *joblet.Limits) {
	f.VarP(&memoryFlag{limitFlag{limits: l, name: "max-memory", value: "SIZE"}}, "memory", "m", "the same as --max-memory")
	f.Var(&cpusFlag{limits: l}, "cpus", "the same as --max-cpu, in processors")
	for _, name := range []string{"memory", "cpus"} {
		f.Lookup(name).Hidden = true
	}
}

// memoryFlag is --max-memory by its name in docker run, where a plain number is bytes.
type memoryFlag struct{ limitFlag }

func (f *memoryFlag) Set(s string) error {
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return joblet.Errorf(joblet.InvalidArgument, "%.40q: give a size with a unit, such as 512m", s)
	}
	return f.limitFlag.Set(s)
}

// cpusFlag is --max-cpu as a number of processors, such as 1.5.
type cpusFlag struct {
	limits *joblet.Limits
	text   string
}

func (f *cpusFlag) String() string { return f.text }
func (f *cpusFlag) Type() string   { return "N" }

func (f *cpusFlag) Set(s string) error {
	f.text = s
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0.01 || n > 1<<16 {
		return joblet.Errorf(joblet.InvalidArgument, "%.40q: give a number of processors, such as 1.5", s)
	}
	return f.limits.Set("max-cpu", strconv.Itoa(int(math.Round(100*n))))
}

// AddRlimits adds flags for the limits of each process.
func AddRlimits(f *pflag.FlagSet, l *joblet.Limits) {
	f.Var(&limitFlag{limits: l, name: "nofile", value: "SOFT[:HARD]"}, "nofile", "open files per process")
	f.Var(&rlimitFlag{l}, "rlimit", "other limit per process: "+strings.Join(slices.DeleteFunc(joblet.RlimitNames(), func(n string) bool { return n == "nofile" }), ", ")+" (repeatable)")
}

// rlimitFlag is a repeatable NAME=SOFT[:HARD].
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
