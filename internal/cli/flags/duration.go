package flags

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
)

// DurationVar adds a flag for a duration, which may be in days and weeks (joblet.ParseDuration).
func DurationVar(f *pflag.FlagSet, d *time.Duration, name, short string, value time.Duration, usage string) {
	*d = value
	f.VarP((*duration)(d), name, short, usage)
}

type duration time.Duration

// String is empty for 0, so that the help names no default.
func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

func (d *duration) Type() string { return "TIME" }

func (d *duration) Set(s string) error {
	span, err := joblet.ParseDuration(s)
	if err == nil {
		*d = duration(span)
	}
	return err
}
