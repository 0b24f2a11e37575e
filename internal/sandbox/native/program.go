package native

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed embed
var embedded embed.FS

// sealTime is how long the kernel may refuse to seal a file because it is handling
// one of its pages itself, to reclaim or migrate it: it looks for a moment and then
// says EBUSY (memfd_wait_for_pins in mm/memfd.c).
const sealTime = 10 * time.Second

// ShimName is the shim's program, and the title of its process.
const ShimName = "joblet-shim"

// builtin is set by SetBuiltinShim.
var builtin bool

// SetBuiltinShim says that this program is the shim when it is started as ShimName.
// Engines then start it where no shim is embedded. It is called before Open.
func SetBuiltinShim() { builtin = true }

// LoadShim puts the shim's program into a sealed memfd: there is no file
// to be overwritten through /proc/PID/exe (CVE-2019-5736), and no path to get
// wrong.
func LoadShim() (*os.File, error) {
	program, err := embedded.Open("embed/" + ShimName)
	if err != nil && builtin { // a plain go build or go install
		program, err = os.Open("/proc/self/exe")
	}
	if err != nil {
		return nil, errors.New("cannot run jobs: this joblet was built without its shim; build it with make build")
	}
	defer program.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(ShimName, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate(ShimName, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make a memfd for the shim: %w", err)
	}
	// Beyond the descriptors that a new shim's own take the place of.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("cannot move the shim's memfd: %w", err)
	}
	f := os.NewFile(uintptr(high), ShimName)
	if _, err := io.Copy(f, program); err != nil { // and not through one large piece of memory
		return nil, errors.Join(fmt.Errorf("cannot fill the shim's memfd: %w", err), f.Close())
	}
	// Root's alone: to the process that sets a job up this is /proc/self/exe, which the
	// kernel would execute as the interpreter of a script.
	if err := f.Chmod(0o500); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot restrict the shim's memfd: %w", err), f.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	for until := time.Now().Add(sealTime); ; time.Sleep(10 * time.Millisecond) {
		_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
		if err == nil {
			return f, nil
		}
		if err != unix.EBUSY || time.Now().After(until) {
			return nil, errors.Join(fmt.Errorf("cannot seal the shim's memfd: %w", err), f.Close())
		}
	}
}
