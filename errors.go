package joblet

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Kind says what sort of failure an error is, for programs. Package
// internal/wire translates kinds to gRPC codes and back at the edge; an error
// without a kind is internal.
type Kind uint8

// The kinds of failure.
const (
	Internal           Kind = iota // ours: the operator's log has the detail
	InvalidArgument                // the request can never work
	NotFound                       // no such job, runtime, …
	AlreadyExists                  // the name is taken
	FailedPrecondition             // not in the state that this needs
	PermissionDenied               // the caller may not
	ResourceExhausted              // a limit or a full disk
	Unavailable                    // try again: the daemon is stopping, …
	Unimplemented                  // known, not built
	CommandNotFound                // the job's command does not exist (status 127)
	NotExecutable                  // it exists and cannot be executed (status 126)
)

var kindNames = [...]string{
	"internal", "invalid argument", "not found", "already exists", "failed precondition",
	"permission denied", "resource exhausted", "unavailable", "unimplemented",
	"command not found", "not executable",
}

// String returns the kind in words.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is a failure with a Kind. Its text is Err's alone: the kind is for
// programs.
type Error struct {
	Kind Kind
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an *Error of the given kind; format may hold %w.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// Bounds on what Shorten leaves.
const (
	maxWord, wordHead, wordTail = 200, 120, 60
	maxLine, lineHead, lineTail = 1000, 600, 300
)

// Shorten returns a message without the middle of words and lines that are very long: of
// a name of thousands of bytes a reader needs the ends, and what is said about it.
func Shorten(message string) string {
	message = ShortenWords(message)
	if len(message) <= maxLine {
		return message
	}
	var b strings.Builder
	for line := range strings.Lines(message) {
		text, end := strings.CutSuffix(line, "\n")
		b.WriteString(withoutMiddle(text, maxLine, lineHead, lineTail))
		if end {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// ShortenWords is Shorten for words alone.
func ShortenWords(message string) string {
	if len(message) <= maxWord {
		return message
	}
	var b strings.Builder
	for message != "" {
		end := strings.IndexAny(message, " \t\n")
		if end < 0 {
			end = len(message)
		}
		b.WriteString(withoutMiddle(message[:end], maxWord, wordHead, wordTail))
		if message = message[end:]; message != "" {
			b.WriteByte(message[0])
			message = message[1:]
		}
	}
	return b.String()
}

// ShortenTo returns a text of at most limit bytes: s, or else its ends. Of a text that one
// cannot trust it bounds the length; limit must be 64 or more.
func ShortenTo(s string, limit int) string { return withoutMiddle(s, limit, limit*2/3, limit/4) }

// withoutMiddle returns s if it has at most limit bytes, and else its ends, of about
// head and tail bytes.
func withoutMiddle(s string, limit, head, tail int) string {
	if len(s) <= limit {
		return s
	}
	tail = len(s) - tail
	for range utf8.UTFMax - 1 { // no halves of runes
		if !utf8.RuneStart(s[head]) {
			head--
		}
		if !utf8.RuneStart(s[tail]) {
			tail++
		}
	}
	return s[:head] + "…" + s[tail:]
}

// KindOf returns the kind of the first *Error in err's chain, or Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}
