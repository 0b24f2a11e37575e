package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	auditKept     = 5   // older files beside the one that is written
	maxAuditField = 200 // bytes of what a caller chose
)

// Audit is the record of who changed what: a line of JSON for each call that
// changes something, or that was refused. Lines are only ever appended; a full
// file is set aside.
type Audit struct {
	path string
	max  int64
	log  *slog.Logger

	mu   sync.Mutex // protects what follows
	f    *os.File
	size int64
}

// OpenAudit opens the record at path, of files of at most max bytes.
func OpenAudit(path string, max int64, log *slog.Logger) (*Audit, error) {
	a := &Audit{path: path, max: max, log: log}
	return a, a.open()
}

func (a *Audit) open() error {
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", a.path)
	}
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open audit log: %w", err), f.Close())
	}
	a.f, a.size = f, st.Size()
	return nil
}

// Close ends the record.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f == nil {
		return nil
	}
	err := a.f.Close()
	a.f = nil
	return err
}

// auditLine is what the record says of a call.
type auditLine struct {
	Time   time.Time `json:"time"`
	Caller string    `json:"caller"`
	Role   string    `json:"role"`
	From   string    `json:"from"`
	Method string    `json:"method"`
	Job    string    `json:"job,omitempty"`
	Target string    `json:"target,omitempty"` // the command, or the runtime, network or volume
	Result string    `json:"result"`           // OK, or the code of the error
	Error  string    `json:"error,omitempty"`
	MS     int64     `json:"ms"`
}

// write appends a line. A record that cannot be written is an error in the
// daemon's log, and does not end the work.
func (a *Audit) write(l auditLine) {
	text, err := json.Marshal(l)
	if err != nil {
		a.log.Error("write audit log", "error", err)
		return
	}
	text = append(text, '\n')
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f == nil { // it could not be opened again
		if err := a.open(); err != nil {
			a.log.Error("write audit log", "error", err, "line", string(text))
			return
		}
	}
	if a.size > 0 && a.size+int64(len(text)) > a.max {
		if err := a.rotate(); err != nil {
			a.log.Error("set audit log aside", "error", err)
		}
	}
	if a.f == nil {
		a.log.Error("write audit log", "line", string(text))
		return
	}
	n, err := a.f.Write(text) // one write: lines of two daemons do not mix
	if a.size += int64(n); err != nil {
		a.log.Error("write audit log", "error", err, "line", string(text))
	}
}

// rotate sets the file aside as PATH.1, and those before it one further.
func (a *Audit) rotate() error {
	for i := auditKept; i > 0; i-- {
		from := fmt.Sprintf("%s.%d", a.path, i-1)
		if i == 1 {
			from = a.path
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", a.path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := a.f.Close()
	a.f = nil
	return errors.Join(err, a.open())
}

// changes reports whether a method may change something: it needs more than a
// reader.
func changes(method string) bool { return needs(method) > reader }

// subject is what a message is about.
type subject struct {
	job    string
	target string // never arguments or variables, which may be secret
}

func about(message any) (s subject) {
	if ref, _, ok := jobRef(message); ok {
		s.job = clip(ref)
	}
	if m, ok := message.(proto.Message); ok && m != nil {
		s.target = targetIn(m.ProtoReflect(), true)
	}
	return s
}

// record writes what became of a call.
func (a *Audit) record(c caller, method string, request, answer subject, start time.Time, err error) {
	l := auditLine{
		Time: start.UTC(), Caller: c.name(), Role: c.role().String(), From: c.from,
		Method: strings.TrimPrefix(method, "/joblet."), Job: cmp.Or(answer.job, request.job), Target: request.target,
		Result: status.Code(err).String(), MS: time.Since(start).Milliseconds(),
	}
	if err != nil {
		l.Job, l.Error = request.job, clip(status.Convert(err).Message())
	}
	a.write(l)
}

func targetIn(m protoreflect.Message, deeper bool) string {
	fields := m.Descriptor().Fields()
	for _, name := range []protoreflect.Name{"command", "runtime", "name"} {
		if f := fields.ByName(name); f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() {
			if s := m.Get(f).String(); s != "" {
				return clip(s)
			}
		}
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if !deeper || f.Message() == nil || f.IsList() || f.IsMap() || !m.Has(f) {
			continue
		}
		if s := targetIn(m.Get(f).Message(), false); s != "" {
			return s
		}
	}
	return ""
}

func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxAuditField)], "\ufffd")
}
