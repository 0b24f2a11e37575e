package joblet

// MaxWindow bounds the rows and the columns of a terminal.
const MaxWindow = 1000

// WindowSize is the size of a terminal in characters.
type WindowSize struct {
	Rows    int `json:"rows"`
	Columns int `json:"columns"`
}

// DefaultWindow is the size of a terminal without an attached client.
var DefaultWindow = WindowSize{Rows: 24, Columns: 80}

// Validate reports whether a terminal can have this size.
func (w WindowSize) Validate() error {
	if w.Rows < 1 || w.Rows > MaxWindow || w.Columns < 1 || w.Columns > MaxWindow {
		return Errorf(InvalidArgument, "terminal of %d rows and %d columns: each must be between 1 and %d", w.Rows, w.Columns, MaxWindow)
	}
	return nil
}

// ExecSpec is a further process for a running job.
type ExecSpec struct {
	Command string
	Args    []string
	Env     map[string]string // beside the job's own
	WorkDir string            // empty: the job's
	Stdin   bool              // it has a standard input; otherwise that is empty
	// MergeOutput makes standard error the same pipe as standard output.
	MergeOutput bool
	// Terminal is the size of the pseudo-terminal that the process gets; zero: none.
	Terminal WindowSize
}

// Validate reports the first thing in e that can never work.
func (e ExecSpec) Validate() error {
	s := Spec{Command: e.Command, Args: e.Args, Env: e.Env, WorkDir: e.WorkDir, Terminal: e.Terminal}
	return s.Validate()
}

// AttachOptions say how a terminal is connected to a job that has one.
type AttachOptions struct {
	Offset int64      // first byte of output wanted
	Tail   int64      // when positive: only so many bytes before what comes from now on, instead of Offset
	Size   WindowSize // the caller's, which becomes the job's; zero: that stays as it is
	Redraw bool       // have the program that has the screen draw it again
}
