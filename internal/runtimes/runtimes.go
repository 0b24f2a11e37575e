// Package runtimes owns the installed runtimes: read-only trees of programs that jobs share.
package runtimes

// Store is the directory of installed runtimes.
type Store struct{}
