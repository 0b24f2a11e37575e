// Package logstore keeps a job's output. In the job's directory,
//
//	log      holds the bytes of both streams exactly as written, in order of arrival
//	log.idx  says, in records of fixed size, which bytes came from which stream and when
//
// A [Writer], one per log at a time and in the job's shim, writes data first and
// then its index record: the record publishes the bytes. Each attempt to run the
// job has a Writer, which goes on where the one before has ended or was killed;
// an END record stands between them. Any number of [Reader]s,
// each with an offset of its own, read what is published; package follow waits
// for more. An offset counts the bytes of both streams and never changes its
// meaning, also when a size limit removes the oldest bytes.
//
// A writer that is killed between data and record loses nothing: once it is
// known to be gone, a Reader gives the bytes behind the last record as well.
// The same holds for a damaged index: whatever it says, the bytes of log are
// delivered in order and once, as Stdout where their stream is not known. A
// Writer that appends gives them a record.
//
// The package is linked into the shim, so it imports little; what waits and
// watches lives in package follow.
package logstore

import "time"

// Stream is the origin of bytes of output.
type Stream uint8

// The two streams of a job.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Chunk is a piece of output of one stream. A Chunk with Dropped set has no
// Data: it stands for bytes that the log's size limit or Shrink removed before
// they were read.
type Chunk struct {
	Offset  int64 // of its first byte, counted over both streams
	Stream  Stream
	Time    time.Time // when the job's shim read it
	Data    []byte
	Dropped int64 // bytes missing right before Offset, counted over both streams
}
