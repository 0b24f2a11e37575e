// Command joblet-shim is the keeper of one job. The daemon carries it
// inside itself and starts it from a sealed memfd; see package shim.
package main

import (
	"os"

	"github.com/joblet/joblet/internal/shim"
)

func main() { os.Exit(shim.Main()) }
