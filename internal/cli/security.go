package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
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
	logDenied       bool
}

func (s *securityFlags) addFlags(f *pflag.FlagSet) {
	f.StringVar(&s.profile, "security", "", "security `PROFILE` (system calls, capabilities): "+strings.Join(joblet.Profiles(), ", ")+", or a file (with a / in its name)")
	f.StringVarP(&s.user, "user", "u", "", "run as `UID[:GID]` in the job (default: its root)")
	f.StringSliceVar(&s.capAdd, "cap-add", nil, "add `CAPABILITY`, such as net_raw, or all (repeatable)")
	f.StringSliceVar(&s.capDrop, "cap-drop", nil, "drop `CAPABILITY`, or all (repeatable)")
	f.BoolVar(&s.logDenied, "log-denied", false, "count denied system calls and report at the end how to allow them")
}

// read returns what the flags say.
func (s *securityFlags) read() (sec joblet.Security, err error) {
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
	if s.LogDenied {
		words = append(words, "--log-denied")
	}
	return strings.Join(words, " ")
}

// deniedWords is a kind of call that a job was refused, how often and with which
// error, and what would let the job make it.
func deniedWords(c joblet.DeniedCall) string {
	call := c.Call
	if c.Argument != "" {
		call += "(" + c.Argument + ")"
	}
	var remedy string
	switch c.Remedy {
	case joblet.RemedyAllow:
		remedy = fmt.Sprintf(`allowed by "allow %s" in a --security=FILE`, c.Call)
		if slices.Contains(joblet.AdminCalls(), c.Call) {
			remedy += ", which takes the role admin"
		}
	case joblet.RemedyDeny:
		remedy = fmt.Sprintf(`its own profile says "deny %s"`, c.Call)
	case joblet.RemedyNested:
		remedy = "allowed by --security=nested"
	default:
		remedy = "no profile allows it"
	}
	return fmt.Sprintf("%s: %d × %s, %s", call, c.Count, c.Errno, remedy)
}

const maxDeniedNotes = 10

// noteDenied tells of the calls that a job was refused.
func (a *app) noteDenied(j joblet.Job) {
	for i, c := range j.Denied {
		if i == maxDeniedNotes {
			a.note("and %d more: rnx job status %s", len(j.Denied)-i, joblet.ShortID(j.ID))
			return
		}
		a.note("denied %s", printable(deniedWords(c)))
	}
}
