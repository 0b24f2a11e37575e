package joblet

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds on what a Spec may hold. execve(2) takes at most 128 KiB in one
// string and, with the usual 8 MiB stack, 2 MiB in all, in which each string has an
// end and a pointer; both are checked here so that the user reads a sentence and not
// E2BIG.
const (
	MaxStringLen  = 128*1024 - 1         // bytes in one argument or one NAME=value
	MaxArgEnvSize = 2*1024*1024 - 4096*8 // bytes of all arguments and the environment, with StringCost for each
	StringCost    = 1 + 8
	MaxNameLen    = 63
	MaxPathLen    = 4095
	MaxTimeout    = 10 * 365 * 24 * time.Hour

	MaxLabels     = 64
	MaxLabelLen   = 255 // bytes of a label's value, and of an idempotency key
	MaxRetries    = 100
	MaxRetryDelay = 24 * time.Hour
	MaxDependsOn  = 100
	MaxPriority   = 1000 // and the least is -MaxPriority
	MinLogMax     = 64 << 10
	MaxLogMax     = 1 << 40
	MaxSchedule   = 255 // bytes
)

// DefaultRetryDelay is the pause before the first retry; it doubles with each.
const DefaultRetryDelay = time.Second

// DefaultWorkDir is where a job starts when it does not say.
const DefaultWorkDir = "/work"

// Spec is what a user wishes to run. Names in it are names; the daemon turns
// them into facts.
type Spec struct {
	Command string   `json:"command"`
	Args    []string `json:"args,omitempty"`
	Name    string   `json:"name,omitempty"`    // a label of the user's; need not be unique
	Runtime string   `json:"runtime,omitempty"` // as SplitRuntime has it; a job's record has the name. Empty: the host's own programs, read-only
	WorkDir string   `json:"workdir,omitempty"` // absolute, in the job; empty: DefaultWorkDir

	Env map[string]string `json:"env,omitempty"`
	// SecretEnv is part of the job's environment and of nothing else: it is
	// never stored or shown. Redacted keeps its names.
	SecretEnv map[string]string `json:"secret_env,omitempty"`

	Limits   Limits   `json:"limits,omitzero"`
	Security Security `json:"security,omitzero"`

	Timeout time.Duration `json:"timeout,omitempty"` // of each run; then SIGTERM, and SIGKILL DefaultGrace later; 0: none
	Init    bool          `json:"init,omitempty"`    // a small reaper as PID 1, the command as its child

	Labels map[string]string `json:"labels,omitempty"`

	// Schedule says when to run: a moment (RFC 3339, or from now, "1h30m"), or
	// five fields of crontab(5), perhaps behind "CRON_TZ=Europe/Berlin ", for a
	// job that repeats: each run of it is a job of its own then, with this one
	// as its Parent. Empty: now.
	Schedule string  `json:"schedule,omitempty"`
	Overlap  Overlap `json:"overlap,omitempty"` // of the runs of a job that repeats

	Retries    int           `json:"retries,omitempty"`     // further runs after one that failed
	RetryDelay time.Duration `json:"retry_delay,omitempty"` // before the first of them, doubled each time; 0: DefaultRetryDelay
	RetryOn    []int         `json:"retry_on,omitempty"`    // exit statuses to retry, as Exit.Status and StatusTimeout; none: all but 0

	// RetryOnLost retries a run that was LOST: its shim was killed, say. Without
	// RetryOn that is all that is retried then.
	RetryOnLost bool `json:"retry_on_lost,omitempty"`

	DependsOn []string `json:"depends_on,omitempty"` // jobs that must have COMPLETED first
	Priority  int      `json:"priority,omitempty"`   // in the queue; higher first

	// IdempotencyKey makes asking twice harmless: the second time gives the job
	// of the first, as long as there is a record of that.
	IdempotencyKey string `json:"idempotency_key,omitempty"`

	Stdin   Stdin    `json:"stdin,omitempty"`
	Uploads []string `json:"uploads,omitempty"` // the first path elements of the files uploaded to /work

	// Warnings say what the daemon made of limits that its host cannot give.
	Warnings []string `json:"warnings,omitempty"`

	// MergeOutput makes standard error the same pipe as standard output: all output is
	// Stdout's, exactly in the order in which it was written. A terminal does so anyway.
	MergeOutput bool  `json:"merge_output,omitempty"`
	LogMax      int64 `json:"log_max,omitempty"` // bytes of output kept, the newest; 0: DefaultLogMax

	// Terminal is the size, at first, of the pseudo-terminal that is the job's
	// standard input, output and error; zero: it has none.
	Terminal WindowSize `json:"terminal,omitzero"`
}

