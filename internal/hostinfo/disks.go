package hostinfo

import (
	"cmp"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Disk is a mounted file system, once for each however often it is mounted.
// Sizes are bytes.
type Disk struct {
	Device     string
	MountPoint string
	FileSystem string

	Total int64
	Used  int64
	Free  int64   // for users: what is kept for root is neither used nor free
	Usage float64 // percent of what users could have, as df shows it

	Inodes, InodesUsed, InodesFree int64 // 0 for file systems without a fixed number
	InodesUsage                    float64
}

// onDisk are the file systems that lie on a disk of this host. To ask another
// one, of a server or of a process, may take for ever.
var onDisk = map[string]bool{
	"bcachefs": true, "btrfs": true, "exfat": true, "ext2": true, "ext3": true, "ext4": true, "f2fs": true,
	"hfsplus": true, "jfs": true, "nilfs2": true, "ntfs": true, "ntfs3": true, "reiserfs": true, "vfat": true,
	"xfs": true, "zfs": true,
}

// inMemory are those that may lie on the way to a disk.
var inMemory = map[string]bool{
	"devtmpfs": true, "overlay": true, "ramfs": true, "rootfs": true, "squashfs": true, "sysfs": true, "tmpfs": true,
}

func (r *Reader) readDisks() ([]Disk, error) {
	mounts, err := r.procfs.GetMounts()
	if err != nil {
		return nil, err
	}
	var disks []Disk
	for _, m := range localMounts(mounts) {
		var st unix.Statfs_t
		if unix.Statfs(m.MountPoint, &st) != nil {
			continue // gone
		}
		size := st.Frsize
		if size == 0 {
			size = int64(st.Bsize)
		}
		d := Disk{
			Device: text(m.Source), MountPoint: text(m.MountPoint), FileSystem: text(m.FSType),
			Total: int64(st.Blocks) * size, Used: int64(st.Blocks-st.Bfree) * size, Free: int64(st.Bavail) * size,
			Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree), InodesFree: int64(st.Ffree),
		}
		d.Usage = percent(float64(d.Used), float64(d.Used+d.Free))
		d.InodesUsage = percent(float64(d.InodesUsed), float64(d.Inodes))
		disks = append(disks, d)
	}
	return disks, nil
}

// localMounts returns one mount of each file system on a disk, sorted by mount
// points, which it unescapes. A mount whose path leads elsewhere, as another lies
// over it, or through a file system that may not answer is none of them.
func localMounts(mounts []*procfs.MountInfo) []*procfs.MountInfo {
	type place struct {
		on    int // the mount below
		point string
	}
	ids, over := map[int]bool{}, map[place]*procfs.MountInfo{}
	for _, m := range mounts {
		ids[m.MountID] = true
	}
	var root *procfs.MountInfo
	for _, m := range mounts {
		m.MountPoint, m.Source = unescape(m.MountPoint), unescape(m.Source)
		if m.MountPoint == "/" && (!ids[m.ParentID] || m.ParentID == m.MountID) {
			root = m
			continue
		}
		over[place{m.ParentID, m.MountPoint}] = m
	}
	if root == nil {
		return nil
	}
	// climb goes on to the mount that lies at point on m, if one does.
	climb := func(m *procfs.MountInfo, point string) (*procfs.MountInfo, bool) {
		for range mounts { // a list without a circle ends by itself
			next := over[place{m.MountID, point}]
			if next == nil {
				return m, true
			}
			if m = next; !onDisk[m.FSType] && !inMemory[m.FSType] {
				return nil, false
			}
		}
		return nil, false
	}
	reach := func(path string) *procfs.MountInfo {
		m, ok := climb(root, "/")
		for i := 1; ok && i < len(path); i++ {
			if end := i + 1; end == len(path) || path[end] == '/' {
				m, ok = climb(m, path[:end])
			}
		}
		return m
	}
	best := map[string]*procfs.MountInfo{} // by device
	for _, m := range mounts {
		whole := onDisk[m.FSType] || m.FSType == "overlay" && m.MountPoint == "/" // a container's
		if !whole || reach(m.MountPoint) != m {
			continue
		}
		if b := best[m.MajorMinorVer]; b == nil || betterMount(m, b) {
			best[m.MajorMinorVer] = m
		}
	}
	var out []*procfs.MountInfo
	for _, m := range best {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *procfs.MountInfo) int { return cmp.Compare(a.MountPoint, b.MountPoint) })
	return out
}

// betterMount reports whether a tells more than b where the same file system is:
// all of it rather than a directory, and then the shorter path.
func betterMount(a, b *procfs.MountInfo) bool {
	if whole := a.Root == "/"; whole != (b.Root == "/") {
		return whole
	}
	return cmp.Or(cmp.Compare(len(a.MountPoint), len(b.MountPoint)), cmp.Compare(a.MountPoint, b.MountPoint)) < 0
}

// unescape undoes how the kernel writes blanks and backslashes: \040.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	octal := func(c byte) bool { return '0' <= c && c <= '7' }
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] <= '3' && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
