package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func runDir() string { return cmp.Or(os.Getenv("JOBLET_RUN_DIR"), "/run/joblet") }

// LocalNode is the daemon of this machine, whatever the configuration says.
const LocalNode = "local"

// target is the daemon to talk to.
type target struct {
	client.Node
	local bool // this machine's, named by nobody
}

// target finds out what the user means: --host or RNX_HOST, --node or RNX_NODE,
// the configuration's default node, this machine.
func (a *App) target() (target, error) {
	host := cmp.Or(a.Host, os.Getenv("RNX_HOST"))
	if a.Host == "" && a.Node != "" {
		host = "" // a flag goes before the environment
	}
	node := cmp.Or(a.Node, os.Getenv("RNX_NODE"))
	switch {
	case strings.Contains(host, "://") && !strings.HasPrefix(host, "tcp://"):
		_, err := client.SocketPath(host)
		return target{Node: client.Node{Address: host}}, err
	case host == "" && node == LocalNode:
		return a.Here(), nil
	}
	conf, err := a.LoadConfig()
	switch {
	case errors.Is(err, fs.ErrNotExist) && a.ConfigName() == "" && host == "" && node == "":
		return a.Here(), nil
	case errors.Is(err, fs.ErrNotExist):
		if host != "" {
			err = fmt.Errorf("cannot connect to %s, which requires a client certificate: %w", host, err)
		}
		return target{}, joblet.Errorf(joblet.NotFound, "%w: get a bundle (joblet pki issue) and import it with rnx login", err)
	case err != nil:
		return target{}, err
	case len(conf.Nodes) == 0 && host == "" && node == "":
		return a.Here(), nil
	}
	n, err := conf.Node(node)
	if err != nil {
		return target{}, err
	}
	a.WarnOfKey(n.KeyFile())
	if host != "" { // with that node's certificates
		n.Address = strings.TrimPrefix(host, "tcp://")
	}
	return target{Node: n}, nil
}

// WarnOfKey says, once, that others may read a file that holds our key.
func (a *App) WarnOfKey(path string) {
	if path == "" || a.warned || IsWindows { // where these bits say nothing
		return
	}
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		a.warned = true
		a.Note("%s holds your key, and other users may read it: chmod go-rwx %[1]s", path)
	}
}

// ConfigName is the configuration that the user named, if he did.
func (a *App) ConfigName() string { return cmp.Or(a.config, os.Getenv("RNX_CONFIG")) }

// LoadConfig reads the configuration. One that was named and has no nodes is not
// what the user means: this machine would be meant then.
func (a *App) LoadConfig() (client.Config, error) {
	conf, err := client.LoadConfig(a.config)
	if err == nil && len(conf.Nodes) == 0 && a.ConfigName() != "" {
		err = joblet.Errorf(joblet.InvalidArgument, "%s: has no nodes (this machine's daemon is --node=local)", conf.Path)
	}
	return conf, err
}

// Here is the daemon of this machine.
func (a *App) Here() target {
	return target{Node: client.Node{Address: "unix://" + filepath.Join(runDir(), "joblet.sock")}, local: true}
}

// Connect returns a connection to the daemon. When none answers here and the
// user named none, it starts one where it may.
func (a *App) Connect(ctx context.Context) (*client.Client, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	c, err := t.Dial(ctx)
	switch {
	case err == nil:
		return c, nil
	case joblet.KindOf(err) == joblet.PermissionDenied && strings.HasPrefix(t.Address, "unix://"):
		return nil, joblet.Errorf(joblet.PermissionDenied, "%w: only root may use the daemon, and members of the group that its configuration names (group): try sudo", err)
	case !silent(err):
		return nil, err
	case !t.local:
		return nil, joblet.Errorf(joblet.Unavailable, "no daemon answers at %s: %w", t.Address, err)
	}
	return startDaemon(ctx, t.Address)
}

// ConnectRunning is connect for what needs no daemon of its own.
func (a *App) ConnectRunning(ctx context.Context) (*client.Client, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	return t.Dial(ctx)
}

// silent reports whether a connection failed because nobody listens.
func silent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// With calls do with a connection.
func (a *App) With(ctx context.Context, do func(*client.Client) error) error {
	c, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	// Nothing is buffered on our side, so that a failure to close loses nothing.
	defer c.Close()
	return do(c)
}

func errNoDaemon(host, advice string) error {
	return joblet.Errorf(joblet.Unavailable, "%s", fmt.Sprintf("no daemon answers at %s: %s", host, advice))
}
