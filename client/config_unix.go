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
		return joblet.Errorf(joblet.InvalidArgument, "%s is not a regular file", f.Name())
	case ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid():
		return joblet.Errorf(joblet.PermissionDenied, "cannot use %s: it belongs to another user (uid %d), who could redirect your jobs: run chown", f.Name(), sys.Uid)
	case st.Mode().Perm()&0o022 != 0:
		return joblet.Errorf(joblet.PermissionDenied, "cannot use %s: other users may write it and redirect your jobs: run chmod go-w", f.Name())
	}
	return nil
}