// DefaultLogMax is how much of a job's output is kept unless it says otherwise.
const DefaultLogMax = 1 << 30

// Overlap says what becomes of a repeated job's run that is due while the one
// before it has not ended.
type Overlap string

// What to do with a run that is due too early.
const (
	OverlapSkip  Overlap = "skip"  // leave it out (the default)
	OverlapQueue Overlap = "queue" // run it when the one before it has ended
)

// Stdin says where a job's standard input comes from.
type Stdin string

// Kinds of standard input.
const (
	StdinNone   Stdin = ""       // it is empty
	StdinStream Stdin = "stream" // a pipe that the client feeds while the job runs
	StdinFile   Stdin = "file"   // sent along as a whole, before the job is accepted
)

// Repeats reports whether the job has a repeating schedule.
func (s Spec) Repeats() bool { return len(strings.Fields(s.Schedule)) >= 5 }

// Mask stands for a secret's value in everything that is stored or shown.
const Mask = "***"

// Redacted returns a copy whose secrets' values are masked.
func (s Spec) Redacted() Spec {
	s.SecretEnv = maps.Clone(s.SecretEnv)
	for k := range s.SecretEnv {
		s.SecretEnv[k] = Mask
	}
	return s
}

// CommandLine returns the command with its arguments as a shell would take
// them, for people to read.
func (s Spec) CommandLine() string {
	var b strings.Builder
	b.WriteString(shellQuote(s.Command))
	for _, a := range s.Args {
		b.WriteByte(' ')
		b.WriteString(shellQuote(a))
	}
	return b.String()
}

