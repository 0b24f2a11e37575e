//go:build !linux

// Package rawio has nothing to offer here: see rawio_linux.go.
package rawio

import (
	"net"
	"os"
)

// NewFile returns f.
func NewFile(f *os.File) (*os.File, error) { return f, nil }

// Conn returns c.
func Conn(c net.Conn) net.Conn { return c }
