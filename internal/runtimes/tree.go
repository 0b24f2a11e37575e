package runtimes

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The engine mounts something on each of these, or jobs expect to find them;
// they are empty directories.
var mountPoints = []struct {
	path string
	mode fs.FileMode
}{
	{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755}, {"run", 0o755},
	{"tmp", 0o777 | fs.ModeSticky}, {"var/tmp", 0o777 | fs.ModeSticky},
	{"work", 0o755}, {"volumes", 0o755}, {"mnt", 0o755}, {"home", 0o755}, {"root", 0o755},
}

// Programs need the directories below these, but none of the files.
var cleared = []string{"var/log", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig"}

// Whatever of these an installation leaves is of no use to a job, or a secret,
// or different on each machine.
var unwanted = []string{
	"boot", "media", "etc/fstab", "etc/apt", "etc/machine-id", "var/lib/dbus/machine-id",
	"etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-", "etc/passwd-", "etc/group-",
	"etc/subuid", "etc/subuid-", "etc/subgid", "etc/subgid-", "etc/.pwd.lock", "etc/security/opasswd",
	"etc/init.d", "etc/rc0.d", "etc/rc1.d", "etc/rc2.d", "etc/rc3.d", "etc/rc4.d", "etc/rc5.d", "etc/rc6.d", "etc/rcS.d",
	"etc/cron.d", "etc/cron.daily", "etc/cron.weekly", "etc/logrotate.d", "etc/systemd",
	"etc/dpkg/dpkg.cfg.d/99mmdebstrap",
	"var/lib/apt", "var/lib/dpkg/status-old", "var/lib/dpkg/available-old", "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend",
	"var/lib/dpkg/triggers/Lock", "var/lib/systemd", "var/backups",
}

// The set-up of a job writes these into the job's own /run, so that a tree
// that all share names each job's host and resolvers.
var jobFiles = map[string]string{
	"etc/hosts":       "/run/joblet/hosts",
	"etc/hostname":    "/run/joblet/hostname",
	"etc/resolv.conf": "/run/joblet/resolv.conf",
	"etc/mtab":        "../proc/self/mounts",
}

// Where a package set brings no such file, programs still want to translate
// ids and names.
var essentialFiles = map[string]string{
	"etc/passwd":        "root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":         "root:*:0:\nnogroup:*:65534:\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

// finishTree turns an installed system into a tree that jobs can share
// read-only. It belongs to the ids of a sandbox from base on, or to the host's
// already. Changes of names go through os.Root: a link inside the tree leads
// nowhere out of it.
func finishTree(dir string, base uint32, r Recipe) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()

	for _, p := range unwanted {
		if err := root.RemoveAll(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := exclude(root, dir, r.Exclude); err != nil {
		return err
	}
	for _, m := range mountPoints {
		if err := emptyDir(root, m.path, m.mode); err != nil {
			return err
		}
	}
	for _, dir := range cleared {
		if err := clearFiles(root, dir); err != nil {
			return err
		}
	}
	for p, content := range essentialFiles {
		if _, err := root.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			if err := root.MkdirAll(path.Dir(p), 0o755); err != nil {
				return err
			}
			if err := root.WriteFile(p, []byte(content), 0o644); err != nil {
				return err
			}
		}
	}
	for link, target := range jobFiles {
		if err := symlink(root, link, target); err != nil {
			return err
		}
	}
	for link, target := range r.Links {
		if err := symlink(root, strings.TrimPrefix(path.Clean(link), "/"), path.Clean(target)); err != nil {
			return fmt.Errorf("cannot create the link %s: %w", link, err)
		}
	}
	return sanitize(dir, base)
}

// emptyDir makes p an empty directory. A link there, such as /var/run, stays
// as it is.
func emptyDir(root *os.Root, p string, mode fs.FileMode) error {
	fi, err := root.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case fi.Mode()&fs.ModeSymlink != 0:
		return nil
	default:
		if err := root.RemoveAll(p); err != nil {
			return err
		}
	}
	if err := root.MkdirAll(p, 0o755); err != nil {
		return err
	}
	return root.Chmod(p, mode)
}

// clearFiles removes all but directories below dir.
func clearFiles(root *os.Root, dir string) error {
	err := fs.WalkDir(root.FS(), dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return root.Remove(p)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func symlink(root *os.Root, link, target string) error {
	if err := root.MkdirAll(path.Dir(link), 0o755); err != nil {
		return err
	}
	if err := root.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.Symlink(target, link)
}

// exclude deletes what patterns match, and what is below that.
func exclude(root *os.Root, dir string, patterns []string) error {
	if len(patterns) == 0 {
		return nil
	}
	pattern := excludePattern(patterns)
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside := strings.TrimPrefix(p, dir)
		if inside == "" || !pattern.MatchString(inside) {
			return nil
		}
		if err := root.RemoveAll(strings.TrimPrefix(inside, "/")); err != nil {
			return err
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// sanitize gives everything below dir the owners that it has in the sandbox, makes
// it readable by all, for the tree may be seen through another user namespace, and
// takes away what could lift a process above its job: setuid and setgid bits, file
// capabilities, access control lists, device nodes. It follows no link.
func sanitize(dir string, base uint32) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return sanitizeDir(os.NewFile(uintptr(fd), dir), base, 0)
}

// maxTreeDepth bounds how deep a tree may be: a descriptor is open for each level.
const maxTreeDepth = 200

// sanitizeDir sanitizes an open directory and what is in it, and closes it.
func sanitizeDir(d *os.File, base uint32, depth int) error {
	defer func() { _ = d.Close() }()
	if depth > maxTreeDepth {
		return fmt.Errorf("%.300s: nested more than %d directories deep", d.Name(), maxTreeDepth)
	}
	if err := sanitizeFile(d, base); err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := sanitizeEntry(d, name, base, depth); err != nil {
			return err
		}
	}
	return nil
}

func sanitizeEntry(d *os.File, name string, base uint32, depth int) error {
	p := filepath.Join(d.Name(), name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	flags := unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		uid, gid, err := ownerIn(st, base)
		if err == nil {
			err = unix.Fchownat(int(d.Fd()), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil {
			return &fs.PathError{Op: "chown", Path: p, Err: err}
		}
		return nil
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	case unix.S_IFREG:
	default: // device node, named pipe or socket
		if err := unix.Unlinkat(int(d.Fd()), name, 0); err != nil {
			return &fs.PathError{Op: "remove", Path: p, Err: err}
		}
		return nil
	}
	fd, err := unix.Openat2(int(d.Fd()), name, &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return &fs.PathError{Op: "open", Path: p, Err: err}
	}
	f := os.NewFile(uintptr(fd), p)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return sanitizeDir(f, base, depth+1)
	}
	defer func() { _ = f.Close() }()
	return sanitizeFile(f, base)
}

// ownerIn returns the owner that a file has in the sandbox. A file that other
// names have led to already has it on the host as well.
func ownerIn(st unix.Stat_t, base uint32) (uid, gid int, err error) {
	inside := func(id uint32) (int, error) {
		switch {
		case id < sandboxIDs:
			return int(id), nil
		case id >= base && id-base < sandboxIDs:
			return int(id - base), nil
		}
		return 0, fmt.Errorf("its owner %d is not an id of the build", id)
	}
	uid, err = inside(st.Uid)
	if err == nil {
		gid, err = inside(st.Gid)
	}
	return uid, gid, err
}

// harmfulAttributes give a process more than its job has, or name ids of the
// sandbox.
var harmfulAttributes = []string{"security.capability", "system.posix_acl_access", "system.posix_acl_default"}

func sanitizeFile(f *os.File, base uint32) error {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	for _, name := range harmfulAttributes {
		err := unix.Fremovexattr(fd, name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) && !(errors.Is(err, unix.EACCES) && !dir) { // files have no default list
			return &fs.PathError{Op: "removexattr " + name, Path: f.Name(), Err: err}
		}
	}
	mode := st.Mode & 0o7777
	want := mode&^(unix.S_ISUID|unix.S_ISGID) | 0o444
	if dir || mode&0o111 != 0 {
		want |= 0o111
	}
	if want != mode { // before the owner: it must never be root's with these bits
		if err := unix.Fchmod(fd, want); err != nil {
			return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
		}
	}
	uid, gid, err := ownerIn(st, base)
	if err == nil && (uint32(uid) != st.Uid || uint32(gid) != st.Gid) {
		err = unix.Fchown(fd, uid, gid)
	}
	if err != nil {
		return &fs.PathError{Op: "chown", Path: f.Name(), Err: err}
	}
	return nil
}

// installedPackages reads dpkg's database in the tree and returns version by
// name.
func installedPackages(dir string) (map[string]string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	f, err := root.Open("var/lib/dpkg/status")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()

	installed := map[string]string{}
	var name, version string
	var ok bool
	end := func() {
		if ok && name != "" && name != omitPackage {
			installed[name] = version
		}
		name, version, ok = "", "", false
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "":
			end()
		case "Package":
			name = value
		case "Version":
			version = value
		case "Status":
			ok = strings.HasSuffix(value, " installed")
		}
	}
	end()
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the status of dpkg: %w", err)
	}
	return installed, nil
}

// withVersions returns those of names that are installed, all when names is
// nil, as sorted "name=version".
func withVersions(installed map[string]string, names []string) []string {
	if names == nil {
		for n := range installed {
			names = append(names, n)
		}
	}
	var list []string
	for _, n := range names {
		n, _, _ = strings.Cut(n, "=")
		if v, ok := installed[n]; ok {
			list = append(list, n+"="+v)
		}
	}
	slices.Sort(list)
	return list
}
