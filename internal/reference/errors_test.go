package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/joblet/joblet/internal/cli"
	"github.com/joblet/joblet/internal/daemon/command"
)

// TestMain makes the test binary rnx and joblet for the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"rnx": func() { os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"joblet": func() {
			if err := command.New().Execute(); err != nil {
				_, _ = os.Stderr.WriteString("joblet: " + err.Error() + "\n")
				os.Exit(1)
			}
		},
	})
}

// TestErrors: testdata/errors is the table of what the programs answer to wrong input, so
// that a change of a message is reviewed as a change of the table. No daemon answers.
func TestErrors(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/errors",
		UpdateScripts:       *record,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("RNX_HOST", "unix:///nonexistent/joblet.sock")
			env.Setenv("TZ", "Europe/Berlin")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"fails": fails},
	})
}

// fails STATUS PROGRAM ARGS… runs a program, which must end with the status.
func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails STATUS PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	ended, ok := errors.AsType[*exec.ExitError](err)
	if !ok || ended.ExitCode() != want {
		ts.Fatalf("got %v, want exit status %d", err, want)
	}
}
