//go:build !linux

package cli

// HideSecrets does nothing: other systems keep the command line elsewhere.
func HideSecrets() {}
