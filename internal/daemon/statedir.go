package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// stateNames are names that tell a state directory from any other.
var stateNames = []string{"joblet.db", "jobs", "runtimes", "pki", "secrets.key", "audit.log"}

// keepStatePrivate makes the state directory root's alone, or refuses it: what it
// holds, such as files of jobs and runtimes under construction, is for no other
// user of the host. Jobs get what they need of it as mounts. A directory with
// files of others keeps its mode, since that may be what others depend on.
func keepStatePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	fi, err := d.Stat()
	if err != nil {
		return err
	}
	if sys := fi.Sys().(*syscall.Stat_t); int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: run chown root %[1]s", dir, sys.Uid)
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == "lost+found" })
	own := len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return slices.Contains(stateNames, name) })
	if !own || fi.Mode()&fs.ModeSticky != 0 {
		return fmt.Errorf("%s is open to other users (mode %04o) and contains other files: choose another directory, or run chmod 0700 %[1]s", dir, fi.Mode().Perm())
	}
	if err := d.Chmod(0o700); err != nil {
		if errors.Is(err, unix.EROFS) {
			return fmt.Errorf("%w: the daemon must be able to write there", err)
		}
		return err
	}
	return nil
}
