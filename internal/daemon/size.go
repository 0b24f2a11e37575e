package daemon

import "github.com/joblet/joblet"

// byteSize is a number of bytes as a flag takes it: 1048576, 512K, 20G.
type byteSize int64

func (b *byteSize) Type() string   { return "size" }
func (b *byteSize) String() string { return joblet.FormatSize(int64(*b)) }

func (b *byteSize) Set(s string) error {
	n, err := joblet.ParseSize(s)
	*b = byteSize(n)
	return err
}
