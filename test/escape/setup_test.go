package escape

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// The attempts of this file look at the set-up of a job and of its further processes
// while it runs, before execve: paths that the caller or the job chooses are looked up
// then, and the kernel looks up the interpreter of a script and the loader of a program.
// (CVE-2024-21626 was a descriptor of the host that such a path could name.)

// maxProbed is the highest descriptor that the attempts name.
const maxProbed = 64

// usualFD is as high as the descriptors of a set-up get.
const usualFD = 24

// up leads from any directory of the host to its root.
const up = "/../../../../../../../../../.."

// throughDescriptors returns the paths by which a process names its descriptors.
func throughDescriptors() (paths []string) {
	for n := range maxProbed + 1 {
		paths = append(paths, fmt.Sprintf("/proc/self/fd/%d", n))
	}
	for n := range usualFD {
		paths = append(paths, fmt.Sprintf("/dev/fd/%d", n), fmt.Sprintf("/proc/thread-self/fd/%d", n), fmt.Sprintf("/proc/1/fd/%d", n))
	}
	return append(paths, "/proc/self/cwd", "/proc/self/root", "/proc/1/cwd", "/proc/1/root")
}

// hostTool makes a script of the host's that prints the mark, which is where no job
// can see it.
func (w *world) hostTool(t *testing.T) string {
	t.Helper()
	tool := filepath.Join(filepath.Dir(w.secret), "tool")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho "+w.mark+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return tool
}

// TestSetupPaths asks for working directories, commands, interpreters and loaders that
// lead through a descriptor of the process that sets the job up.
func TestSetupPaths(t *testing.T) {
	w := newWorld(t)
	tool := w.hostTool(t)
	setupControls(t, w, tool)

	// One job has all the links, scripts and programs that exec is pointed at.
	tree := t.TempDir()
	paths := throughDescriptors()
	loader, program := w.hostLoader(t)
	for i, p := range paths {
		n := strconv.Itoa(i)
		write(t, filepath.Join(tree, "script-"+n), "#!"+p+up+tool+"\n")
		write(t, filepath.Join(tree, "program-"+n), string(pointLoader(t, program, p+up+loader)))
	}
	id, _ := w.start(t, "ready", "--upload-dir="+tree, "sh", "-c", linkScript(paths)+"echo ready; exec sleep 1000")

	var wg sync.WaitGroup
	next := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				setupAttempts(t, w, id, tree, tool, i, paths[i])
			}
		})
	}
	for i := range paths {
		next <- i
	}
	close(next)
	wg.Wait()
	if _, err := os.Lstat(made(w)); err == nil {
		t.Error("a directory was made on the host")
	}
	if r := w.rnx(t.Context(), "job", "exec", "--workdir=/work/a/b/c", id, "pwd"); r.stdout != "/work/a/b/c\n" {
		t.Errorf("the control: %v", r)
	}
}

// setupTurn chooses what is tried with the less likely paths.
var setupTurn = rand.IntN(3)

// made is a directory of the host's that the attempts ask for.
func made(w *world) string { return filepath.Join(filepath.Dir(w.secret), "made") }

// setupAttempts has the set-up look up one path, number i of throughDescriptors. The job
// has a link, a script and a program for it, which are also in tree. A path beyond usualFD
// is tried in one way, another one in each run: it names nothing that is open, or is a
// further name of what has been tried.
func setupAttempts(t *testing.T, w *world, id, tree, tool string, i int, p string) {
	n := strconv.Itoa(i)
	attempts := map[string][]string{
		"workdir of exec": {"exec", "--workdir=" + p, id, "cat", up[1:] + w.secret},
		"workdir of run":  {"run", "--workdir=" + p, "cat", up[1:] + w.secret},
		"command of run":  {"run", p + up + tool},
	}
	if ways := slices.Sorted(maps.Keys(attempts)); i >= usualFD {
		way := ways[(i+setupTurn)%len(ways)]
		attempts = map[string][]string{way: attempts[way]}
	} else {
		maps.Copy(attempts, map[string][]string{
			"link as workdir of exec":       {"exec", "--workdir=/work/link-" + n, id, "cat", up[1:] + w.secret},
			"new workdir of exec":           {"exec", "--workdir=" + p + up + made(w), id, "true"},
			"command of exec":               {"exec", id, p + up + tool},
			"loader of exec":                {"exec", id, "/work/program-" + n},
			"link as search path of exec":   {"exec", "--env=PATH=/work/link-" + n + up + filepath.Dir(tool), id, filepath.Base(tool)},
			"new workdir of run":            {"run", "--workdir=" + p + up + made(w), "true"},
			"search path of run":            {"run", "--env=PATH=" + p + up + filepath.Dir(tool), filepath.Base(tool)},
			"loader of run":                 {"run", "--upload=" + filepath.Join(tree, "program-"+n), "/work/program-" + n},
			"command beside workdir of run": {"run", "--workdir=" + p, "." + up + tool},
		})
	}
	for what, args := range attempts {
		r := w.rnx(t.Context(), append([]string{"job"}, args...)...)
		switch {
		case strings.Contains(r.stdout, w.mark):
			t.Errorf("%s %s: a way out: %v", what, p, r)
		case r.status < 125 || r.status > 127:
			t.Errorf("%s %s: %v; want an error before the command runs", what, p, r)
		case strings.Contains(r.stderr, "internal error"):
			t.Errorf("%s %s: %v", what, p, r)
		}
	}
}

