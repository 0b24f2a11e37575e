// Package logstore keeps a job's output: an append-only file of the very bytes and a small index beside it.
package logstore

import "time"

// Stream says where bytes came from.
type Stream uint8

// The two streams of a job.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Chunk is a piece of output of one stream.
type Chunk struct {
	Offset int64 // of its first byte, counted over both streams
	Stream Stream
	Time   time.Time // when the job's monitor read it
	Data   []byte
}
