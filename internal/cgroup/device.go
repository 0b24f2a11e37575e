package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Device is a block device of the host.
type Device struct{ Major, Minor uint32 }

// String returns the device as cgroup files and sysfs name it.
func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// ErrNoDevice is the error for files that no block device of this host holds:
// those in memory, or on another host.
var ErrNoDevice = errors.New("no block device holds it")

// maxLayers bounds how many file systems may lie on each other.
const maxLayers = 16

// DeviceOf returns the block device that holds the file or directory, as the
// limits on input and output want it: a whole disk, not a partition; a logical
// volume, an array or a loop device itself, for it is there that the job's
// requests come in.
func DeviceOf(path string) (Device, error) {
	dev, err := deviceOf(path, maxLayers)
	if err != nil {
		return Device{}, fmt.Errorf("cannot find the device of %s: %w", path, err)
	}
	return wholeDisk("/sys/dev/block", dev)
}

func deviceOf(path string, layers int) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Device{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	dev := Device{unix.Major(st.Dev), unix.Minor(st.Dev)}
	if dev.Major != 0 {
		return dev, nil
	}
	// Such a number names no device: btrfs and others have one for each subvolume,
	// an overlay has files of several file systems.
	m, err := mountAt(path)
	if err != nil || layers == 0 {
		return Device{}, errors.Join(ErrNoDevice, err)
	}
	if m.FSType == "overlay" {
		for opt := range strings.SplitSeq(m.VFSOptions, ",") {
			name, value, _ := strings.Cut(opt, "=")
			if name == "upperdir" || name == "lowerdir" && !strings.Contains(m.VFSOptions, "upperdir=") {
				first, _, _ := strings.Cut(value, ":")
				return deviceOf(unescape(first), layers-1)
			}
		}
	}
	if err := unix.Stat(m.Source, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Device{}, fmt.Errorf("%w (it is %s)", ErrNoDevice, m.FSType)
	}
	return Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

// mountAt returns the mount that holds path: the one with the number that
// statx(2) gives.
func mountAt(path string) (*mountinfo.Info, error) {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &stx); err != nil {
		return nil, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	found, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		is := uint64(info.ID) == stx.Mnt_id
		return !is, is
	})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("mount %d of %s is not in the mount table", stx.Mnt_id, path)
	}
	return found[0], nil
}

// wholeDisk returns the disk of a partition, and any other device as it is: the
// kernel takes limits for whole disks only. sys is /sys/dev/block.
func wholeDisk(sys string, dev Device) (Device, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(sys, dev.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, fmt.Errorf("device %v: %w: the kernel does not know it", dev, ErrNoDevice)
	}
	if err != nil {
		return Device{}, err
	}
	if !exists(filepath.Join(dir, "partition")) {
		return dev, nil
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return Device{}, fmt.Errorf("cannot find the disk of partition %v: %w", dev, err)
	}
	if _, err := fmt.Sscanf(string(text), "%d:%d", &dev.Major, &dev.Minor); err != nil {
		return Device{}, fmt.Errorf("cannot find the disk of partition %v: %w", dev, err)
	}
	return dev, nil
}

// Devices returns the devices of all of the paths, each once. Paths that no
// device holds are passed over.
func Devices(paths ...string) ([]Device, error) {
	var all []Device
	for _, path := range paths {
		dev, err := DeviceOf(path)
		if errors.Is(err, ErrNoDevice) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, dev) {
			all = append(all, dev)
		}
	}
	return all, nil
}

// below reports whether requests to lower are those that came in at upper: what
// lies on a logical volume is counted at the volume and at its disk.
func below(lower, upper string) bool {
	return exists("/sys/dev/block/"+lower+"/holders") && holds(lower, upper, maxLayers)
}

func holds(lower, upper string, layers int) bool {
	holders, err := os.ReadDir("/sys/dev/block/" + lower + "/holders")
	if err != nil || layers == 0 {
		return false
	}
	for _, h := range holders {
		data, err := os.ReadFile("/sys/dev/block/" + lower + "/holders/" + h.Name() + "/dev")
		if dev := strings.TrimSpace(string(data)); err == nil && (dev == upper || holds(dev, upper, layers-1)) {
			return true
		}
	}
	return false
}

// unescape undoes what the kernel does to blanks and backslashes in the options of a
// mount.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