// setupControls checks that each kind of path leads to the host in a process that has
// a descriptor of it.
func setupControls(t *testing.T, w *world, tool string) {
	t.Helper()
	root, err := os.Open("/sys")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	const p = "/proc/self/fd/3"
	tree := t.TempDir()
	write(t, filepath.Join(tree, "script"), "#!"+p+up+tool+"\n")
	loader, program := w.hostLoader(t)
	write(t, filepath.Join(tree, "program"), string(pointLoader(t, program, p+up+loader)))
	for what, cmd := range map[string]*exec.Cmd{
		"workdir":     exec.Command("sh", "-c", "cd "+p+" && cat "+up[1:]+w.secret),
		"command":     exec.Command(p + up + tool),
		"interpreter": exec.Command(filepath.Join(tree, "script")),
		"loader":      exec.Command(filepath.Join(tree, "program")),
	} {
		cmd.ExtraFiles = []*os.File{root}
		if r := finish(cmd); !strings.Contains(r.stdout, w.mark) {
			t.Errorf("the control: a descriptor of the host is no way to it as %s: %v", what, r)
		}
	}
}

// hostLoader copies the host's dynamic loader to where no job can see it, and returns
// its path and a program, to be given one by pointLoader, that prints the mark.
func (w *world) hostLoader(t *testing.T) (loader string, program []byte) {
	t.Helper()
	program = withLoader(t, strings.Repeat("x", loaderLen), w.mark)
	plain := withLoader(t, "", w.mark)
	f, err := elf.NewFile(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	section, err := f.Section(".interp").Data()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(string(bytes.TrimRight(section, "\x00")))
	if err != nil {
		t.Fatal(err)
	}
	loader = filepath.Join(filepath.Dir(w.secret), "loader")
	write(t, loader, string(data))
	return loader, program
}

// linkScript returns shell commands that make a link in /work for each path.
func linkScript(paths []string) string {
	var b strings.Builder
	b.WriteString("cd /work; ")
	for i, p := range paths {
		fmt.Fprintf(&b, "ln -s %s link-%d; ", p, i)
	}
	return b.String()
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// loaderLen is the length of the loader's path in programs for pointLoader.
const loaderLen = 200

// withLoader returns a dynamic program that prints the word and whose loader (PT_INTERP)
// has this path; "": the host's own.
func withLoader(t *testing.T, loader, word string) []byte {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.c"), "#include <stdio.h>\nint main(void) { puts(\""+word+"\"); return 0; }\n")
	args := []string{"-o", filepath.Join(dir, "main"), filepath.Join(dir, "main.c")}
	if loader != "" {
		args = append(args, "-Wl,--dynamic-linker="+loader)
	}
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "main"))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// pointLoader gives a program of hostLoader this loader. Slashes before it keep the
// length, which the kernel checks.
func pointLoader(t *testing.T, program []byte, loader string) []byte {
	t.Helper()
	have := bytes.Repeat([]byte("x"), loaderLen)
	if !bytes.Contains(program, have) || len(loader) > len(have) {
		t.Fatalf("cannot make %s the loader", loader)
	}
	return bytes.Replace(program, have, []byte(strings.Repeat("/", len(have)-len(loader))+loader), 1)
}

// TestSetupDescriptors looks into the processes that wait, set up to their last part,
// for a job: they hold nothing that has a path on the host.
func TestSetupDescriptors(t *testing.T) {
	w := newWorld(t)
	if r := w.job(t, "true"); r.status != 0 { // the boxes are ready
		t.Fatal(r)
	}
	seen := 0
	for _, pid := range w.waiting(t) {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // a box that was taken or given up meanwhile
		}
		seen++
		for _, fd := range fds {
			name := filepath.Join(dir, fd.Name())
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				continue
			}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFIFO, unix.S_IFSOCK:
			default:
				to, _ := os.Readlink(name)
				if strings.HasPrefix(to, "anon_inode:") {
					continue
				}
				t.Errorf("the set-up of a job holds descriptor %s, %s (mode %o)", fd.Name(), to, st.Mode)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err == nil && (st.Mode&0o077 != 0 || st.Uid != 0) {
			t.Errorf("a job may read or execute the program of its set-up: mode %o, owner %d", st.Mode, st.Uid)
		}
	}
	if seen == 0 {
		t.Error("no set-up was seen: the test proves nothing")
	}
}

