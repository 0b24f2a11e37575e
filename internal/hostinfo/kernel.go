package hostinfo

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// KernelVersion returns the release of this kernel, and the two numbers that it begins
// with.
func KernelVersion() (release string, version [2]int, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", version, os.NewSyscallError("uname", err)
	}
	release = unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &version[0], &version[1]); err != nil {
		return "", version, fmt.Errorf("version %q: %w", release, err)
	}
	return release, version, nil
}

// KernelHas reports whether this kernel is of a version or a newer one.
func KernelHas(major, minor int) bool {
	_, have, err := KernelVersion()
	return err == nil && slices.Compare(have[:], []int{major, minor}) >= 0
}
