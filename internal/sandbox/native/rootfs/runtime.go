package rootfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// ownDirs are the places of a job's root that are its own whatever the runtime's tree
// has there. A file system has lost+found of itself.
var ownDirs = map[string]bool{"dev": true, "proc": true, "sys": true, "work": true, "lost+found": true}

// layeredDirs are the places where a job can write that may have something of the
// runtime's tree: a layer of the job's own lies over that.
var layeredDirs = map[string]bool{"var": true, "home": true, "root": true, "run": true, "tmp": true}

// maxTop bounds the entries at the top of a runtime's tree, each of which takes a few
// steps of a job's set-up; protocol.MaxTrees bounds those of them that are mounts.
const maxTop = 64

// layers says what the kernel can do for layeredDirs.
type layers struct {
	overlay bool // it has overlayfs
	idmap   bool // of an idmapped tree: Linux 5.19
}

func findLayers() layers {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC) // loads the module
	if err != nil {
		return layers{}
	}
	unix.Close(fd)
	return layers{overlay: true, idmap: hostinfo.KernelHas(5, 19)}
}

// Runtime returns the view of a job whose programs come from the tree at
// rootfs: what a chroot of it would show, but for ownDirs.
func (v *Views) Runtime(rootfs string) (View, error) { return v.layers.runtimeView(rootfs) }

func (l layers) runtimeView(rootfs string) (View, error) {
	entries, err := os.ReadDir(rootfs)
	if err != nil {
		return View{}, err
	}
	if len(entries) > maxTop {
		return View{}, joblet.Errorf(joblet.FailedPrecondition,
			"its tree has %d entries at the top: at most %d are possible; move some into a directory", len(entries), maxTop)
	}
	var v View
	for _, e := range entries {
		name := e.Name()
		switch source := filepath.Join(rootfs, name); {
		case ownDirs[name]:
		case layeredDirs[name]:
			if err := l.addLayered(&v, rootfs, name); err != nil {
				return View{}, err
			}
		case e.IsDir() && emptyDir(source):
			info, err := e.Info()
			if err != nil {
				return View{}, err
			}
			mode := uint32(info.Mode().Perm())
			if info.Mode()&os.ModeSticky != 0 {
				mode |= unix.S_ISVTX
			}
			v.Dirs = append(v.Dirs, sandbox.Dir{Path: "/" + name, Mode: mode})
		default:
			v.add(source, "/"+name, true)
		}
	}
	if len(v.Mounts) > protocol.MaxTrees {
		return View{}, joblet.Errorf(joblet.FailedPrecondition,
			"its tree has %d directories and files at the top: at most %d are possible; move some into a directory", len(v.Mounts), protocol.MaxTrees)
	}
	return v, nil
}

// addLayered adds one of layeredDirs, if there is something in it. Where the tree has a
// symbolic link, that is the directory to which it leads within the tree.
func (l layers) addLayered(v *View, rootfs, name string) error {
	if !l.overlay {
		return nil
	}
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil //nolint:nilerr // no directory, or a link to none: the job has an empty one
	}
	defer unix.Close(fd)
	dir, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	if !emptyDir(dir) {
		v.Mounts = append(v.Mounts, sandbox.Mount{Source: dir, Target: "/" + name, IDMapped: l.idmap, Layer: true})
	}
	return nil
}

// emptyDir reports whether nothing is in a directory.
func emptyDir(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return errors.Is(err, io.EOF)
}
