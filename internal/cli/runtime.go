package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/table"
)

func newRuntimeCommand(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "runtime",
		Short: "Manage runtimes, the read-only trees that jobs run in",
		Example: `  rnx runtime build recipes/python-3.11.yaml
  rnx runtime list
  rnx job run --runtime=python-3.11 python3 --version`,
		RunE: app.Group,
	}
	cmd.SuggestFor = []string{"image", "runtimes"}
	cmd.AddCommand(newBuildCommand(a), newRuntimeListCommand(a), newInfoCommand(a), newTestCommand(a), newRemoveCommand(a))
	return cmd
}

func newRuntimeListCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		SuggestFor:        []string{"images"},
		Short:             "List installed runtimes",
		Long:              "List the installed runtimes. With --json each line is an object." + app.ExitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				all, err := c.Runtimes(cmd.Context())
				if err != nil {
					return err
				}
				if a.JSON {
					for _, rt := range all {
						rt.Recipe, rt.Libraries = "", nil // runtime info shows them
						if err := a.WriteJSON(rt); err != nil {
							return err
						}
					}
					return nil
				}
				rows := [][]string{{"RUNTIME", "VERSION", "SIZE", "BUILT", "DESCRIPTION"}}
				for _, rt := range all {
					text := rt.Description
					if rt.Error != "" {
						text = "not usable: " + rt.Error
					}
					rows = append(rows, []string{
						joblet.Printable(rt.Name), table.Dash(rt.Version, table.MaxNameColumn), joblet.ReadableSize(rt.SizeBytes), localTime(rt.BuiltAt), joblet.Printable(text),
					})
				}
				const name, version, built = 0, 1, 3
				t := table.Table{Rows: rows, Width: term.Width(a.Out), Drop: []int{built}, Narrow: []int{name, version}}
				return t.Write(a.Out)
			})
		},
	}
}

// localTime shows an RFC 3339 time as the tables do.
func localTime(s string) string {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return "-"
	}
	return term.FormatTime(t)
}

func newInfoCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "Show details of a runtime",
		Long:              "Show details of a runtime. With --json also its recipe and every package in it." + app.ExitStatusHelp,
		Args:              app.ExactlyOne("runtime"),
		ValidArgsFunction: a.CompleteRuntimes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				rt, err := c.Runtime(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.JSON {
					return a.WriteJSON(rt)
				}
				return writeRuntime(a.Out, rt)
			})
		},
	}
}

func writeRuntime(w io.Writer, rt client.Runtime) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name+":", joblet.Printable(value))
		}
	}
	line("Runtime", rt.Name)
	line("Version", rt.Version)
	line("Description", rt.Description)
	line("Language", strings.TrimSpace(rt.Language+" "+rt.LanguageVersion))
	line("Not usable", rt.Error)
	line("Size", joblet.ReadableSize(rt.SizeBytes))
	line("Suite", rt.Suite)
	line("Platform", rt.Platform)
	line("Built", localTime(rt.BuiltAt))
	line("Packages", strings.Join(rt.Packages, " "))
	if n := len(rt.Libraries); n > 0 {
		line("Installed", fmt.Sprintf("%d packages", n))
	}
	for _, name := range slices.Sorted(maps.Keys(rt.Environment)) {
		line("Env", name+"="+rt.Environment[name])
	}
	if len(rt.Test) > 0 {
		line("Test", joblet.Spec{Command: rt.Test[0], Args: rt.Test[1:]}.CommandLine())
	}
	line("Next", fmt.Sprintf("rnx job run --runtime=%s COMMAND", rt.Name))
	_, err := io.WriteString(w, b.String())
	return err
}

func newTestCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "test NAME",
		Short: "Run the test of a runtime",
		Long: `Run the test command of a runtime's recipe as a job and print its output, or the end
of a long one.

Exit status: 0 if the test passed, else 1.`,
		Args:              app.ExactlyOne("runtime"),
		ValidArgsFunction: a.CompleteRuntimes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				t, err := c.TestRuntime(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.JSON {
					if err := a.WriteJSON(struct {
						Passed bool   `json:"passed"`
						Output string `json:"output"`
						Reason string `json:"reason,omitempty"`
						Status int    `json:"exit_code"`
					}{t.Passed, t.Output, t.Reason, t.Status}); err != nil || t.Passed {
						return err
					}
					return &app.ExitError{Status: app.StatusFailed}
				}
				if _, err := io.WriteString(a.Out, t.Output); err != nil {
					return err
				}
				if !t.Passed {
					return fmt.Errorf("runtime %s: %s", args[0], t.Reason)
				}
				a.Note("runtime %s passed its test", args[0])
				return nil
			})
		},
	}
}

func newRemoveCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME…",
		Aliases:           []string{"rm"},
		SuggestFor:        []string{"rmi"},
		Short:             "Remove unused runtimes",
		Long:              "Remove runtimes that no job uses." + app.ExitStatusHelp,
		Args:              app.AtLeastOne("runtime"),
		ValidArgsFunction: a.CompleteRuntimes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				return a.Each(args, app.AtOnce, func(name string) (func() error, error) {
					freed, err := c.RemoveRuntime(cmd.Context(), name)
					if err != nil {
						return nil, err
					}
					return func() error {
						if a.JSON {
							return a.WriteJSON(struct {
								Name  string `json:"name"`
								Freed int64  `json:"freed_bytes"`
							}{name, freed})
						}
						return a.Println(fmt.Sprintf("%s removed, %s freed", name, joblet.ReadableSize(freed)))
					}, nil
				})
			})
		},
	}
}

// maxRecipe is the longest recipe that the daemon takes.
const maxRecipe = 1 << 20

func newBuildCommand(a *app.App) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:        "build FILE",
		SuggestFor: []string{"pull", "load", "import"},
		Short:      "Build a runtime from a recipe",
		Long: `Build a runtime from a recipe, or from stdin with "-". A failed or interrupted build
leaves nothing behind.` + app.ExitStatusHelp,
		Example: `  rnx runtime build recipes/python-3.11-ml.yaml`,
		Args:    app.ExactlyOne("recipe"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			recipe, err := readRecipe(args[0], os.Stdin)
			if err != nil {
				return err
			}
			return a.With(cmd.Context(), func(c *client.Client) error { return buildRuntime(cmd.Context(), a, c, recipe, force) })
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace an installed runtime of the same name")
	return cmd
}

func readRecipe(name string, stdin io.Reader) (string, error) {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", fmt.Errorf("cannot read the recipe: %w", err)
		}
		defer f.Close()
		r = f
	}
	text, err := io.ReadAll(io.LimitReader(r, maxRecipe+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the recipe: %w", err)
	}
	if len(text) > maxRecipe {
		return "", joblet.Errorf(joblet.InvalidArgument, "recipe %s is longer than %s", name, joblet.ReadableSize(maxRecipe))
	}
	return string(text), nil
}

func buildRuntime(ctx context.Context, a *app.App, c *client.Client, recipe string, force bool) error {
	start := time.Now()
	p := progressLine{w: a.ErrOut, width: term.Width(a.ErrOut)}
	if a.JSON {
		p.w = io.Discard
	}
	rt, err := c.BuildRuntime(ctx, recipe, force, p.show)
	p.clear()
	if err != nil {
		return err
	}
	if a.JSON {
		return a.WriteJSON(rt)
	}
	return a.Println(fmt.Sprintf("%s built: %s in %s", rt.Name, joblet.ReadableSize(rt.SizeBytes), term.FormatDuration(time.Since(start))))
}

// progressLine shows how far a build is: on a terminal in one line, elsewhere
// in one line for each phase.
type progressLine struct {
	w     io.Writer
	width int // 0: no terminal
	phase int
}

func (p *progressLine) show(b client.BuildProgress) {
	text := fmt.Sprintf("[%d/%d] %3d%% %s", b.Phase, b.Phases, b.Percent, joblet.Printable(b.Name))
	if b.Message != "" && b.Message != b.Name {
		text += ": " + joblet.Printable(b.Message)
	}
	switch {
	case b.Phase == 0:
	case p.width > 0:
		fmt.Fprintf(p.w, "\r\x1b[K%s", table.Cut(text, p.width-1))
	case b.Phase != p.phase:
		fmt.Fprintln(p.w, text)
	}
	p.phase = b.Phase
}

func (p *progressLine) clear() {
	if p.width > 0 {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
