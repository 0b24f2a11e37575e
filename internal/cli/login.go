package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

const maxBundle = 4 << 20

// loginOptions are the flags of rnx login.
type loginOptions struct {
	force   bool
	noCheck bool
	address string
}

func newLoginCommand(a *app.App) *cobra.Command {
	var opt loginOptions
	cmd := &cobra.Command{
		Use:   "login FILE|-",
		Short: "Import the certificate bundle for a remote daemon",
		Long: `Import a certificate bundle, the output of "joblet pki issue". Its nodes are added to
~/.rnx/rnx-config.yml, or to the file that --config or RNX_CONFIG names; with
--node, under that name. rnx contacts the daemon first.` + app.ExitStatusHelp,
		Example: `  rnx login alice.yml
  rnx --node=lab login alice.yml
  ssh node1 sudo joblet pki issue alice --role=developer | rnx login -`,
		Args: app.ExactlyOne("file"),
		RunE: func(cmd *cobra.Command, args []string) error { return login(cmd.Context(), a, args[0], opt) },
	}
	f := cmd.Flags()
	f.BoolVar(&opt.force, "force", false, "replace an existing node")
	f.BoolVar(&opt.noCheck, "no-check", false, "do not contact the daemon")
	f.StringVar(&opt.address, "address", "", "address of the daemon (default: the one in the bundle)")
	return cmd
}

func login(ctx context.Context, a *app.App, file string, opt loginOptions) error {
	in := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxBundle))
	if err != nil {
		return fmt.Errorf("cannot read the bundle: %w", err)
	}
	conf, err := client.ParseConfig(text)
	if err != nil {
		return joblet.Errorf(joblet.InvalidArgument, "the bundle: %w", err)
	}
	if len(conf.Nodes) == 0 {
		return joblet.Errorf(joblet.InvalidArgument, "the bundle has no nodes: it must be what joblet pki issue prints")
	}
	if (a.Node != "" || opt.address != "") && len(conf.Nodes) != 1 {
		return joblet.Errorf(joblet.InvalidArgument, "the bundle has %d nodes: --node and --address are for one", len(conf.Nodes))
	}
	nodes := map[string]client.Node{}
	var notes []string
	for name, n := range conf.Nodes {
		if a.Node != "" {
			name = a.Node
		}
		if opt.address != "" {
			n.Address = opt.address
		}
		if name == app.LocalNode {
			return joblet.Errorf(joblet.InvalidArgument, "node %q: this is the name of this machine's daemon", name)
		}
		n, err := n.Embed(filepath.Dir(file)) // of "-" here
		if err != nil {
			return err
		}
		who, role, until, err := n.Identity()
		if err != nil {
			return err
		}
		if !until.IsZero() && time.Now().After(until) {
			return joblet.Errorf(joblet.InvalidArgument, "the bundle's certificate of %q expired on %s", who, until.Format(time.RFC3339))
		}
		if !opt.noCheck {
			if answer := askNode(ctx, name, n); !answer.Reachable {
				return joblet.Errorf(joblet.Unavailable, "%s (import it all the same with --no-check)", answer.Status)
			}
		}
		if n.Key != "" && file != "-" {
			a.WarnOfKey(file)
		}
		nodes[name] = n
		notes = append(notes, fmt.Sprintf("node %s at %s: you are %s there, %s until %s", name, n.Address, who, role, until.Local().Format(time.DateOnly)))
	}
	path, err := configPath(a)
	if err != nil {
		return err
	}
	if err := client.AddNodes(path, nodes, opt.force); err != nil {
		return err
	}
	for _, note := range append(notes, "written to "+path) {
		a.Note("%s", note)
	}
	return nil
}

// configPath returns the file that login writes.
func configPath(a *app.App) (string, error) {
	if path := a.ConfigName(); path != "" {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errors.Join(err, errors.New("name a file with --config"))
	}
	return filepath.Join(home, ".rnx", client.ConfigName), nil
}
