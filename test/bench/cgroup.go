package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// cgroupMount is a place where a cgroup hierarchy is mounted.
type cgroupMount struct {
	path string
	v2   bool
}

func hostCgroupMounts() ([]cgroupMount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return cgroupMounts(f)
}

// cgroupMounts reads a mountinfo file, proc_pid_mountinfo(5).
func cgroupMounts(table io.Reader) (mounts []cgroupMount, err error) {
	all, err := mountinfo.GetMountsFromReader(table, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	for _, info := range all {
		mounts = append(mounts, cgroupMount{path: info.Mountpoint, v2: info.FSType == "cgroup2"})
	}
	return mounts, nil
}

// hybridCgroup2 returns where cgroup v2 is mounted if v1 is in use too.
func hybridCgroup2(mounts []cgroupMount) []string {
	if !slices.ContainsFunc(mounts, func(m cgroupMount) bool { return !m.v2 }) {
		return nil
	}
	var paths []string
	for _, m := range mounts {
		if m.v2 {
			paths = append(paths, m.path)
		}
	}
	return paths
}

// removeCgroups removes the cgroups whose name begins with prefix, below the
// top of any hierarchy or below the bench's own cgroup, where runtimes make
// them.
func removeCgroups(prefix string) error {
	mounts, err := hostCgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		err := filepath.WalkDir(m.path, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // somebody else's cgroup that has just gone
				}
				return err
			}
			if !d.IsDir() || !strings.HasPrefix(d.Name(), prefix) {
				return nil
			}
			if err := removeCgroup(path); err != nil {
				return err
			}
			return fs.SkipDir
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}
