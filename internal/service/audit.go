package service

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

const (
	auditKept      = 5    // older files beside the one that is written
	maxAuditField  = 200  // bytes of what a caller chose
	maxAuditDetail = 1000 // of all words of a detail
)

// Audit is the audit log: a line of JSON for each call that changes something or is
// refused. Lines are only appended; a full file is rotated.
type Audit struct {
	path string
	max  int64
	log  *slog.Logger

	mu   sync.Mutex // protects what follows
	f    *os.File
	size int64
	torn bool // the last line has no end: the disk was full, or the daemon was killed
}

// OpenAudit opens the record at path, of files of at most max bytes.
func OpenAudit(path string, max int64, log *slog.Logger) (*Audit, error) {
	a := &Audit{path: path, max: max, log: log}
	err := a.open()
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) { // freeing space may need the daemon; each line tries again
		log.Error("cannot write the audit log", "error", err)
		return a, nil
	}
	return a, err
}

func (a *Audit) open() error {
	f, err := os.OpenFile(a.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the audit log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", a.path)
	}
	if err == nil {
		err = f.Chmod(0o600)
	}
	last := []byte{'\n'}
	if err == nil && st.Size() > 0 {
		_, err = f.ReadAt(last, st.Size()-1)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot open the audit log: %w", err), f.Close())
	}
	a.f, a.size, a.torn = f, st.Size(), last[0] != '\n'
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
	Detail string    `json:"detail,omitempty"` // how it changes that
	Result string    `json:"result"`           // OK, or the code of the error
	Error  string    `json:"error,omitempty"`
	MS     int64     `json:"ms"`
}

// write appends a line. A record that cannot be written is an error in the
// daemon's log, and does not end the work.
func (a *Audit) write(l auditLine) {
	text, err := json.Marshal(l)
	if err != nil {
		a.log.Error("cannot write the audit log", "error", err)
		return
	}
	text = append(text, '\n')
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f == nil { // it could not be opened again
		if err := a.open(); err != nil {
			a.log.Error("cannot write the audit log", "error", err, "line", string(text))
			return
		}
	}
	if a.size > 0 && a.size+int64(len(text)) > a.max {
		if err := a.rotate(); err != nil {
			a.log.Error("cannot rotate the audit log", "error", err)
		}
	}
	if a.f == nil {
		a.log.Error("cannot write the audit log", "line", string(text))
		return
	}
	line := text
	if a.torn { // this one is to be whole all the same
		line = append([]byte{'\n'}, text...)
	}
	n, err := a.f.Write(line) // one write: lines of two daemons do not mix
	if n > 0 {
		a.torn = line[n-1] != '\n'
	}
	if a.size += int64(n); err != nil {
		a.log.Error("cannot write the audit log", "error", err, "line", string(text))
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

// Subject is what a call is about.
type Subject struct {
	Job    string
	Target string // the command, or the runtime, network or volume; never arguments or variables, which may be secret
	Detail string // what the request asks for beside the job; nor here
}

// record writes what became of a call, once: if it changes something, or was refused.
func (p *policy) record(c *call, err error) {
	if p.audit == nil || c.recorded || !c.Operation.changes() && joblet.KindOf(err) != joblet.PermissionDenied {
		return
	}
	c.recorded = true
	about := c.subject
	if !c.begun && c.Entry.Subject != nil {
		about = c.Entry.Subject()
	}
	if err == nil {
		about.Job = cmp.Or(c.made, about.Job)
		about.Detail = strings.Join(slices.DeleteFunc([]string{c.done, about.Detail}, func(s string) bool { return s == "" }), "; ")
	}
	name, text := result(err)
	p.audit.write(auditLine{
		Time: c.start.UTC(), Caller: c.Caller.Name, Role: c.Caller.Role.String(), From: c.Caller.From,
		Method: c.Name, Job: clip(about.Job), Target: clip(about.Target), Detail: about.Detail,
		Result: name, Error: clip(text), MS: time.Since(c.start).Milliseconds(),
	})
}

func stopDetail(opt joblet.StopOptions) string {
	var d detail
	if opt.Signal != 0 {
		d.add("%s", signalName(opt.Signal))
	}
	if opt.Grace >= 0 {
		d.add("grace=%v", opt.Grace)
	}
	return d.String()
}

func limitsDetail(l joblet.Limits) string {
	var d detail
	if n := len(l.Rlimits); n > len(joblet.RlimitNames()) { // it is refused
		d.add("%d resource limits", n)
		return d.String()
	}
	l.Each(func(name, value string) { d.add("%s=%s", name, value) })
	return d.String()
}

func pruneDetail(f joblet.Filter, dryRun bool) string {
	var d detail
	if dryRun {
		d.add("dry-run")
	}
	if !f.EndedBefore.IsZero() {
		d.add("ended-before=%s", f.EndedBefore.UTC().Format(time.RFC3339Nano))
	}
	for _, state := range f.States {
		d.add("state=%s", state.String())
	}
	for _, label := range f.Labels {
		d.add("label=%s", label.String())
	}
	return d.String()
}

func buildDetail(b Build) string {
	var d detail
	if b.DryRun {
		d.add("dry-run")
	}
	if b.Force {
		d.add("force")
	}
	return d.String()
}

func pruned(deleted int, freed int64) string { return fmt.Sprintf("%d jobs, %d bytes", deleted, freed) }

func deletedAll(deleted, skipped int) string {
	return fmt.Sprintf("%d jobs, %d skipped", deleted, skipped)
}

func signalName(n int) string {
	return cmp.Or(unix.SignalName(syscall.Signal(n)), fmt.Sprintf("signal %d", n))
}

// detail is words, of which none and all together are not too long.
type detail struct{ strings.Builder }

func (d *detail) add(format string, args ...any) {
	switch n := d.Len(); {
	case n > maxAuditDetail-maxAuditField:
		return
	case n > 0:
		d.WriteByte(' ')
	}
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = clip(s)
		}
	}
	d.WriteString(clip(fmt.Sprintf(format, args...)))
}

func clip(s string) string {
	return strings.ToValidUTF8(joblet.ShortenTo(s, maxAuditField), "\ufffd")
}
