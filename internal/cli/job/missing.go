package job

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

// shellBuiltins are commands of shells that are usually no programs.
var shellBuiltins = []string{
	".", "alias", "bg", "bind", "break", "builtin", "cd", "command", "compgen", "complete", "continue", "declare", "dirs", "disown", "eval", "exec",
	"exit", "export", "fc", "fg", "for", "function", "getopts", "hash", "history", "if", "jobs", "let", "local", "logout", "mapfile", "popd", "pushd",
	"read", "readarray", "readonly", "return", "set", "shift", "shopt", "source", "suspend", "time", "times", "trap", "type", "typeset", "ulimit",
	"umask", "unalias", "unset", "until", "wait", "while",
}

// distributions are common names of images that are no names of programs.
var distributions = []string{
	"almalinux", "alpine", "amazonlinux", "archlinux", "centos", "debian", "fedora", "hello-world", "opensuse", "rockylinux", "ubuntu",
}

// explainMissing adds to the error for a command that does not exist what the user may
// have meant by it.
func explainMissing(ctx context.Context, a *app.App, args []string, err error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	hint := missingHint(args, func() []string { return runtimeNames(ctx, a) })
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

// runtimeNames returns the names of the installed runtimes; none, if the daemon does not
// say.
func runtimeNames(ctx context.Context, a *app.App) (names []string) {
	_ = a.With(ctx, func(c *client.Client) error {
		all, err := c.Runtimes(ctx)
		for _, rt := range all {
			names = append(names, rt.Name)
		}
		return err
	})
	return names
}

// missingHint returns what to do about a command line whose command does not exist, or "".
// It calls runtimes only when nothing else explains the command.
func missingHint(args []string, runtimes func() []string) string {
	command := args[0]
	name, _, isAssignment := strings.Cut(command, "=")
	line := joblet.Spec{Command: "bash", Args: []string{"-c", strings.Join(args, " ")}}.CommandLine()
	switch {
	case isAssignment && joblet.ValidEnvName(name) == nil:
		return "use --env=" + command + " to set a variable"
	case strings.ContainsAny(command, "|&;<>()$`*?~\n"):
		return "to run a shell command line: rnx run " + line
	case strings.ContainsAny(command, " \t"):
		return fmt.Sprintf("give each word as an argument of its own: rnx run %s; to run a shell command line: rnx run %s", strings.Join(args, " "), line)
	case command == "cd" && len(args) == 2:
		return fmt.Sprintf("cd is a shell builtin: use --workdir=%s to set the working directory", args[1])
	case slices.Contains(shellBuiltins, command):
		return fmt.Sprintf("%s is a shell builtin: rnx run %s", command, line)
	case slices.Contains(distributions, command), !strings.HasPrefix(command, ".") && !strings.HasPrefix(command, "/") && strings.ContainsAny(command, ":/@"):
		return "Joblet runs no images: give the command itself, and --runtime=NAME for other programs than the host's (see \"rnx runtime list\")"
	case slices.Contains(runtimes(), command):
		return fmt.Sprintf("%s is a runtime: rnx run --runtime=%[1]s COMMAND", command)
	}
	return ""
}