func shellQuote(s string) string {
	if !utf8.ValidString(s) {
		return quoteBytes(s)
	}
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("%+,-./:=@_", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// quoteBytes quotes what is not UTF-8 as bash and zsh do.
func quoteBytes(s string) string {
	var b strings.Builder
	b.WriteString("$'")
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\'' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	b.WriteByte('\'')
	return b.String()
}

// Validate reports the first thing in s that can never work.
func (s Spec) Validate() error {
	if s.Command == "" {
		return Errorf(InvalidArgument, "no command given")
	}
	size := len(s.Command) + StringCost
	if err := validString(s.Command); err != nil {
		return Errorf(InvalidArgument, "argument 0: %w", err)
	}
	for i, a := range s.Args {
		if err := validString(a); err != nil {
			return Errorf(InvalidArgument, "argument %d: %w", i+1, err)
		}
		size += len(a) + StringCost
	}
	for _, env := range []map[string]string{s.Env, s.SecretEnv} {
		for name, value := range env {
			if err := ValidEnvName(name); err != nil {
				return err
			}
			if err := validString(name + "=" + value); err != nil {
				return Errorf(InvalidArgument, "environment variable %.100s: %w", name, err)
			}
			size += len(name) + 1 + len(value) + StringCost
		}
	}
	if size > MaxArgEnvSize {
		return Errorf(InvalidArgument, "arguments and environment take %d bytes (including %d per string): at most %d are possible; pass large data in a file", size, StringCost, MaxArgEnvSize)
	}
	if s.Name != "" {
		if err := ValidName("job name", s.Name); err != nil {
			return err
		}
	}
	if s.Runtime != "" {
		if _, _, err := SplitRuntime(s.Runtime); err != nil {
			return err
		}
	}
	if s.WorkDir != "" {
		if err := ValidPath("workdir", s.WorkDir); err != nil {
			return err
		}
	}
	if s.Timeout < 0 || s.Timeout > MaxTimeout {
		return Errorf(InvalidArgument, "timeout %v: must be between 0 (none) and %s", s.Timeout, ReadableDuration(MaxTimeout))
	}
	if err := ValidLabels(s.Labels); err != nil {
		return err
	}
	if err := s.Limits.Validate(); err != nil {
		return err
	}
	if err := s.Security.Validate(); err != nil {
		return err
	}
	return s.validateLife()
}

// validateLife is Validate for what says when and how often a job runs.
func (s Spec) validateLife() error {
	if len(s.Schedule) > MaxSchedule {
		return Errorf(InvalidArgument, "schedule %.20q… is %d bytes long: at most %d are possible", s.Schedule, len(s.Schedule), MaxSchedule)
	}
	switch s.Overlap {
	case "", OverlapSkip, OverlapQueue:
	default:
		return Errorf(InvalidArgument, "overlap %.20q: must be %s or %s", s.Overlap, OverlapSkip, OverlapQueue)
	}
	if s.Overlap != "" && !s.Repeats() {
		return Errorf(InvalidArgument, "overlap %s: requires a repeating job (a schedule of five cron fields)", s.Overlap)
	}
	if s.Retries < 0 || s.Retries > MaxRetries {
		return Errorf(InvalidArgument, "retries %d: must be between 0 and %d", s.Retries, MaxRetries)
	}
	if s.RetryDelay < 0 || s.RetryDelay > MaxRetryDelay {
		return Errorf(InvalidArgument, "retry delay %v: must be between 0 and %s", s.RetryDelay, ReadableDuration(MaxRetryDelay))
	}
	if len(s.RetryOn) > 255 {
		return Errorf(InvalidArgument, "retry on %d exit statuses: at most 255 are possible", len(s.RetryOn))
	}
	for _, status := range s.RetryOn {
		if status < 1 || status > 255 {
			return Errorf(InvalidArgument, "retry on exit status %d: must be between 1 and 255", status)
		}
	}
	if len(s.DependsOn) > MaxDependsOn {
		return Errorf(InvalidArgument, "depends on %d jobs: at most %d are possible", len(s.DependsOn), MaxDependsOn)
	}
	if s.Repeats() && len(s.DependsOn) > 0 {
		return Errorf(InvalidArgument, "a repeating job cannot depend on other jobs")
	}
	if s.Priority < -MaxPriority || s.Priority > MaxPriority {
		return Errorf(InvalidArgument, "priority %d: must be between %d and %d", s.Priority, -MaxPriority, MaxPriority)
	}
	if err := validText("idempotency key", s.IdempotencyKey); err != nil {
		return err
	}
	switch s.Stdin {
	case StdinNone, StdinFile:
	case StdinStream:
		if s.Retries > 0 || s.Schedule != "" || s.IdempotencyKey != "" {
			return Errorf(InvalidArgument, "cannot stream standard input to a job that runs later or repeatedly: pass it as a file")
		}
	default:
		return Errorf(InvalidArgument, "standard input %.20q: must be %s or %s", s.Stdin, StdinStream, StdinFile)
	}
	if s.Terminal != (WindowSize{}) {
		if err := s.Terminal.Validate(); err != nil {
			return err
		}
		if s.Stdin != StdinNone {
			return Errorf(InvalidArgument, "a job with a terminal cannot have another standard input")
		}
	}
	if s.LogMax != 0 && (s.LogMax < MinLogMax || s.LogMax > MaxLogMax) {
		return Errorf(InvalidArgument, "log limit %s: must be between %s and %s", FormatSize(s.LogMax), FormatSize(MinLogMax), FormatSize(MaxLogMax))
	}
	return nil
}

// ValidLabels reports whether labels may stand on a job: MaxLabels of them at
// most, their names as ValidName wants them, '/' allowed as well.
func ValidLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return Errorf(InvalidArgument, "%d labels: at most %d are possible", len(labels), MaxLabels)
	}
	for name, value := range labels {
		if err := ValidName("label", strings.ReplaceAll(name, "/", ".")); err != nil {
			return err
		}
		if err := validText("label "+name, value); err != nil {
			return err
		}
	}
	return nil
}

