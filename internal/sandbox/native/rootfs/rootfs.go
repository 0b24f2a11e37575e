// Package rootfs decides what jobs see of the host in their root file systems: a runtime's
// tree, or the host's own programs and a copy of what is public in /etc; and their users.
package rootfs

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/joblet/joblet/internal/sandbox"
)

// View is what a job's root file system is made of beside its private parts.
type View struct {
	Mounts []sandbox.Mount
	Dirs   []sandbox.Dir
	Links  []sandbox.Link

	Path []string // directories of programs beside those of DefaultPath
}

// Views makes the views of jobs on this host.
type Views struct {
	etc    hostEtcCopy
	layers layers
}

// Open returns the views of this host. It keeps copies of /etc in dir. With unused no job
// has one of those that a former daemon left there, and they are removed.
func Open(dir string, unused bool, log *slog.Logger) (*Views, error) {
	v := &Views{etc: hostEtcCopy{root: "/", parent: dir, log: log}, layers: findLayers()}
	if !v.layers.overlay {
		log.Warn("jobs do not see what a runtime has in /var, /home, /root, /run and /tmp: this kernel has no overlayfs")
	}
	if unused {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("cannot remove old copies of /etc: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the run directory: %w", err)
	}
	return v, nil
}

// Prepare makes the copy of /etc ahead of the first job that needs it, which says why if
// it fails.
func (v *Views) Prepare() { _, _ = v.etc.current() }

// Close ends the use of the copies.
func (v *Views) Close() { v.etc.stop() }

// hostDirs are the host's directories of programs. Each is a directory or, on a
// merged-usr system, a symbolic link into /usr.
var hostDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hostVar are directories of /var that hold nothing but what programs of hostDirs have
// made of their data: caches of fonts, formats of TeX, dictionaries.
var hostVar = []string{"/var/cache/fontconfig", "/var/cache/dictionaries-common", "/var/lib/texmf", "/var/lib/aspell", "/var/lib/ghostscript"}

// hostDirsMade are directories of /var in which programs of hostDirs write, and which they
// do not make themselves: a job has empty ones.
var hostDirsMade = []string{
	"/var/log/nginx", "/var/lib/nginx", "/var/log/apache2", "/var/cache/apache2", "/var/log/lighttpd", "/var/cache/lighttpd",
}

// etcFiles are the files of a job's /etc that are Joblet's own words.
var etcFiles = map[string]string{
	"passwd":        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"group":         "root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n",
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

// Host returns the view of a job without a runtime: the host's own
// programs. They are not idmapped: to the job they belong to nobody, and a file
// that only the host's root may read stays unreadable for the job's root.
func (v *Views) Host() (View, error) {
	host, err := v.etc.current()
	if err != nil {
		return View{}, err
	}
	view := HostPrograms()
	for _, dir := range host.trees {
		view.add(dir, dir, false)
	}
	view.add(host.etc, "/etc", false)
	view.Dirs, view.Path = host.dirs, host.path
	return view, nil
}

// HostPrograms returns the view of a job that sees the host's programs and nothing else
// of the host.
func HostPrograms() View {
	var v View
	for _, dir := range hostDirs {
		v.add(dir, dir, false)
	}
	return v
}

// IdentityFiles are the files in which programs look for the job's own name.
func IdentityFiles(hostname string) []sandbox.File {
	return []sandbox.File{
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
			v.Links = append(v.Links, sandbox.Link{Path: target, Target: to})
		}
	case mode.IsDir():
		v.Mounts = append(v.Mounts, sandbox.Mount{Source: source, Target: target, IDMapped: idmap})
	case mode.IsRegular():
		v.Mounts = append(v.Mounts, sandbox.Mount{Source: source, Target: target, IDMapped: idmap, File: true})
	}
}
