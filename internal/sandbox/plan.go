package sandbox

import (
	"time"

	"github.com/joblet/joblet"
)

// Plan says what one sandbox contains and what runs in it.
type Plan struct {
	Dir     string // the job's directory on the host, for its log and its exit record
	Attempt int    // which run of the job this is, from 1
	Network Network

	// The root file system: a private one of Limits.DiskBytes bytes, with /proc, /sys,
	// /dev and the directories that every sandbox has, and with what follows.
	Mounts []Mount
	Dirs   []Dir // at the top of the root, empty
	Links  []Link
	Files  []File
	// Covers lie, read-only, over files of the mounts: those that are there.
	Covers  []File
	Devices []Device // beside those of every sandbox

	Command string
	Args    []string
	Env     []string // NAME=VALUE
	Path    string   // where Command is looked for, as in $PATH
	WorkDir string   // made where it is missing
	Home    string   // of the command's user, made where it is missing; empty: none is made
	Init    bool     // a reaper is PID 1, and the command its child

	Stdin Stdin
	// Terminal is the size of a terminal that is standard input, output and error instead;
	// zero: there is none.
	Terminal joblet.WindowSize
	// MergeOutput makes standard error the same stream as standard output.
	MergeOutput bool
	FilesPath   string // an archive of the host that is unpacked into /work; empty: none

	Security joblet.Security // the profile by its name, and what differs from it
	Limits   joblet.Limits
	// IODevices are the block devices that Limits' rates of input and output are set on.
	IODevices []BlockDevice

	Timeout      time.Duration // after which the command is stopped; 0: never
	Grace        time.Duration // between the signal of a stop and the kill
	LogMaxBytes  int64         // of the log; 0: no bound
	LogShrinks   bool          // on a full disk the log gives up its older half; otherwise the job waits
	WorkMaxBytes int64         // of what is kept of /work at the end
}

// Network is what a sandbox has beside a network namespace of its own with the loopback
// interface.
type Network struct {
	Hostname string
}

// Mount is a directory or file of the host that a sandbox sees.
type Mount struct {
	Source string // of the host
	Target string // in the sandbox; missing directories above it are made
	File   bool   // Source is not a directory

	// Writable lets the sandbox change the source itself. Otherwise the mount is read-only.
	Writable bool
	// Layer lets the sandbox write to a layer of its own over a read-only directory.
	Layer bool
	// IDMapped gives files of the host's id n the sandbox's id n. Where the file system
	// cannot map ids, a read-only mount shows them as nobody's, and a writable one fails.
	// The source must not contain symbolic links in its path.
	IDMapped bool
	// Device makes device nodes in the source work.
	Device bool
}

// Dir is a directory in the root.
type Dir struct {
	Path string
	Mode uint32 // permissions and the sticky bit, as chmod(2) takes them
}

// Link is a symbolic link in the root.
type Link struct {
	Path, Target string
}

// File is a small text file in the root.
type File struct {
	Path, Text string
}

// Device is a device node of the host. A sandbox with any has a /dev of its own, which
// it can write to; others share one.
type Device struct {
	Source string // the node on the host
	Path   string // in the sandbox, below /dev
}

// BlockDevice is the number of a block device.
type BlockDevice struct{ Major, Minor uint32 }

// Stdin is where the command's standard input comes from. The zero value is /dev/null.
type Stdin struct {
	Path   string // a file of the host
	Stream bool   // a pipe that the daemon writes to
}
