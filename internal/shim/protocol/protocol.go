// Package protocol is what a daemon and the shims of its jobs say to each other, and
// the files that a shim leaves in a job's directory. A shim may be of an earlier
// release than the daemon, which adopts its job: fields keep their names and
// meanings, and what an earlier shim does not know is refused by the daemon.
//
// The control socket is a byte stream of JSON documents, each behind its
// length (4 bytes, big endian). Descriptor 3 is the connection to the daemon
// that started the shim; descriptor 4 listens on a socket that a later daemon
// finds. End of file on a connection
// means to the daemon that the shim is gone, and to a shim that has no
// job yet, that it is not needed.
package protocol

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
)

// Version is the version of the messages. A shim that runs a job may be of an earlier
// one than the daemon that adopts the job. It ignores fields that it does not know, so
// the daemon refuses to ask it for what it cannot do.
//
//	1: the shim does not send its version
//	2: Request.ShmBytes, Request.DefaultAction, Request.Ready, Tree.Writable, Tree.Device,
//	   Run.OwnDev; Event.Ended without the exit record, which is in its file
const Version = 2

// Descriptors that a shim inherits.
const (
	ControlFD = 3 // connection to the daemon
	ListenFD  = 4 // listening socket for later daemons
)

// Descriptors that the shim of a further process inherits, beside ControlFD.
const (
	ExecTerminalFD = 4 // the master of its terminal is sent there
	ExecStdinFD    = 5
	ExecStdoutFD   = 6
	ExecStderrFD   = 7
)

// ExitName returns the name of the file in a job's directory that says how an
// attempt (from 1) ended: a Record. As long as there is no such file, one with
// ".tmp" behind its name says that the attempt was begun.
func ExitName(attempt int) string {
	if attempt <= 1 {
		return "exit.json"
	}
	return "exit-" + strconv.Itoa(attempt) + ".json"
}

// Seal ends a JSON object with a checksum of what stands before it, so that
// damage shows.
func Seal(object []byte) []byte {
	sum := checksum(object[:len(object)-1])
	return append(append(append(object[:len(object)-1], sumBegin...), sum[:]...), sumEnd...)
}

const sumBegin, sumEnd = `,"sum":"`, `"}`

// Sealed reports whether a JSON object is as Seal left it. One without a
// checksum, from an earlier version, is.
func Sealed(object []byte) bool {
	const length = len(sumBegin) + 8 + len(sumEnd)
	at := len(object) - length
	if at < 0 || string(object[at:at+len(sumBegin)]) != sumBegin {
		return true
	}
	sum := checksum(object[:at])
	return string(object[at+len(sumBegin):]) == string(sum[:])+sumEnd
}

// checksum is FNV-1a in hexadecimal digits.
func checksum(b []byte) (text [8]byte) {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	for i := range text {
		text[i] = "0123456789abcdef"[h>>(28-4*i)&15]
	}
	return text
}

// WorkName is the file in a job's directory with what the job left in /work: a
// tar archive. There is none when it left nothing.
const WorkName = "work.tar"

// maxMessage bounds a document on the control socket. The largest is a Run
// with all arguments and variables that execve(2) can take, as JSON.
const maxMessage = 16 << 20

// Modes of the pipes that are standard streams: every user of the job may open
// /dev/stdin, /dev/stdout and /dev/stderr. Only the job's processes can reach them.
const (
	InputMode  = 0o644
	OutputMode = 0o622
)

// Sandbox is what a shim needs to build a sandbox before its job is known. It is the
// first message.
type Sandbox struct {
	Version int    `json:"version"` // the daemon's, which must be the shim's own
	IDBase  uint32 `json:"id_base"` // first of the subordinate ids
	IDCount uint32 `json:"id_count"`

	// Cgroup is where the job's cgroups are: the one in the v2 hierarchy is entered
	// at clone; those in v1 hierarchies by the first process, before anything else.
	Cgroup cgroup.Dirs `json:"cgroup"`

	NewRoot   string `json:"new_root"` // an empty directory to build the root on; unchanged on the host
	DevDir    string `json:"dev_dir"`  // a directory with the device nodes of every job
	DiskBytes int64  `json:"disk_bytes"`
	ShmBytes  int64  `json:"shm_bytes"`

	// ProcReadOnly are the names in /proc that the job cannot write to, beside those
	// that it does not see.
	ProcReadOnly []string `json:"proc_read_only"`
}

