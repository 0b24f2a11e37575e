package server

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
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

const (
	auditKept      = 5    // older files beside the one that is written
	maxAuditField  = 200  // bytes of what a caller chose
	maxAuditDetail = 1000 // of all words of a detail
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
	torn bool // the last line has no end: the disk was full, or the daemon was killed
}

// OpenAudit opens the record at path, of files of at most max bytes.
func OpenAudit(path string, max int64, log *slog.Logger) (*Audit, error) {
	a := &Audit{path: path, max: max, log: log}
	err := a.open()
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) { // whoever makes room needs a daemon; each line tries again
		log.Error("write audit log", "error", err)
		return a, nil
	}
	return a, err
}

func (a *Audit) open() error {
	f, err := os.OpenFile(a.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
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
	last := []byte{'\n'}
	if err == nil && st.Size() > 0 {
		_, err = f.ReadAt(last, st.Size()-1)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open audit log: %w", err), f.Close())
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
	line := text
	if a.torn { // this one is to be whole all the same
		line = append([]byte{'\n'}, text...)
	}
	n, err := a.f.Write(line) // one write: lines of two daemons do not mix
	if n > 0 {
		a.torn = line[n-1] != '\n'
	}
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
	detail string // nor here
}

func about(message any) (s subject) {
	if ref, _, ok := jobRef(message); ok {
		s.job = clip(ref)
	}
	if m, ok := message.(proto.Message); ok && m != nil {
		s.target, s.detail = targetIn(m.ProtoReflect(), true), detailOf(m)
		if r, ok := m.(interface{ GetYamlContent() string }); ok { // a recipe
			if recipe, err := parseRecipe(r.GetYamlContent()); err == nil {
				s.target = clip(recipe.Name)
			}
		}
	}
	return s
}

// detailOf says what a request asks for beside its job, and an answer what was done.
func detailOf(m proto.Message) string {
	var d detail
	switch m := m.(type) {
	case *api.RerunJobRequest:
		d.add("rerun of %s", m.GetUuid())
	case *api.StopJobRequest:
		if m.GetSignal() != 0 {
			d.add("%s", signalName(m.GetSignal()))
		}
		if m.GraceMs != nil {
			d.add("grace=%v", time.Duration(m.GetGraceMs())*time.Millisecond)
		}
	case *api.SignalJobRequest:
		d.add("%s", signalName(m.GetSignal()))
	case *api.UpdateJobRequest:
		if n := len(m.GetLimits().GetRlimits()); n > len(joblet.RlimitNames()) { // it is refused
			d.add("%d resource limits", n)
			break
		}
		wire.LimitsFromProto(m.GetLimits()).Each(func(name, value string) { d.add("%s=%s", name, value) })
	case *api.PruneJobsRequest:
		if m.GetDryRun() {
			d.add("dry-run")
		}
		if m.GetEndedBefore() != "" {
			d.add("ended-before=%s", m.GetEndedBefore())
		}
		for _, state := range m.GetStates() {
			d.add("state=%s", state)
		}
		for _, label := range m.GetLabels() {
			d.add("label=%s", label)
		}
	case *api.PruneJobsResponse:
		d.add("%d jobs, %d bytes", m.GetDeletedCount(), m.GetFreedBytes())
	case *api.DeleteAllJobsResponse:
		d.add("%d jobs, %d skipped", m.GetDeletedCount(), m.GetSkippedCount())
	case *api.BuildRuntimeRequest:
		if m.GetDryRun() {
			d.add("dry-run")
		}
		if m.GetForceRebuild() {
			d.add("force")
		}
	}
	return d.String()
}

func signalName(n int32) string {
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

// record writes what became of a call.
func (a *Audit) record(c caller, method string, request, answer subject, start time.Time, err error) {
	l := auditLine{
		Time: start.UTC(), Caller: c.name(), Role: c.role().String(), From: c.from,
		Method: strings.TrimPrefix(method, "/joblet."), Job: cmp.Or(answer.job, request.job), Target: request.target,
		Detail: strings.Join(slices.DeleteFunc([]string{answer.detail, request.detail}, func(s string) bool { return s == "" }), "; "),
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
