//go:build !unix

package client

import "os"

func trustedFile(*os.File) error { return nil }
