package job

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/cli/transfer"
)

func newCopyCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "cp JOB:PATH DEST",
		Short: "Copy files out of a job's /work",
		Long: `Copy files out of the /work of a running or ended job. PATH is relative to /work or
begins with it, and may contain *, ?, [a-z], and ** for any number of directories.
DEST is a directory, or a new name for the copy if nothing of that name exists; "-"
writes a tar archive to stdout. "JOB:." and "JOB:DIR/." copy the contents of a
directory. The directories before the first *, ? or [ of a pattern are stripped.
Existing files are replaced, and nothing is written outside DEST. Modification
times are kept, and permission bits subject to the umask. Links that lead out of
/work, sockets, devices and FIFOs are left out, with a note.

To copy files into a job, use "rnx job run --upload".` + jobRefHelp,
		Example: `  rnx job cp 3f2a:out.csv .
  rnx job cp web:/work/logs old-logs
  rnx job cp '3f2a:out/**/*.png' images
  rnx job cp 3f2a:. - | tar -t`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return joblet.Errorf(joblet.InvalidArgument, "%d arguments given: JOB:PATH and DEST are needed; see %q", len(args), cmd.CommandPath()+" --help")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return completeCopy(a, cmd, given, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := transfer.ParseSource(args[0], args[1])
			if err != nil {
				return err
			}
			if args[1] == "-" && term.Width(a.Out) > 0 {
				return joblet.Errorf(joblet.InvalidArgument, "a tar archive is nothing for a terminal: redirect it, as in \"| tar -t\"")
			}
			return a.With(cmd.Context(), func(c *client.Client) error { return transfer.Copy(cmd.Context(), a, c, from, args[1]) })
		},
	}
}

// completeCopy offers jobs with the colon that follows, then files.
func completeCopy(a *app.App, cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	if strings.Contains(prefix, ":") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	offers, directive := a.CompleteJobs()(cmd, given, prefix)
	for i, offer := range offers {
		id, text, _ := strings.Cut(offer, "\t")
		offers[i] = id + ":\t" + text
	}
	return offers, directive | cobra.ShellCompDirectiveNoSpace
}
