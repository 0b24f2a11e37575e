package setup

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// sysMount is a directory of the host that a sandbox has, read-only, below /sys.
type sysMount struct {
	target string // below /sys
	tree   int    // a descriptor of the detached mount
}

// sysTrees are the parts of the host's /sys that a sandbox has, where the host has them:
// processors, memory and NUMA nodes, which programs set themselves up for, and the sizes
// of huge pages. This is a list of what is shown and not of what is hidden, because new
// kernels add to /sys, and most of it tells the host from others: serial numbers of
// mainboards and disks, addresses of network devices, firmware tables. The few files
// below them that do so are for the host's root only (topology/ppin).
var sysTrees = []string{
	"devices/system/cpu", "devices/system/memory", "devices/system/node", "kernel/mm/hugepages", "kernel/mm/transparent_hugepage",
}

// sysEmpty are directories in which lsblk and lspci look for devices; without them they
// fail.
var sysEmpty = []string{"block", "bus/pci/devices", "class/block", "dev/block"}

// sysNet are the places of network devices, the first with links into the second. A
// sysfs shows those of the network namespace in which it was mounted, so these come from
// one of the job's own.
var sysNet = []string{"class/net", "devices/virtual/net"}

const sysAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// openSys opens what the sandbox has in /sys: the trees above, and the job's own cgroups, in
// which programs look for their limits, and nothing beside or above these. Their files
// belong to the host's root; some of v1's can be written to by everybody
// (cgroup.event_control), but for the mount.
func openSys(views []cgroup.View) ([]sysMount, error) {
	mounts := make([]sysMount, 0, len(views)+len(sysTrees))
	for _, v := range views {
		fd, err := openTree(protocol.Tree{Source: protocol.Name(v.Dir)}, sysAttrs, -1)
		if err != nil {
			closeSys(mounts)
			return nil, err
		}
		mounts = append(mounts, sysMount{path.Join("fs/cgroup", v.Name), fd})
	}
	for _, target := range sysTrees {
		if fd, err := openTree(protocol.Tree{Source: protocol.Name("/sys/" + target)}, sysAttrs, -1); err == nil { // otherwise the job has less to read
			mounts = append(mounts, sysMount{target, fd})
		}
	}
	return mounts, nil
}

func closeSys(mounts []sysMount) {
	for _, m := range mounts {
		unix.Close(m.tree)
	}
}

// openNetDevices mounts a sysfs where the root comes to lie over it and takes from it
// what the job sees. Where the kernel refuses it, as the host's own is not whole
// (mount_too_revealing in fs/namespace.c), there are no devices to be seen.
func openNetDevices(p *program, sandbox *protocol.Sandbox, slot int) {
	p.call("mount sysfs", unix.SYS_MOUNT, p.str("sysfs"), p.str(sandbox.NewRoot), p.str("sysfs"),
		unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0).may(allowAll)
	for i, dir := range sysNet {
		p.shared.slots[slot+i] = ^uintptr(0) // no descriptor, should open_tree fail
		p.call("open /sys/"+dir, unix.SYS_OPEN_TREE, atFDCWD, p.str(path.Join(sandbox.NewRoot, dir)),
			unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC).into(uint8(slot + i)).may(allowAll)
	}
}

// mountSys makes /sys: a tmpfs with the places of the mounts, which wait in the slots
// from slotTree on, and of the network devices behind them; then no more is written
// there.
func mountSys(p *program, sandbox *protocol.Sandbox, mounts []sysMount) {
	p.mount("sys", "sys", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=4k,nr_inodes=128")
	made := map[string]bool{"sys": true}
	var mkdirs func(dir string)
	mkdirs = func(dir string) {
		if !made[dir] {
			made[dir] = true
			mkdirs(path.Dir(dir))
			p.mkdir(dir, 0o755)
		}
	}
	for i, m := range mounts {
		target, tree := path.Join("sys", m.target), uintptr(slotTree+i)
		mkdirs(target)
		p.call("attach /"+target, unix.SYS_MOVE_MOUNT, tree, p.str(""), atFDCWD, p.str(target), unix.MOVE_MOUNT_F_EMPTY_PATH).slot(0)
		p.call("close the tree of /"+target, unix.SYS_CLOSE, tree).slot(0)
	}
	for i, dir := range sysNet {
		target, tree := path.Join("sys", dir), uintptr(slotTree+len(mounts)+i)
		mkdirs(target)
		p.call("attach /"+target, unix.SYS_MOVE_MOUNT, tree, p.str(""), atFDCWD, p.str(target), unix.MOVE_MOUNT_F_EMPTY_PATH).slot(0).may(allowAll)
		p.call("close the tree of /"+target, unix.SYS_CLOSE, tree).slot(0).may(allowAll)
	}
	for _, dir := range sysEmpty {
		mkdirs("sys/" + dir)
	}
	for _, v := range sandbox.Cgroup.Views() {
		for _, name := range v.Aliases {
			p.call("symlink "+name, unix.SYS_SYMLINKAT, p.str(v.Name), atFDCWD, p.str("sys/fs/cgroup/"+name))
		}
	}
	p.call("freeze /sys", unix.SYS_MOUNT, 0, p.str("sys"), 0,
		unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
}
