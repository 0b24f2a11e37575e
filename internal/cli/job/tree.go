package job

import (
	"cmp"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/table"
)

func newTreeCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "tree JOB",
		Short: "Show a job's processes as a tree",
		Long: `Show the processes of a running job as a tree, as seen from the host, with their
PIDs in the job and on the host and their commands. Processes whose parent is
outside the job are roots: PID 1, and those started by "rnx job exec".

With --json one object lists the processes in the order of the tree; "depth" is the
number of ancestors in it.` + jobRefHelp,
		Example: `  rnx job tree 3f2a
  rnx job tree --json web | jq -r '.processes[] | select(.state == "Z") | .pid'`,
		Args:              app.ExactlyOne("job"),
		ValidArgsFunction: a.CompleteJobs(joblet.Running, joblet.Paused, joblet.Stopping),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				id, err := jobID(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				p, err := c.Processes(cmd.Context(), id)
				if err != nil {
					return err
				}
				forest := makeForest(p.All)
				if a.JSON {
					return a.WriteJSON(newTreeJSON(id, p, forest))
				}
				width := term.Width(a.Out)
				lines := asciiLines
				if width > 0 && utf8Locale(os.Getenv) {
					lines = unicodeLines
				}
				return writeTree(a.Out, width, forest, lines, p.Omitted)
			})
		},
	}
}

// treeNode is a process in the order in which a tree shows them.
type treeNode struct {
	joblet.Process
	depth int
	more  []bool // by level, this one's last: another child of the same parent comes below
}

// maxTreeDepth bounds what is drawn to the left of a process: a job may start
// thousands of them each below the last.
const maxTreeDepth = 64

// makeForest puts processes below their parents, each level by number. What comes
// from one moment holds no circle; none that did would be lost.
func makeForest(all []joblet.Process) []treeNode {
	all = slices.SortedFunc(slices.Values(all), func(a, b joblet.Process) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.HostPID, b.HostPID))
	})
	known := make(map[int]bool, len(all))
	for _, p := range all {
		known[p.PID] = true
	}
	children := map[int][]int{} // by number of the parent, 0: roots; places in all
	for i, p := range all {
		parent := p.PPID
		if !known[parent] || parent == p.PID {
			parent = 0
		}
		children[parent] = append(children[parent], i)
	}
	out := make([]treeNode, 0, len(all))
	done := make([]bool, len(all))
	// Not recursive: the depth is the job's to choose.
	type level struct{ left []int }
	grow := func(roots []int) {
		stack := []level{{roots}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.left) == 0 {
				stack = stack[:len(stack)-1]
				continue
			}
			i := top.left[0]
			top.left = top.left[1:]
			if done[i] {
				continue
			}
			done[i] = true
			node := treeNode{Process: all[i], depth: len(stack) - 1}
			for _, l := range stack[min(1, len(stack)):min(len(stack), maxTreeDepth+1)] {
				node.more = append(node.more, len(l.left) > 0)
			}
			out = append(out, node)
			below := children[all[i].PID]
			delete(children, all[i].PID)
			stack = append(stack, level{below})
		}
	}
	grow(children[0])
	for i := range all {
		if !done[i] {
			grow([]int{i})
		}
	}
	return out
}

// treeLines is what a tree is drawn with.
type treeLines struct{ child, last, passing, none, deeper string }

var (
	unicodeLines = treeLines{"├─", "└─", "│ ", "  ", "…"}
	asciiLines   = treeLines{"|-", "`-", "| ", "  ", "..."}
)

// branch is what stands to the left of a process.
func (n treeNode) branch(lines treeLines) string {
	var b strings.Builder
	for i, more := range n.more {
		switch last := i == len(n.more)-1; {
		case last && more:
			b.WriteString(lines.child)
		case last:
			b.WriteString(lines.last)
		case more:
			b.WriteString(lines.passing)
		default:
			b.WriteString(lines.none)
		}
	}
	if n.depth > maxTreeDepth {
		b.WriteString(lines.deeper)
	}
	return b.String()
}

func writeTree(w io.Writer, width int, forest []treeNode, lines treeLines, omitted int) error {
	rows := [][]string{{"PROCESS", "HOST-PID", "COMMAND"}}
	for _, n := range forest {
		rows = append(rows, []string{n.branch(lines) + joblet.Printable(n.Name) + "(" + strconv.Itoa(n.PID) + ")", strconv.Itoa(n.HostPID), joblet.Printable(n.Command)})
	}
	if err := table.Write(w, width, rows); err != nil {
		return err
	}
	if omitted > 0 {
		_, err := io.WriteString(w, omittedLine(omitted))
		return err
	}
	return nil
}

func omittedLine(n int) string { return "and " + strconv.Itoa(n) + " more that were not looked at\n" }

// utf8Locale reports whether the environment says that the terminal understands
// UTF-8 (setlocale(3)).
func utf8Locale(getenv func(string) string) bool {
	locale := strings.ToUpper(cmp.Or(getenv("LC_ALL"), getenv("LC_CTYPE"), getenv("LANG")))
	return strings.Contains(locale, "UTF-8") || strings.Contains(locale, "UTF8")
}

// jobProcessJSON is a process as --json shows it.
type jobProcessJSON struct {
	PID        int       `json:"pid"` // in the job
	HostPID    int       `json:"host_pid"`
	PPID       int       `json:"ppid"` // in the job; 0: the parent is not of the job
	UID        int       `json:"uid"`  // in the job
	State      string    `json:"state"`
	Threads    int       `json:"threads"`
	CPUPercent float64   `json:"cpu_percent"` // of one processor
	CPUMS      float64   `json:"cpu_ms"`
	Memory     int64     `json:"memory_bytes"`
	Started    time.Time `json:"start_time"`
	Name       string    `json:"name"`
	Command    string    `json:"command"`
	Depth      *int      `json:"depth,omitempty"` // in a tree
}

func newJobProcessJSON(p joblet.Process) jobProcessJSON {
	return jobProcessJSON{
		PID: p.PID, HostPID: p.HostPID, PPID: p.PPID, UID: p.UID, State: p.State, Threads: p.Threads,
		CPUPercent: round(p.CPUPercent), CPUMS: float64(p.CPUTime.Microseconds()) / 1000, Memory: p.Memory,
		Started: p.Started, Name: p.Name, Command: p.Command,
	}
}

// treeJSON is a job's processes as --json shows them.
type treeJSON struct {
	UUID      string           `json:"uuid"`
	Time      time.Time        `json:"time"`
	Processes []jobProcessJSON `json:"processes"`
	Omitted   int              `json:"omitted"` // there are so many more
}

func newTreeJSON(id string, p joblet.Processes, forest []treeNode) treeJSON {
	out := treeJSON{UUID: id, Time: p.Time, Processes: make([]jobProcessJSON, len(forest)), Omitted: p.Omitted}
	for i, n := range forest {
		out.Processes[i] = newJobProcessJSON(n.Process)
		out.Processes[i].Depth = &n.depth
	}
	return out
}
