//go:build unix

package client

import (
	"os"
	"syscall"

	"github.com/joblet/joblet"
)

// trustedFile reports whether only we, or root, can have written f.
func trustedFile(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return joblet.Errorf(joblet.InvalidArgument, "%s: it is not a file", f.Name())
	case ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid():
		return joblet.Errorf(joblet.PermissionDenied, "%s belongs to another user (uid %d), who could send your jobs elsewhere: rnx does not read it", f.Name(), sys.Uid)
	case st.Mode().Perm()&0o022 != 0:
		return joblet.Errorf(joblet.PermissionDenied, "%s: others may write it, and send your jobs elsewhere: chmod go-w", f.Name())
	}
	return nil
}
