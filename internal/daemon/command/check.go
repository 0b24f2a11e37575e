package command

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/joblet/joblet/internal/daemon"
	"github.com/joblet/joblet/internal/hostcheck"
	"github.com/joblet/joblet/internal/table"
)

// checkOptions are the flags of joblet check.
type checkOptions struct {
	StateDir string
	JSON     bool
}

func newCheckCommand() *cobra.Command {
	opt := checkOptions{StateDir: daemon.DefaultOptions().StateDir}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether this host can run jobs",
		Long: `Test every kernel feature, cgroup controller and program that jobs need or use.
For each one, print whether it is available, what is lost without it, and how to
fix that. The last test runs a job.

The command leaves nothing behind and does not disturb a running daemon.

Exit status: 0 if everything required is available, otherwise 1. Missing optional
features and skipped tests do not count.`,
		Example: `  joblet check
  joblet check --json | jq '.[] | select(.status != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return opt.run(ctx, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.StateDir, "state-dir", opt.StateDir, "records, logs and runtimes (default from $JOBLET_STATE_DIR)")
	f.BoolVar(&opt.JSON, "json", false, "print a JSON array with one object per feature")
	return cmd
}

func (o checkOptions) run(ctx context.Context, stdout io.Writer) error {
	if !filepath.IsAbs(o.StateDir) {
		return fmt.Errorf("--state-dir %q: must be an absolute path", o.StateDir)
	}
	if os.Geteuid() != 0 {
		return errors.New("check: it must run as root, as the daemon does")
	}
	found, err := hostcheck.Check(ctx, o.StateDir)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if o.JSON {
		out := json.NewEncoder(stdout)
		out.SetIndent("", "  ")
		err = out.Encode(found)
	} else {
		err = printFindings(stdout, found)
	}
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	var missing []string
	for _, f := range found {
		if f.Status == hostcheck.Missing {
			missing = append(missing, f.Feature)
		}
	}
	if missing != nil {
		return fmt.Errorf("no job can run on this host; missing: %s", strings.Join(missing, ", "))
	}
	return nil
}

// printFindings prints the table, and below it how to mend what lacks.
func printFindings(w io.Writer, found []hostcheck.Finding) error {
	rows := [][]string{{"FEATURE", "STATUS", "FOUND", "WITHOUT IT"}}
	lack := 0
	for _, f := range found {
		rows = append(rows, []string{f.Feature, string(f.Status), cmp.Or(f.Found, "-"), f.Cost})
		if f.Mend != "" {
			lack++
		}
	}
	const feature, foundColumn = 0, 2
	t := table.Table{Rows: rows, Width: terminalWidth(w), Narrow: []int{feature, foundColumn}, Wrap: true}
	if err := t.Write(w); err != nil {
		return err
	}
	if lack > 0 {
		fmt.Fprintln(w, "\nTo mend:")
	}
	for _, f := range found {
		if f.Mend != "" {
			fmt.Fprintf(w, "  %s: %s\n", f.Feature, f.Mend)
		}
	}
	_, err := fmt.Fprintf(w, "\n%d features, %d lacking\n", len(found), lack)
	return err
}

// terminalWidth returns the columns of the terminal that w is, or 0.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}
