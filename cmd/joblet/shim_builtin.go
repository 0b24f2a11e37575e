//go:build !jobletshim

package main

import (
	"os"

	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim"
)

// runBuiltinShim makes this program the shim when the daemon starts it as one. A
// plain go build or go install has no embedded shim, and could not run jobs without
// this one. It is larger and slower to start than the embedded one.
func runBuiltinShim() {
	if len(os.Args) > 0 && os.Args[0] == native.ShimName {
		os.Exit(shim.Main())
	}
	native.SetBuiltinShim()
}
