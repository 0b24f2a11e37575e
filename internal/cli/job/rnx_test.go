package job

import (
	"bytes"
	"os"
	"testing"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/internal/cli/app"
)

// newRootCommand returns an rnx that has the commands for jobs alone.
func newRootCommand(a *app.App) *cobra.Command {
	root := &cobra.Command{Use: "rnx", SilenceErrors: true, SilenceUsage: true}
	a.AddGlobalFlags(root)
	root.AddCommand(NewCommand(a))
	return root
}

// rnxAt runs a command line with the daemon at host.
func rnxAt(t *testing.T, host string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app.App{Out: &out, ErrOut: &errOut}
	status = a.Execute(t.Context(), newRootCommand(a), append([]string{"--host=" + host}, args...))
	return status, out.String(), errOut.String()
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }
