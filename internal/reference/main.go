// Command reference writes the reference of the command lines: docs/cli, which has the
// --help of every command, and the manual pages of the packages.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/joblet/joblet/internal/cli"
	"github.com/joblet/joblet/internal/daemon/command"
)

func main() {
	markdown := flag.String("markdown", "", "`directory` for NAME.md of each program")
	man := flag.String("man", "", "`directory` for the manual pages of each program")
	flag.Parse()
	if flag.NArg() > 0 || *markdown == "" && *man == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*markdown, *man); err != nil {
		fmt.Fprintf(os.Stderr, "cannot write the reference: %v\n", err)
		os.Exit(1)
	}
}

// write writes what has a directory.
func write(markdown, man string) error {
	for _, root := range programs() {
		if markdown != "" {
			text, err := reference(root)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(markdown, root.Name()+".md"), text, 0o644); err != nil {
				return err
			}
		}
		if man == "" {
			continue
		}
		date, err := buildDate()
		if err != nil {
			return err
		}
		root.DisableAutoGenTag = true
		header := &doc.GenManHeader{Title: strings.ToUpper(root.Name()), Section: "1", Source: "Joblet", Manual: "Joblet", Date: &date}
		if err := doc.GenManTree(root, header, man); err != nil {
			return err
		}
	}
	return nil
}

// buildDate is $SOURCE_DATE_EPOCH (reproducible-builds.org), or now.
func buildDate() (time.Time, error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Now(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%s is not a number of seconds", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// programs returns the command trees of rnx and joblet.
func programs() []*cobra.Command {
	trees := []*cobra.Command{cli.NewCommand(), command.New()}
	for _, root := range trees {
		root.InitDefaultHelpCmd()
		root.InitDefaultCompletionCmd()
	}
	return trees
}

// reference returns the --help of every command of a program, as Markdown.
func reference(root *cobra.Command) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n\nThe `--help` of every command. `go run ./internal/reference -markdown docs/cli` writes this file.\n", root.Name())
	err := walk(root, func(cmd *cobra.Command) error {
		text, err := helpOf(cmd)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n## %s\n\n```text\n%s```\n", cmd.CommandPath(), text)
		return nil
	})
	return b.Bytes(), err
}

// walk calls f for a command and those below it, but not for hidden ones.
func walk(cmd *cobra.Command, f func(*cobra.Command) error) error {
	if cmd.Hidden || cmd.Name() == "help" {
		return nil
	}
	if err := f(cmd); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if err := walk(sub, f); err != nil {
			return err
		}
	}
	return nil
}

// helpOf returns what --help prints.
func helpOf(cmd *cobra.Command) (string, error) {
	var b strings.Builder
	cmd.SetOut(&b)
	defer cmd.SetOut(nil)
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.Help(); err != nil {
		return "", err
	}
	return b.String(), nil
}
