package cli

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/table"
)

const (
	nodeTime = 5 * time.Second // for a node to answer
	nodesAt  = 16              // asked at once
)

// nodeJSON is a node as --json shows it.
type nodeJSON struct {
	Name      string    `json:"name"`
	Address   string    `json:"address"`
	NodeID    string    `json:"node_id,omitempty"`
	Default   bool      `json:"default"`
	Status    string    `json:"status"` // ok, or why not
	Reachable bool      `json:"reachable"`
	Version   string    `json:"version,omitempty"`
	LatencyMS float64   `json:"latency_ms,omitempty"`
	Jobs      *int64    `json:"jobs,omitempty"` // that have not ended
	Caller    string    `json:"caller,omitempty"`
	Role      string    `json:"role,omitempty"`
	Expires   time.Time `json:"certificate_expires,omitzero"`
}

func newNodesCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "nodes",
		Short: "List configured nodes and their status",
		Long: `List the nodes in the configuration and query each. LATENCY is that of one call,
JOBS the number of jobs that have not ended, ROLE your role on that node. With
--json each line is an object.` + app.ExitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return listNodes(cmd.Context(), a) },
	}
}

func listNodes(ctx context.Context, a *app.App) error {
	conf, err := a.LoadConfig()
	if errors.Is(err, fs.ErrNotExist) && a.ConfigName() == "" {
		conf, err = client.Config{Nodes: map[string]client.Node{app.LocalNode: a.Here().Node}}, nil
	}
	if err != nil {
		return err
	}
	names := conf.Names()
	for _, name := range names {
		a.WarnOfKey(conf.Nodes[name].KeyFile())
	}
	chosen := cmp.Or(a.Node, conf.Default())
	all := make([]nodeJSON, len(names))
	slots := make(chan struct{}, nodesAt)
	var work sync.WaitGroup
	for i, name := range names {
		work.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			all[i] = askNode(ctx, name, conf.Nodes[name])
			all[i].Default = name == chosen
		})
	}
	work.Wait()
	rows := [][]string{{"NODE", "ADDRESS", "STATUS", "VERSION", "LATENCY", "JOBS", "ROLE"}}
	for _, n := range all {
		if a.JSON {
			if err := a.WriteJSON(n); err != nil {
				return err
			}
			continue
		}
		row := []string{joblet.Printable(n.Name), joblet.Printable(n.Address), joblet.Printable(n.Status), "-", "-", "-", "-"}
		if n.Default {
			row[0] += " *"
		}
		if n.Reachable {
			row[3], row[4] = joblet.Printable(n.Version), time.Duration(n.LatencyMS*float64(time.Millisecond)).Round(10*time.Microsecond).String()
			row[5], row[6] = strconv.FormatInt(*n.Jobs, 10), joblet.Printable(n.Role)
		}
		rows = append(rows, row)
	}
	if a.JSON {
		return nil
	}
	const name, address, status, version, latency, jobs = 0, 1, 2, 3, 4, 5
	t := table.Table{Rows: rows, Width: term.Width(a.Out), Drop: []int{latency, version, jobs}, Narrow: []int{name, address, status}}
	return t.Write(a.Out)
}

// askNode connects to a node and asks it for its version, twice: the second time
// measures it.
func askNode(ctx context.Context, name string, n client.Node) (out nodeJSON) {
	out = nodeJSON{Name: name, Address: n.Address, NodeID: n.NodeID, Status: "ok"}
	ctx, cancel := context.WithTimeout(ctx, nodeTime)
	defer cancel()
	err := func() error {
		var err error
		if _, _, out.Expires, err = n.Identity(); err != nil {
			return err
		}
		c, err := n.Dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		v, err := c.ServerVersion(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		if v, err = c.ServerVersion(ctx); err != nil {
			return err
		}
		out.LatencyMS = float64(time.Since(start).Microseconds()) / 1000
		out.Reachable, out.Version, out.Jobs, out.Caller, out.Role = true, v.Version, &v.Jobs, v.Caller, v.Role
		return nil
	}()
	if err != nil {
		out.Status = err.Error()
		if errors.Is(err, context.DeadlineExceeded) {
			out.Status = joblet.Errorf(joblet.Unavailable, "no answer within %v", nodeTime).Error()
		}
	}
	return out
}