// Run is one job for a Sandbox.
type Run struct {
	Dir      string `json:"dir"`      // the job's directory on the host: log and exit record
	Attempt  int    `json:"attempt"`  // which run of the job this is, from 1
	Hostname string `json:"hostname"` // the job's

	Trees []Tree `json:"trees"`
	Dirs  []Dir  `json:"dirs,omitempty"` // at the top of the root, empty
	Links []Link `json:"links,omitempty"`
	Files []File `json:"files,omitempty"`
	// Covers lie, read-only, over files of the trees: those that are there.
	Covers []File `json:"covers,omitempty"`
	Home   string `json:"home,omitempty"` // of the command's user, made where it is missing
	// OwnDev gives the job a writable /dev of its own in place of the one that the sandbox
	// has, with the same nodes: there Trees may attach further ones.
	OwnDev bool `json:"own_dev,omitempty"`

	Command string   `json:"command"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Path    string   `json:"path"` // where Command is looked for, as in $PATH
	WorkDir string   `json:"workdir"`
	Init    bool     `json:"init,omitempty"`
	// Raw has those of them that are not UTF-8, on the way to the shim.
	Raw *RawRun `json:"raw,omitempty"`

	// StdinPath is a file of the host that is the job's standard input.
	// StdinStream makes a pipe of it instead, fed through a connection that
	// begins with Request.StdinBegin. Neither: /dev/null.
	StdinPath   string `json:"stdin_path,omitempty"`
	StdinStream bool   `json:"stdin_stream,omitempty"`
	// Terminal is the size of a pseudo-terminal that is standard input, output
	// and error instead.
	Terminal *WindowSize `json:"terminal,omitempty"`
	// MergeOutput makes standard error the same pipe as standard output.
	MergeOutput bool `json:"merge_output,omitempty"`
	// FilesPath is an archive of the host to be unpacked into /work.
	FilesPath string `json:"files_path,omitempty"`

	Filter      []byte `json:"filter,omitempty"` // seccomp program: struct sock_filter, in the host's byte order
	FilterFlags uint32 `json:"filter_flags,omitempty"`
	// LogDenied has the calls that Filter refuses counted in the exit record. Not for
	// further processes.
	LogDenied    bool     `json:"log_denied,omitempty"`
	Capabilities uint64   `json:"capabilities"` // kept in the bounding, permitted and effective sets
	Rlimits      []Rlimit `json:"rlimits,omitempty"`
	UID          uint32   `json:"uid,omitempty"` // of the command, in the job
	GID          uint32   `json:"gid,omitempty"`
	Nested       bool     `json:"nested,omitempty"`   // nothing in /proc is hidden, so that a new one may be mounted
	Landlock     bool     `json:"landlock,omitempty"` // where the kernel has it

	DiskBytes int64 `json:"disk_bytes,omitempty"` // size of the root; 0: as in the Sandbox
	ShmBytes  int64 `json:"shm_bytes,omitempty"`  // of /dev/shm; 0: as in the Sandbox

	TimeoutNanos int64 `json:"timeout_nanos,omitempty"`
	GraceNanos   int64 `json:"grace_nanos"` // between the signal and the kill when the time is up
	LogMaxBytes  int64 `json:"log_max_bytes,omitempty"`
	// LogShrinks makes room on a full disk by giving up the older half of the
	// log; otherwise the job waits until there is some.
	LogShrinks bool `json:"log_shrinks,omitempty"`
	// WorkMaxBytes bounds what is kept of /work when the job ends.
	WorkMaxBytes int64 `json:"work_max_bytes,omitempty"`
}

// RawRun has what of a Run JSON cannot carry as text.
type RawRun struct {
	Command []byte   `json:"command,omitempty"`
	Args    [][]byte `json:"args,omitempty"`
	Env     [][]byte `json:"env,omitempty"`
	Path    []byte   `json:"path,omitempty"`
	WorkDir []byte   `json:"workdir,omitempty"`
}

// Packed returns r as it is sent: all bytes in it survive.
func (r Run) Packed() *Run {
	raw := RawRun{
		Command: joblet.RawText(r.Command), Args: joblet.RawTexts(r.Args), Env: joblet.RawTexts(r.Env),
		Path: joblet.RawText(r.Path), WorkDir: joblet.RawText(r.WorkDir),
	}
	if raw.Command == nil && raw.Args == nil && raw.Env == nil && raw.Path == nil && raw.WorkDir == nil {
		return &r
	}
	r.Raw = &raw
	if raw.Args != nil {
		r.Args = nil
	}
	if raw.Env != nil {
		r.Env = nil
	}
	return &r
}

// Unpack undoes Packed.
func (r *Run) Unpack() {
	raw := r.Raw
	if raw == nil {
		return
	}
	r.Command, r.Path, r.WorkDir = joblet.FromRaw(r.Command, raw.Command), joblet.FromRaw(r.Path, raw.Path), joblet.FromRaw(r.WorkDir, raw.WorkDir)
	r.Args, r.Env = joblet.FromRawTexts(r.Args, raw.Args), joblet.FromRawTexts(r.Env, raw.Env)
	r.Raw = nil
}

// Tree is a directory or file of the host that the job sees, read-only if not Writable.
type Tree struct {
	Source Name `json:"source"`
	Target Name `json:"target"` // in the job; missing parents are made
	IDMap  bool `json:"idmap,omitempty"`
	File   bool `json:"file,omitempty"`
	// Writable lets the job change the tree itself. Where IDMap cannot be, the start fails.
	Writable bool `json:"writable,omitempty"`
	// Device makes device nodes in the tree, or the node that it is, work.
	Device bool `json:"device,omitempty"`
	// Layer puts a directory of the job's own, on its root file system, over the tree:
	// the job can write there, and the tree stays as it is.
	Layer bool `json:"layer,omitempty"`
}

// MaxTrees is how many trees a job can have.
const MaxTrees = 43

// Dir is a directory in the job's root.
type Dir struct {
	Path Name   `json:"path"`
	Mode uint32 `json:"mode"`
}

// Link is a symbolic link in the job's root.
type Link struct {
	Path   Name `json:"path"`
	Target Name `json:"target"`
}

// Name is the name of a file: any bytes, which JSON has in base64.
type Name string

// MarshalJSON implements [json.Marshaler].
func (n Name) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(n)) }

// UnmarshalJSON implements [json.Unmarshaler].
func (n *Name) UnmarshalJSON(text []byte) error {
	var b []byte
	err := json.Unmarshal(text, &b)
	*n = Name(b)
	return err
}

// File is a small file in the job's root.
type File struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

// Rlimit is one resource limit (getrlimit(2)).
type Rlimit struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// Request is what a daemon asks of a shim.
type Request struct {
	Sandbox *Sandbox `json:"box,omitempty"`
	Run     *Run     `json:"run,omitempty"`
	Signal  int      `json:"signal,omitempty"` // send to PID 1
	Stop    *Stop    `json:"stop,omitempty"`

	// Ready asks a shim that has no job yet to say when its sandbox is built, with Event.Ready.
	Ready bool `json:"ready,omitempty"`

	// DefaultAction has a Signal end the job that PID 1 is spared and that ends other
	// processes.
	DefaultAction bool `json:"default_action,omitempty"`

	DiskBytes int64 `json:"disk_bytes,omitempty"` // change the size of the root
	ShmBytes  int64 `json:"shm_bytes,omitempty"`  // change the size of /dev/shm

	// StdinBegin turns the connection into the job's standard input: what
	// follows are its bytes, from Started.StdinBytes on. That they end does not
	// end the input, for the daemon may have been killed: StdinEnd, on a
	// control connection, says after how many bytes it ends.
	StdinBegin bool   `json:"stdin_begin,omitempty"`
	StdinEnd   *int64 `json:"stdin_end,omitempty"`

	// Terminal asks for the master of the job's terminal, which comes with one byte
	// (SCM_RIGHTS); then the connection ends. What the daemon types it writes there.
	Terminal bool `json:"terminal,omitempty"`
	// Work asks in the same way for the job's /work, as it was before the command ran.
	Work bool `json:"work,omitempty"`
	// Interrupt says that a key was typed that sends this signal to the terminal's
	// foreground processes.
	Interrupt int     `json:"interrupt,omitempty"`
	Resize    *Resize `json:"resize,omitempty"` // of the terminal

	Exec *Exec `json:"exec,omitempty"` // the only one that a shim of a further process gets
}

// Resize changes a terminal's size.
type Resize struct {
	Size   WindowSize `json:"size"`             // zero: leave it
	Redraw bool       `json:"redraw,omitempty"` // have the screen drawn again
}

// Stop ends the job: signal, grace, kill.
type Stop struct {
	Signal     int   `json:"signal"`
	GraceNanos int64 `json:"grace_nanos"`
}

// WindowSize is the size of a terminal in characters.
type WindowSize struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// Exec is a further process for a running job.
type Exec struct {
	Version int `json:"version"` // as in Sandbox

	PID     int    `json:"pid"`     // PID 1 of the job as the host numbers it
	IDBase  uint32 `json:"id_base"` // the job's, which show that PID is still it
	IDCount uint32 `json:"id_count"`

	Cgroup cgroup.Dirs `json:"cgroup"` // the job's, as in Sandbox

	// Run has the command and its limits; StdinStream says that ExecStdinFD is
	// its input.
	Run *Run `json:"run"`
}

// Event is what a shim tells every daemon that is connected.
type Event struct {
	Ready   *Ready   `json:"ready,omitempty"`   // to the daemon that asked
	Started *Started `json:"started,omitempty"` // also the greeting to a daemon that connects later
	Failed  *Failure `json:"failed,omitempty"`
	// Ended says that the process has ended. How a job ended is in its exit record, which
	// is on disk by then: Ended says it of a further process, which has none.
	Ended *Exit `json:"ended,omitempty"`
}

// Exit is how a further process ended.
type Exit struct {
	Code   int `json:"code,omitempty"`   // 0 when a signal ended it
	Signal int `json:"signal,omitempty"` // the signal that ended it, or 0
}

// Ready says that a sandbox is built and waits for its job. Behind it comes one byte with
// descriptors (SCM_RIGHTS), in the order of ReadyDescriptors.
type Ready struct {
	PID int `json:"pid"` // PID 1 as the host numbers it
}

// ReadyDescriptors are what comes with Ready: a pidfd of PID 1, and its namespaces by
// their names in proc_pid_ns(5).
var ReadyDescriptors = []string{"pidfd", "user", "mnt", "net", "ipc", "uts"}

// Started says that the command runs.
type Started struct {
	PID       int    `json:"pid"` // PID 1 as the host numbers it
	IDBase    uint32 `json:"id_base"`
	UnixNanos int64  `json:"unix_nanos"`
	// StdinBytes is how much of a streamed standard input was taken.
	StdinBytes int64 `json:"stdin_bytes,omitempty"`
	// Window is the size of the job's terminal, if it has one.
	Window *WindowSize `json:"window,omitempty"`
	// Version is the shim's; 0 stands for 1.
	Version int `json:"version,omitempty"`
	// Dir is the job's directory: a daemon whose records were lost finds the job by it.
	Dir string `json:"dir,omitempty"`
}

// StepWorkDir is the Failure.Step of a working directory that can't be entered.
const StepWorkDir = "enter the working directory"

// StepFiles is the Failure.Step of files that came along and can't be put into
// /work.
const StepFiles = "unpack the files into /work"

// Steps of a Failure that the job's own arguments and limits may cause.
const (
	StepArguments = "pass the arguments and the environment"
	StepReaper    = "start the reaper"
	StepKilled    = "set the job up: its first process was killed"
)

// StepJoin is the Failure.Step of a job that ends while a process is to join it.
const StepJoin = "join the job"

// Failure says that the command could not be started, and at which step.
type Failure struct {
	Step   string        `json:"step"`
	Errno  syscall.Errno `json:"errno"`
	Text   string        `json:"text"`
	IsExec bool          `json:"is_exec,omitempty"` // it was execve itself
	// Why says, behind "cannot execute COMMAND: ", what is wrong with the command's file,
	// if that tells.
	Why string `json:"why,omitempty"`
	// OutOfMemory: the job's limit does not hold even its start.
	OutOfMemory bool `json:"out_of_memory,omitempty"`
}

// Record is how a job ended: the content of ExitName.
type Record struct {
	Code         int    `json:"code"`             // exit code of PID 1; 0 when a signal ended it
	Signal       int    `json:"signal,omitempty"` // the signal that ended PID 1, or 0
	Cause        Cause  `json:"cause,omitempty"`
	StartedNanos int64  `json:"started_nanos"`
	EndedNanos   int64  `json:"ended_nanos"`
	LogBytes     int64  `json:"log_bytes"`
	LogError     string `json:"log_error,omitempty"` // output was lost, and why

	Usage       joblet.Usage `json:"usage,omitzero"`
	OutOfMemory bool         `json:"out_of_memory,omitempty"` // its memory was used up, and it was killed

	WorkBytes  int64  `json:"work_bytes,omitempty"`  // of the files in WorkName
	WorkBeyond int    `json:"work_beyond,omitempty"` // files that are not there: too many, or too large
	WorkError  string `json:"work_error,omitempty"`  // what was in /work is lost, and why

	// Denied has the calls that were refused, the most frequent first, if Run.LogDenied.
	Denied []Denied `json:"denied,omitempty"`

	// Failure says that the command was never run, and why.
	Failure *Failure `json:"failure,omitempty"`
}

// Denied is a kind of call that was refused, and how often.
type Denied struct {
	DeniedKey
	Count uint64 `json:"count"`
}

// DeniedKey is what makes a kind. Args are those on which the verdict depends
// (RunFilter), 1 for a pointer, 0 the others; when Looked is 0 nevertheless, calls with different
// ones are counted together, and Args are the first one's.
type DeniedKey struct {
	Number uint32    `json:"nr"` // of the call, or OtherCalls
	Errno  uint32    `json:"errno"`
	Looked uint8     `json:"looked,omitempty"` // bit i: argument i
	Args   [6]uint32 `json:"args,omitzero"`
}

// Cause is why a job ended when that was not its own doing.
type Cause string

// Causes.
const (
	CauseStop    Cause = "stop"
	CauseTimeout Cause = "timeout"
)

// WriteMessage sends v as one document.
func WriteMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	msg := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(msg, uint32(len(body)))
	_, err = w.Write(append(msg, body...))
	return err
}

// ReadMessage receives one document into v. It returns io.EOF when the other
// side closed the connection between two documents.
func ReadMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return errors.New("control message too large")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return errors.Join(io.ErrUnexpectedEOF, err)
	}
	return json.Unmarshal(body, v)
}

// OneDescriptor is Descriptors for one.
func OneDescriptor(oob []byte) (int, error) {
	fds, err := Descriptors(oob, 1)
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// Descriptors returns the n descriptors that came with a message (SCM_RIGHTS, unix(7)),
// of which oob is what recvmsg(2) calls control; EBADMSG if that is anything else.
func Descriptors(oob []byte, n int) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, unix.EBADMSG
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, unix.EBADMSG
	}
	if len(fds) != n {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, unix.EBADMSG
	}
	return fds, nil
}
