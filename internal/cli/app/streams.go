package app

import (
	"context"
	"io"
	"os"
	"slices"

	"github.com/joblet/joblet/internal/cli/term"
)

// NoteTerminals notes which of our streams are terminals, for hungUp.
func (a *App) NoteTerminals() {
	for _, stream := range []any{a.In, a.Out, a.ErrOut} {
		if term.IsTerminal(stream) {
			a.terminals = append(a.terminals, stream)
		}
	}
}

// HungUp reports whether a terminal that was ours has gone away since noteTerminals.
func (a *App) HungUp() bool { return slices.ContainsFunc(a.terminals, term.HungUp) }

// Stdin is our standard input. From a terminal only keyboards read.
func (a *App) Stdin() io.Reader {
	if !term.IsTerminal(a.In) {
		return a.In
	}
	return term.NewKeyboard(context.Background(), a.In.(*os.File)) // until rnx ends
}
