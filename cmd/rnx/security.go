package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
)

// securityFlags say how far a job is shut in.
type securityFlags struct {
	profile         string // a name, or a file
	user            string
	capAdd, capDrop []string
}

func (s *securityFlags) addFlags(f *pflag.FlagSet) {
	f.StringVar(&s.profile, "security", "", "`PROFILE` of system calls and capabilities: "+strings.Join(joblet.Profiles(), ", ")+", or a file (with a / in its name)")
	f.StringVarP(&s.user, "user", "u", "", "`UID[:GID]` to be in the job (default: its root)")
	f.StringSliceVar(&s.capAdd, "cap-add", nil, "`CAPABILITY` to have beside the default ones, such as net_raw, or all; may be given again")
	f.StringSliceVar(&s.capDrop, "cap-drop", nil, "`CAPABILITY` not to have, or all; may be given again")
}

// read returns what the flags say.
func (s *securityFlags) read() (sec joblet.Security, err error) {
	sec.Profile = joblet.Profile(s.profile)
	if strings.Contains(s.profile, "/") {
		if sec, err = readProfile(s.profile); err != nil {
			return sec, joblet.Errorf(joblet.InvalidArgument, "--security %s: %w", s.profile, err)
		}
	}
	sec.User, sec.CapAdd, sec.CapDrop = s.user, s.capAdd, s.capDrop
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
		return joblet.Security{}, fmt.Errorf("read it: %w", err)
	}
	return joblet.ParseProfile(string(text))
}

func completeProfiles(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(typed, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return joblet.Profiles(), cobra.ShellCompDirectiveDefault
}

func completeCapabilities(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return append([]string{"all"}, joblet.CapabilityNames()...), cobra.ShellCompDirectiveNoFileComp
}

// securityWords are how far a job is shut in, as flags; a profile of the user's own
// as what it holds.
func securityWords(s joblet.Security) string {
	var words []string
	if s.Profile != "" {
		words = append(words, "--security="+string(s.Profile))
	}
	if s.User != "" {
		words = append(words, "--user="+s.User)
	}
	for _, list := range []struct {
		word  string
		names []string
	}{{"--cap-add=", s.CapAdd}, {"--cap-drop=", s.CapDrop}, {"allow ", s.AllowCalls}, {"deny ", s.DenyCalls}} {
		if len(list.names) > 0 {
			words = append(words, list.word+strings.Join(list.names, ","))
		}
	}
	return strings.Join(words, " ")
}
