//go:build !linux

package main

// hideSecrets does nothing: other systems keep the command line elsewhere.
func hideSecrets() {}