// validText reports whether s is a short text without control characters.
func validText(what, s string) error {
	if len(s) > MaxLabelLen {
		return Errorf(InvalidArgument, "%s: %d bytes long: at most %d are possible", what, len(s), MaxLabelLen)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return Errorf(InvalidArgument, "%s: %.50q contains control characters or is not UTF-8", what, s)
	}
	return nil
}

func validString(s string) error {
	if i := strings.IndexByte(s, 0); i >= 0 {
		return Errorf(InvalidArgument, "contains a NUL byte at offset %d", i)
	}
	if len(s) > MaxStringLen {
		return Errorf(InvalidArgument, "%d bytes long: at most %d are possible; pass large data in a file", len(s), MaxStringLen)
	}
	return nil
}

// envPrefix begins the names of the variables that Joblet sets.
const envPrefix = "JOBLET_"

// ValidEnvName reports whether name may name an environment variable: all that
// execve(2) takes, but for names that begin with JOBLET_.
func ValidEnvName(name string) error {
	switch {
	case name == "":
		return Errorf(InvalidArgument, "environment variable without a name")
	case strings.ContainsAny(name, "=\x00"):
		return Errorf(InvalidArgument, "environment variable name %.100q: must not contain = or a NUL byte", name)
	case strings.HasPrefix(name, envPrefix):
		return Errorf(InvalidArgument, "environment variable name %.100q: names that begin with %s are reserved; choose another", name, envPrefix)
	}
	return nil
}

// ValidName reports whether name may name a job, a runtime or another object
// that becomes a file name: letters, digits, '.', '_' and '-', at most
// MaxNameLen, starting with a letter or digit. what names it in the error.
func ValidName(what, name string) error {
	if name == "" {
		return Errorf(InvalidArgument, "%s is empty", what)
	}
	if len(name) > MaxNameLen {
		return Errorf(InvalidArgument, "%s %.20q… is %d bytes long: at most %d are possible", what, name, len(name), MaxNameLen)
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return Errorf(InvalidArgument, "%s %q: only letters, digits, '.', '_' and '-' are allowed, and a letter or digit first", what, name)
		}
	}
	return nil
}

// SplitRuntime reads what names an installed runtime: NAME or NAME@VERSION, of which it
// returns the two parts, or LANGUAGE:VERSION, which is name as a whole.
func SplitRuntime(ref string) (name, version string, err error) {
	name, version, versioned := strings.Cut(ref, "@")
	language, of, isLanguage := strings.Cut(name, ":")
	if err := ValidName("runtime name", language); err != nil {
		return "", "", err
	}
	switch {
	case isLanguage && versioned:
		err = Errorf(InvalidArgument, "runtime %.130q: must be NAME, NAME@VERSION or LANGUAGE:VERSION", ref)
	case isLanguage:
		err = validVersion(of)
	case versioned:
		err = validVersion(version)
	}
	return name, version, err
}

// validVersion reports whether v can be a runtime's version: as a name, '+' and '~'
// allowed as well.
func validVersion(v string) error {
	return ValidName("runtime version", strings.NewReplacer("+", "-", "~", "-").Replace(v))
}

// ValidPath reports whether p is an absolute, clean path of usable length:
// without "..", so that it stays inside whatever root it is taken in.
func ValidPath(what, p string) error {
	switch {
	case len(p) > MaxPathLen:
		return Errorf(InvalidArgument, "%s is %d bytes long: at most %d are possible", what, len(p), MaxPathLen)
	case strings.IndexByte(p, 0) >= 0:
		return Errorf(InvalidArgument, "%s %q contains a NUL byte", what, p)
	case !path.IsAbs(p):
		return Errorf(InvalidArgument, "%s %q: must be an absolute path in the job, such as %s", what, p, DefaultWorkDir)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return Errorf(InvalidArgument, "%s %q: must not contain \"..\"", what, p)
	}
	return nil
}
