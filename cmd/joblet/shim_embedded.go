//go:build jobletshim

package main

// runBuiltinShim does nothing: scripts/build embeds the shim as a program of its own.
func runBuiltinShim() {}
