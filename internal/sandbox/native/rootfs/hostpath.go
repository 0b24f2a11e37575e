package rootfs

import (
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultPath is where a job's commands are looked for.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// pathFiles are the files of /etc that set the search path of a login, and are read, not
// executed. The files of profile.d follow, and the programs of /usr/local/NAME/bin.
var pathFiles = []string{"environment", "login.defs", "profile"}

// Bounds of the files and of what is taken from them.
const (
	maxPathFile = 256 << 10
	maxPathDirs = 32
)

// pathAssignment is a line of environment(5), login.defs(5) or a shell script.
var pathAssignment = regexp.MustCompile(`^\s*(?:export\s+|ENV_PATH\s+|ENV_SUPATH\s+)?PATH=("[^"]*"|'[^']*'|[^\s;&|]*)`)

// loginPath returns the directories that a login of the host has in its search path
// beside those of DefaultPath: those that are root's and that a job sees. watch is called
// with the directories that decide it.
func loginPath(root string, watch func(dir string)) (dirs []string) {
	var found []string
	etc := filepath.Join(root, "etc")
	files := slices.Clone(pathFiles)
	scripts, _ := filepath.Glob(filepath.Join(etc, "profile.d", "*.sh"))
	for _, name := range scripts {
		files = append(files, "profile.d/"+filepath.Base(name))
	}
	for _, name := range files {
		found = append(found, pathsIn(filepath.Join(etc, name))...)
	}
	local := filepath.Join(root, "usr/local")
	watch(local)
	bins, _ := filepath.Glob(filepath.Join(local, "*", "bin"))
	for _, dir := range bins {
		found = append(found, "/usr/local/"+filepath.Base(filepath.Dir(dir))+"/bin")
	}
	if parents, err := os.ReadDir(local); err == nil {
		for _, e := range parents[:min(len(parents), maxPathDirs)] {
			if e.IsDir() {
				watch(filepath.Join(local, e.Name()))
			}
		}
	}
	usual := strings.Split(DefaultPath, ":")
	for _, dir := range found {
		if len(dirs) < maxPathDirs && !slices.Contains(usual, dir) && !slices.Contains(dirs, dir) && isProgramDir(root, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// pathsIn returns the absolute directories in the assignments to PATH in a file.
func pathsIn(file string) (dirs []string) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPathFile))
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(text) {
		m := pathAssignment.FindSubmatch(line)
		if m == nil {
			continue
		}
		for dir := range strings.SplitSeq(strings.Trim(string(m[1]), `"'`), ":") {
			if path.IsAbs(dir) && !strings.ContainsAny(dir, "$`~*?\\") {
				dirs = append(dirs, path.Clean(dir))
			}
		}
	}
	return dirs
}

// isProgramDir reports whether dir is a directory of root's that a job sees at this
// place, and that only root and its group can change.
func isProgramDir(root, dir string) bool {
	if len(dir) > 1024 || !isIn(hostDirs, dir) {
		return false
	}
	real, err := filepath.EvalSymlinks(filepath.Join(root, dir))
	if err != nil {
		return false
	}
	if rel, err := filepath.Rel(root, real); err != nil || !isIn(hostDirs, "/"+rel) {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(real, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Uid == 0 && st.Mode&0o005 == 0o005 && st.Mode&0o002 == 0
}

// isIn reports whether a path is one of the directories or below one.
func isIn(dirs []string, name string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") })
}
