package monitor

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cli/app"
)

// interrupter is an output whose reader presses Ctrl-C when something is in it.
type interrupter struct{ text []byte }

func (i *interrupter) Write(b []byte) (int, error) {
	i.text = append(i.text, b...)
	return len(b), unix.Kill(os.Getpid(), unix.SIGINT)
}

// TestWatchEnds: Ctrl-C ends a watch, quietly. It is not parallel: the signal is
// for the whole process.
func TestWatchEnds(t *testing.T) {
	_, host := serveHost(t, -1)
	var out interrupter
	var errOut bytes.Buffer
	a := &app.App{Out: &out, ErrOut: &errOut}
	status := a.Execute(t.Context(), newRootCommand(a), []string{"--host=" + host, "monitor", "watch", "--compact"})
	if status != 0 || !strings.HasPrefix(string(out.text), "Time ") || errOut.String() != "" {
		t.Errorf("got %d, %q, %q", status, string(out.text), errOut.String())
	}
}
