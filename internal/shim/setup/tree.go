package setup

import (
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// resolve says how the path of a tree is looked up. That of a runtime's has no
// symbolic links (runtimes.Open), so one in it was put there since.
func resolve(t protocol.Tree) uint64 {
	if t.IDMap || t.Layer {
		return unix.RESOLVE_NO_SYMLINKS
	}
	return unix.RESOLVE_NO_MAGICLINKS
}

// attrsOf returns the attributes of a job's tree.
func attrsOf(t protocol.Tree) uint64 {
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV)
	if t.Writable {
		attrs &^= unix.MOUNT_ATTR_RDONLY
	}
	if t.Device {
		attrs &^= unix.MOUNT_ATTR_NODEV
	}
	return attrs
}

// openTree opens a detached copy of the mounts at a directory (open_tree(2))
// that has the given attributes throughout.
func openTree(t protocol.Tree, attrs uint64, userns int) (int, error) {
	source, err := unix.Openat2(unix.AT_FDCWD, string(t.Source), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve(t),
	})
	if err != nil {
		return -1, Step("open "+string(t.Source), err)
	}
	defer unix.Close(source)
	fd, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, Step("open "+string(t.Source), err)
	}
	attr := unix.MountAttr{Attr_set: attrs, Attr_clr: unix.MOUNT_ATTR_NODEV &^ attrs, Propagation: unix.MS_PRIVATE}
	if t.IDMap && userns >= 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns)
		if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err == nil {
			return fd, nil
		}
		// The file system knows no idmapped mounts (EINVAL): the job sees the
		// owners as the user nobody, and reads what all users may read. What it writes would be
		// nobody's too.
		if t.Writable {
			unix.Close(fd)
			return -1, Step("map the ids of "+string(t.Source), err)
		}
		attr.Attr_set &^= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = 0
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(fd)
		return -1, Step("restrict "+string(t.Source), err)
	}
	return fd, nil
}
