package flags

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
)

// Security say how far a job is shut in.
type Security struct {
	profile         string // a name, or a file
	user            string
	capAdd, capDrop []string
	logDenied       bool
}

// AddFlags adds the flags.
func (s *Security) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&s.profile, "security", "", "security `PROFILE` (system calls, capabilities): "+strings.Join(joblet.Profiles(), ", ")+", or a file (with a / in its name)")
	f.StringVarP(&s.user, "user", "u", "", "run as `UID[:GID]` in the job (default: its root)")
	f.StringSliceVar(&s.capAdd, "cap-add", nil, "add `CAPABILITY`, such as net_raw, or all (repeatable)")
	f.StringSliceVar(&s.capDrop, "cap-drop", nil, "drop `CAPABILITY`, or all (repeatable)")
	f.BoolVar(&s.logDenied, "log-denied", false, "count denied system calls and report at the end how to allow them")
}

// Read returns what the flags say.
func (s *Security) Read() (sec joblet.Security, err error) {
	sec.Profile = joblet.Profile(s.profile)
	if strings.Contains(s.profile, "/") {
		if sec, err = readProfile(s.profile); err != nil {
			return sec, joblet.Errorf(joblet.InvalidArgument, "--security %s: %w", s.profile, err)
		}
	}
	sec.User, sec.CapAdd, sec.CapDrop, sec.LogDenied = s.user, s.capAdd, s.capDrop, s.logDenied
	return sec, nil
}

func readProfile(name string) (joblet.Security, error) {
	f, err := os.Open(name)
	if err != nil {
		return joblet.Security{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, joblet.MaxProfileSize+1))
	if err != nil {
		return joblet.Security{}, fmt.Errorf("cannot read it: %w", err)
	}
	return joblet.ParseProfile(string(text))
}

// CompleteProfiles offers the security profiles, or files.
func CompleteProfiles(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(typed, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return joblet.Profiles(), cobra.ShellCompDirectiveDefault
}

// CompleteCapabilities offers the names of capabilities.
func CompleteCapabilities(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return append([]string{"all"}, joblet.CapabilityNames()...), cobra.ShellCompDirectiveNoFileComp
}