// TestSetupIsHidden watches further processes of a job come into being, from a job that
// may trace all that its user namespace lets it.
func TestSetupIsHidden(t *testing.T) {
	// At 1 a change of ids makes a process dumpable (proc_sys_fs(5)).
	const setting = "/proc/sys/fs/suid_dumpable"
	before, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(setting, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(setting, before, 0); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t)
	for _, flags := range [][]string{{"--cap-add=all"}, {"--security=nested"}, {"--user=1000"}} {
		id, _ := w.start(t, "spying", append(flags, "--upload="+probe(), "/work/probe", "spy", "20")...)
		for range 400 {
			w.rnx(t.Context(), "job", "exec", id, "true")
			if strings.Contains(w.rnx(t.Context(), "job", "log", id).stdout, "seen") {
				break
			}
		}
		if r := w.rnx(t.Context(), "job", "log", id); strings.Contains(r.stdout, "through") {
			t.Errorf("%s: the set-up is open to the job: %v", flags[0], r)
		} else if !strings.Contains(r.stdout, "seen") {
			t.Errorf("%s: the job saw no set-up: the test proves nothing", flags[0])
		}
	}
}

// TestAdoptedJobs: a daemon that takes over the jobs of one that was killed is as careful
// with what they have laid out.
func TestAdoptedJobs(t *testing.T) {
	w := newWorld(t)
	var paths []string
	for n := range usualFD {
		paths = append(paths, fmt.Sprintf("/proc/self/fd/%d", n))
	}
	linked, _ := w.start(t, "ready", "sh", "-c", linkScript(paths)+"echo ready; exec sleep 1000")
	mounted, _ := w.start(t, "ready", "--security=nested", "sh", "-c",
		"echo real > /work/real; exec unshare -Urm sh -ec 'mount -t tmpfs x /work; echo hidden > /work/inner; echo ready; exec sleep 1000'")
	if err := w.daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = w.daemon.Wait()
	again := exec.Command(w.daemon.Path, slices.DeleteFunc(slices.Clone(w.daemon.Args[1:]), func(arg string) bool { return arg == "--ready-fd" || arg == "3" })...)
	again.Stderr = &w.stderr
	w.daemon = again
	if err := testenv.Serve(again); err != nil {
		t.Fatal(err)
	}
	for i, p := range paths {
		r := w.rnx(t.Context(), "job", "exec", "--workdir=/work/link-"+strconv.Itoa(i), linked, "cat", up[1:]+w.secret)
		if strings.Contains(r.stdout, w.mark) || r.status != 125 {
			t.Errorf("link to %s as workdir: %v", p, r)
		}
	}
	if r := w.rnx(t.Context(), "job", "exec", linked, "pwd"); r.stdout != "/work\n" {
		t.Errorf("the control: %v", r)
	}
	to := t.TempDir()
	if r := w.rnx(t.Context(), "job", "cp", mounted+":real", to); r.status != 0 {
		t.Errorf("the control: %v", r)
	}
	if r := w.rnx(t.Context(), "job", "cp", mounted+":inner", to); r.status == 0 {
		t.Errorf("what a job has mounted over /work was fetched: %v", r)
	}
}

// TestFilePool: the processes of a job with default limits cannot open so many files that
// the host has none left.
func TestFilePool(t *testing.T) {
	w := newWorld(t)
	r := w.job(t, "sh", "-c", "ulimit -Hn; cat /proc/sys/fs/file-max")
	var each, all uint64
	if _, err := fmt.Sscan(r.stdout, &each, &all); err != nil || r.status != 0 {
		t.Fatal(r, err)
	}
	if each*joblet.DefaultMaxPIDs > all {
		t.Errorf("%d processes of %d files each are more than the host's %d", joblet.DefaultMaxPIDs, each, all)
	}
}

// waiting returns the first processes of the boxes that wait for a job: children of
// children of the daemon that are PID 1 of their namespace.
func (w *world) waiting(t *testing.T) (pids []int) {
	t.Helper()
	testenv.Eventually(10*time.Second, func() bool {
		pids = nil
		procs, err := filepath.Glob("/proc/[0-9]*/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range procs {
			if pid := w.waits(name); pid != 0 {
				pids = append(pids, pid)
			}
		}
		return len(pids) > 0
	})
	return pids
}

// waits returns the number of the process with this status file if it is such a one.
func (w *world) waits(name string) int {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0
	}
	pid, ppid, nspid := statusField(data, "Pid:"), statusField(data, "PPid:"), statusField(data, "NSpid:")
	if len(pid) != 1 || len(ppid) != 1 || len(nspid) != 2 || nspid[1] != "1" {
		return 0
	}
	parent, err := os.ReadFile("/proc/" + ppid[0] + "/status")
	if of := statusField(parent, "PPid:"); err != nil || len(of) != 1 || of[0] != strconv.Itoa(w.daemon.Process.Pid) {
		return 0
	}
	n, err := strconv.Atoi(pid[0])
	if err != nil {
		return 0
	}
	// It has left the host's root, and receives.
	if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root/run/joblet", n)); err != nil {
		return 0
	}
	call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", n))
	if err != nil || !strings.HasPrefix(string(call), strconv.Itoa(unix.SYS_RECVMSG)+" ") {
		return 0
	}
	return n
}

func statusField(status []byte, name string) []string {
	_, rest, ok := strings.Cut("\n"+string(status), "\n"+name)
	if !ok {
		return nil
	}
	line, _, _ := strings.Cut(rest, "\n")
	return strings.Fields(line)
}
