package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/monitor"
)

// View is what a job's root file system is made of beside its private parts.
type View struct {
	Trees []monitor.Tree
	Dirs  []monitor.Dir
	Links []monitor.Link
	Files []monitor.File
}

// hostDirs are the host's directories of programs. Each is a directory or, on a
// merged-usr system, a symbolic link into /usr.
var hostDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hostEtc are the parts of /etc that programs cannot do without: how shared
// libraries are found, which alternative a name stands for, which certificate
// authorities to trust, and the site configuration of language runtimes.
// Nothing else of /etc is shown: it holds keys and passwords, and the list of
// what may be read would never be complete.
var hostEtc = []string{
	"ld.so.cache", "alternatives", "localtime",
	"ssl/certs", "ca-certificates", "pki/tls/certs", "pki/ca-trust/extracted", "crypto-policies",
	"python3", "python3.11", "python3.12", "python3.13", "perl", "java-11-openjdk", "java-17-openjdk", "java-21-openjdk",
	"fonts", "terminfo", "mime.types", "protocols", "services", "magic",
}

// etcFiles are the files of a job's /etc that are Joblet's own words.
var etcFiles = map[string]string{
	"passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
	"host.conf":     "multi on\n",
}

// etcLinks are its symbolic links; the set-up writes the job's own files there.
var etcLinks = map[string]string{
	"mtab":        "../proc/self/mounts",
	"hosts":       "/run/joblet/hosts",
	"hostname":    "/run/joblet/hostname",
	"resolv.conf": "/run/joblet/resolv.conf",
}

// maxEtc bounds the copy of the host's /etc.
const maxEtc = 64 << 20

// hostEtcCopy keeps a copy of what jobs see of the host's /etc: as one directory
// it is one mount in a job, where the originals would be twenty. It is made
// again when the modification time of one of the originals has changed;
// running jobs keep the copy they have.
type hostEtcCopy struct {
	parent string // etc-N are the copies in it

	mu    sync.Mutex
	dir   string
	stamp string
}

// current returns the directory of an up-to-date copy.
func (c *hostEtcCopy) current() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamp := etcStamp()
	if c.dir != "" && stamp == c.stamp {
		return c.dir, nil
	}
	dir, err := os.MkdirTemp(c.parent, "etc-")
	if err != nil {
		return "", fmt.Errorf("copy what jobs need of /etc: %w", err)
	}
	if err := copyEtc(dir); err != nil {
		return "", errors.Join(fmt.Errorf("copy what jobs need of /etc: %w", err), os.RemoveAll(dir))
	}
	c.dir, c.stamp = dir, stamp
	return dir, nil
}

func etcStamp() string {
	var b strings.Builder
	for _, name := range hostEtc {
		var st unix.Stat_t
		if unix.Lstat("/etc/"+name, &st) == nil {
			fmt.Fprintf(&b, "%d.%d,", st.Mtim.Sec, st.Mtim.Nsec)
		}
	}
	return b.String()
}

func copyEtc(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	left := int64(maxEtc)
	for _, name := range hostEtc {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return err
		}
		if err := copyPublic(filepath.Join("/etc", name), filepath.Join(dir, name), &left); err != nil {
			return err
		}
	}
	for name, text := range etcFiles {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for name, target := range etcLinks {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyPublic copies what everybody may read; the rest, and what vanishes
// meanwhile, it passes over.
func copyPublic(source, target string, left *int64) error {
	info, err := os.Lstat(source)
	if err != nil {
		return nil
	}
	switch mode := info.Mode(); {
	case mode&os.ModeSymlink != 0:
		to, err := os.Readlink(source)
		if err != nil {
			return nil
		}
		return os.Symlink(to, target)
	case mode.IsDir() && mode&0o005 == 0o005:
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(source)
		if err != nil {
			return nil
		}
		for _, e := range entries {
			if err := copyPublic(filepath.Join(source, e.Name()), filepath.Join(target, e.Name()), left); err != nil {
				return err
			}
		}
	case mode.IsRegular() && mode&0o004 != 0:
		if *left -= info.Size(); *left < 0 {
			return fmt.Errorf("%s: more than %d MiB in all", source, maxEtc>>20)
		}
		data, err := os.ReadFile(source)
		if err != nil {
			return nil
		}
		return os.WriteFile(target, data, 0o644|mode&0o111)
	}
	return nil
}

// HostView returns the view of a job without a runtime: the host's own
// programs. They are not idmapped: to the job they belong to nobody, and a file
// that only the host's root may read stays unreadable for the job's root.
func (e *Engine) HostView() (View, error) {
	var v View
	etc, err := e.etc.current()
	if err != nil {
		return v, err
	}
	for _, dir := range hostDirs {
		v.add(dir, dir, false)
	}
	v.add(etc, "/etc", false)
	return v, nil
}

// IdentityFiles are the files in which programs look for the job's own name.
func IdentityFiles(hostname string) []monitor.File {
	return []monitor.File{
		{Path: "/run/joblet/hosts", Text: "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t" + hostname + "\n"},
		{Path: "/run/joblet/hostname", Text: hostname + "\n"},
		{Path: "/run/joblet/resolv.conf", Text: ""},
	}
}

// add adds a directory, file or symbolic link of the host; nothing where there
// is none.
func (v *View) add(source, target string, idmap bool) {
	info, err := os.Lstat(source)
	if err != nil {
		return
	}
	switch mode := info.Mode(); {
	case mode&os.ModeSymlink != 0:
		if to, err := os.Readlink(source); err == nil {
			v.Links = append(v.Links, monitor.Link{Path: monitor.Name(target), Target: monitor.Name(to)})
		}
	case mode.IsDir():
		v.Trees = append(v.Trees, monitor.Tree{Source: monitor.Name(source), Target: monitor.Name(target), IDMap: idmap})
	case mode.IsRegular():
		v.Trees = append(v.Trees, monitor.Tree{Source: monitor.Name(source), Target: monitor.Name(target), IDMap: idmap, File: true})
	}
}
