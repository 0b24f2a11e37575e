package runtimes

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// BuildOptions says how to build.
type BuildOptions struct {
	// Force replaces an installed runtime of the same name, unless InUse says
	// that jobs use it. For InUse see Store.Remove.
	Force bool
	InUse func(name string) bool
	// Progress, when not nil, is called from Build's goroutine.
	Progress func(Progress)
	// Log, when not nil, gets the output of apt and dpkg line by line, from
	// Build's goroutine.
	Log func(line string)

	// Mirrors are those that a recipe may name: entries as ValidMirror takes them.
	Mirrors []string
	// Timeout ends a build that takes longer; 0: DefaultBuildTimeout.
	Timeout time.Duration
	// Contain, when not nil, puts a process that is about to become the build
	// into a cgroup with limits, for all it will start. release removes that
	// again, with whatever is still in it.
	Contain func(pid int) (release func() error, err error)
}

// DefaultBuildTimeout is how long a build may take.
const DefaultBuildTimeout = time.Hour

// Phase is a part of a build.
type Phase uint8

// The phases of a build in their order.
const (
	PhasePrepare  Phase = iota + 1 // package lists
	PhaseDownload                  // all packages, before any of their scripts runs
	PhaseBase                      // packages that every system needs
	PhaseInstall                   // the recipe's packages
	PhaseFinish
	Phases = PhaseFinish // how many there are
)

var phaseNames = [...]string{"", "prepare", "download", "base system", "install", "finish"}

// String returns the phase in words.
func (p Phase) String() string {
	if int(p) < len(phaseNames) {
		return phaseNames[p]
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// Progress says how far a build is.
type Progress struct {
	Phase   Phase
	Percent int // of the whole build, estimated; never falls
	Message string
}

const (
	debianMirror   = "http://deb.debian.org/debian"
	securityMirror = "http://deb.debian.org/debian-security"
	debianKeyring  = "/usr/share/keyrings/debian-archive-keyring.gpg"
	mergedUsrHook  = "/usr/share/mmdebstrap/hooks/merged-usr"

	// omitPackage is the package that stands for all that a recipe omits.
	omitPackage = "joblet-omitted"
	// omitVersion satisfies every ">=" a dependency may ask for.
	omitVersion = "9999:1"
)

// dpkg and apt options. An interrupted build leaves nothing, so dpkg need not sync each
// file. Documentation is removed, licences stay.
var bootstrapOptions = []string{
	"--verbose", "--mode=root", "--variant=essential", "--format=directory",
	"--hook-dir=" + mergedUsrHook,
	"--dpkgopt=force-unsafe-io",
	"--dpkgopt=path-exclude=/usr/share/man/*",
	"--dpkgopt=path-exclude=/usr/share/info/*",
	"--dpkgopt=path-exclude=/usr/share/locale/*",
	"--dpkgopt=path-exclude=/usr/share/lintian/*",
	"--dpkgopt=path-exclude=/usr/share/bug/*",
	"--dpkgopt=path-exclude=/usr/share/doc/*",
	"--dpkgopt=path-include=/usr/share/doc/*/copyright",
	`--aptopt=Acquire::Languages "none"`,
	`--aptopt=Acquire::Retries "5"`,
	`--aptopt=Acquire::http::Proxy "http://127.0.0.1:` + fetchAddrPort + `"`,
}

const howToInstall = "apt-get install mmdebstrap debian-archive-keyring"

// Build installs the runtime that recipe describes. It needs root, mmdebstrap
// and a Debian mirror, and takes about a minute. The runtime appears when it
// is complete; when ctx ends, Build fails or its process is killed, nothing of
// it stays (after a kill: once the Store is opened again).
//
// mmdebstrap and all it starts run in a sandbox (sandbox.go) that dies with the
// calling process. What is under construction lies in a directory that is root's
// alone, and belongs to subordinate ids, until finishTree has made it harmless.
//
// Errors: AlreadyExists without Force, FailedPrecondition when the runtime is
// used or being built, when the host can't build, when the mirror is not allowed
// and when packages can't be installed, ResourceExhausted for a full disk
// and when it takes too long.
func (s *Store) Build(ctx context.Context, recipe Recipe, opt BuildOptions) (_ Runtime, err error) {
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultBuildTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opt.Timeout,
		joblet.Errorf(joblet.ResourceExhausted, "timed out after %s (see build-timeout in the daemon's configuration)", joblet.ReadableDuration(opt.Timeout)))
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	defer func() {
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			kind := joblet.KindOf(err)
			if errors.Is(err, unix.ENOSPC) {
				kind = joblet.ResourceExhausted
			}
			err = joblet.Errorf(kind, "cannot build runtime %s: %w", recipe.Name, err)
		}
	}()
	start := time.Now()
	if err := recipe.validate(); err != nil { // a Recipe need not come from ParseRecipe
		return Runtime{}, joblet.Errorf(joblet.InvalidArgument, "%w", err)
	}
	mmdebstrap, version, arch, err := checkHost(ctx, recipe)
	if err != nil {
		return Runtime{}, err
	}
	if err := checkMirror(recipe, opt.Mirrors); err != nil {
		return Runtime{}, err
	}
	final := filepath.Join(s.dir, recipe.Name)
	if err := replaceable(final, recipe.Name, opt); err != nil {
		return Runtime{}, err
	}
	dir, lock, err := s.claim(recipe.Name)
	if err != nil {
		return Runtime{}, err
	}
	published := false
	defer func() {
		if !published {
			err = errors.Join(err, discard(dir))
		}
		_ = lock.Close()
	}()
	base, giveBack, ok := s.ids.take()
	if !ok {
		return Runtime{}, joblet.Errorf(joblet.ResourceExhausted, "%d other builds are running: try again when one has ended", maxBuilds)
	}
	defer giveBack()

	p := progress{report: opt.Progress}
	p.at(PhasePrepare, 0, "prepare")
	stopWatch := watchDisk(ctx, lock, abort)
	err = bootstrap(ctx, mmdebstrap, dir, base, recipe, &p, opt)
	stopWatch()
	if err != nil {
		return Runtime{}, err
	}
	p.at(PhaseFinish, 96, "finish the tree")
	rootfs := filepath.Join(dir, rootFSName)
	if err := os.Rename(filepath.Join(dir, boxName, rootFSName), rootfs); err != nil {
		return Runtime{}, fmt.Errorf("cannot finish the tree: %w", err)
	}
	if err := finishTree(rootfs, base, recipe); err != nil {
		return Runtime{}, fmt.Errorf("cannot finish the tree: %w", err)
	}
	rt := Runtime{
		Format: format, Name: recipe.Name, Version: recipe.Version, Description: recipe.Description,
		Language: recipe.Language, LanguageVersion: recipe.LanguageVersion,
		Suite: recipe.Suite, Architecture: arch, Environment: recipe.Environment, Test: recipe.Test,
		BuiltWith: version, Recipe: string(recipe.source),
	}
	installed, err := installedPackages(rootfs)
	if err != nil {
		return Runtime{}, err
	}
	rt.Packages, rt.Installed = withVersions(installed, recipe.Packages), withVersions(installed, nil)
	if rt.SizeBytes, rt.Files, err = measure(rootfs); err != nil {
		return Runtime{}, err
	}
	sum := sha256.Sum256(recipe.source)
	rt.RecipeSHA256 = hex.EncodeToString(sum[:])
	rt.BuiltAt, rt.BuildTime = time.Now().UTC().Truncate(time.Second), time.Since(start).Round(time.Millisecond)
	if err := s.writeMeta(dir, rt); err != nil {
		return Runtime{}, err
	}
	p.at(PhaseFinish, 98, "write to disk")
	if err := unix.Syncfs(int(lock.Fd())); err != nil {
		return Runtime{}, os.NewSyscallError("syncfs", err)
	}
	if err := ctx.Err(); err != nil {
		return Runtime{}, err
	}
	if err := lock.Chmod(0o755); err != nil { // jobs may see it now
		return Runtime{}, err
	}
	old, err := s.publish(dir, final, recipe.Name, opt)
	if err != nil {
		return Runtime{}, err
	}
	published = true
	if old != "" {
		if err := removeTree(old); err != nil {
			return Runtime{}, fmt.Errorf("cannot remove the old tree: %w", err)
		}
	}
	p.at(PhaseFinish, 100, "done")
	return s.Get(recipe.Name)
}

// watchDisk ends a build before it fills the disk that the records of jobs are on.
func watchDisk(ctx context.Context, dir *os.File, abort context.CancelCauseFunc) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			var st unix.Statfs_t
			if err := unix.Fstatfs(int(dir.Fd()), &st); err == nil {
				size, free := st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
				if free < min(size/20, diskReserve) {
					abort(joblet.Errorf(joblet.ResourceExhausted, "only %d MiB are free on the disk of the runtimes, the minimum that a build leaves: free space there", free>>20))
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() { cancel(); watch.Wait() }
}

// diskReserve is what a build leaves of a disk, or a twentieth of a small one.
const diskReserve = 512 << 20

func checkHost(ctx context.Context, recipe Recipe) (mmdebstrap, version, arch string, err error) {
	arch = debianArch(runtime.GOARCH)
	if len(recipe.Architectures) > 0 && !slices.Contains(recipe.Architectures, arch) {
		return "", "", "", joblet.Errorf(joblet.FailedPrecondition, "the recipe supports %s, and this host is %s", strings.Join(recipe.Architectures, ", "), arch)
	}
	if os.Geteuid() != 0 {
		return "", "", "", joblet.Errorf(joblet.FailedPrecondition, "only root can build runtimes")
	}
	if mmdebstrap, err = exec.LookPath("mmdebstrap"); err != nil {
		return "", "", "", joblet.Errorf(joblet.FailedPrecondition, "mmdebstrap is not installed: %s", howToInstall)
	}
	for _, p := range []string{debianKeyring, mergedUsrHook} {
		if _, err := os.Stat(p); err != nil {
			return "", "", "", joblet.Errorf(joblet.FailedPrecondition, "%w: %s", err, howToInstall)
		}
	}
	out, err := exec.CommandContext(ctx, mmdebstrap, "--version").Output()
	if err != nil {
		return "", "", "", fmt.Errorf("cannot run mmdebstrap --version: %w", err)
	}
	version, _, _ = strings.Cut(string(out), "\n")
	return mmdebstrap, version[:min(len(version), 100)], arch, nil
}

func debianArch(goarch string) string {
	switch goarch {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	default: // amd64, arm64, riscv64, s390x, loong64 are called the same
		return goarch
	}
}

func replaceable(final, name string, opt BuildOptions) error {
	_, err := os.Lstat(final)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !opt.Force:
		return joblet.Errorf(joblet.AlreadyExists, "it is already installed: replace it with --force")
	}
	if mounts, err := mountsBelow(final); err != nil {
		return err
	} else if len(mounts) > 0 {
		return joblet.Errorf(joblet.FailedPrecondition, "%s is a mount point: unmount it first", mounts[0])
	}
	return refuseInUse(name, opt.InUse)
}

// publish gives the finished tree in dir its name. It returns where the tree
// that had the name is now, if there was one.
func (s *Store) publish(dir, final, name string, opt BuildOptions) (old string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := replaceable(final, name, opt); err != nil {
		return "", err
	}
	err = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		// For a moment the old tree has the name of a build: the lock says that
		// it is not an abandoned one.
		lock, err := lockDir(final)
		if err != nil {
			return "", fmt.Errorf("cannot replace the old tree: %w", err)
		}
		defer func() { _ = lock.Close() }()
		if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE); err != nil {
			return "", &os.LinkError{Op: "exchange", Old: dir, New: final, Err: err}
		}
		old = s.trashPath()
		if err := unix.Rename(dir, old); err != nil {
			old = dir
		}
	} else if err != nil {
		return "", &os.LinkError{Op: "rename", Old: dir, New: final, Err: err}
	}
	s.forget(name)
	if d, err := os.Open(s.dir); err == nil { // the name, too, must survive a power failure
		_ = d.Sync()
		_ = d.Close()
	}
	return old, nil
}

// writeMeta writes runtime.yaml and removes what the build needed beside the
// tree.
func (s *Store) writeMeta(dir string, rt Runtime) error {
	data, err := yaml.Marshal(rt)
	if err != nil {
		return fmt.Errorf("cannot encode %s: %w", metaFile, err)
	}
	if len(data) > maxMetaSize {
		return fmt.Errorf("%s would be %d bytes long: at most %d are possible", metaFile, len(data), maxMetaSize)
	}
	if err := os.WriteFile(filepath.Join(dir, metaFile), data, 0o644); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != metaFile && e.Name() != rootFSName {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// harmless returns a line of a script's output as it may go to terminals and logs.
func harmless(line string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, line)
}

// boxName is the part of a build directory that the sandbox gets.
const boxName = "box"

// bootstrap runs mmdebstrap in a sandbox until dir/box/rootfs holds the installed
// packages.
func bootstrap(ctx context.Context, mmdebstrap, dir string, base uint32, recipe Recipe, p *progress, opt BuildOptions) (err error) {
	box := filepath.Join(dir, boxName)
	sources := sourcesFor(recipe, "/")
	fetch, err := newFetcher(sources, opt.Mirrors, hostProxy(ctx))
	if err != nil {
		return err
	}
	defer fetch.close()
	args, err := fillBox(ctx, box, base, recipe, insideSources(sources))
	if err != nil {
		return err
	}

	// The sandbox dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	toolDir := toolDirOf(mmdebstrap)
	sb, err := startSandbox(box, toolDir, base, w)
	_ = w.Close()
	if err != nil {
		return err
	}
	stopKill := context.AfterFunc(ctx, sb.kill)
	defer stopKill()
	waited := false
	defer func() {
		if !waited {
			sb.kill()
			_ = sb.cmd.Wait()
		}
	}()
	if opt.Contain != nil {
		release, containErr := opt.Contain(sb.cmd.Process.Pid)
		if containErr != nil {
			return fmt.Errorf("cannot limit the build: %w", containErr)
		}
		defer func() { err = errors.Join(err, release()) }()
		defer sb.kill()
	}
	l, err := sb.listen()
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = fetch.server.Serve(l) }) // until close
	defer serving.Wait()
	defer fetch.close()
	if err := sb.release(sandboxConfig{ToolDir: toolDir, Path: mmdebstrap, Args: args, Env: []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "TMPDIR=" + sandboxDir + "/tmp",
	}}); err != nil {
		return err
	}

	var failure failureLines
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := harmless(lines.Text())
		p.line(line)
		failure.line(line)
		if opt.Log != nil {
			opt.Log(line)
		}
	}
	_, _ = io.Copy(io.Discard, r) // behind a line that is too long
	err = sb.cmd.Wait()
	waited = true
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failure.noSpace {
			return joblet.Errorf(joblet.ResourceExhausted, "mmdebstrap failed: no space left on device")
		}
		return joblet.Errorf(joblet.FailedPrecondition, "mmdebstrap failed: %w%s", err, failure.text())
	}
	return nil
}

// fillBox makes the directory that the sandbox gets, for its own ids, and returns
// mmdebstrap's arguments.
func fillBox(ctx context.Context, box string, base uint32, recipe Recipe, sources []aptSource) ([]string, error) {
	if err := errors.Join(os.Mkdir(box, 0o755), os.Chmod(box, 0o755)); err != nil {
		return nil, err
	}
	text := sourcesText(sources, recipe.Components)
	include := append([]string{"usr-is-merged"}, recipe.Packages...)
	if len(recipe.Omit) > 0 {
		if err := writeOmitted(ctx, filepath.Join(box, "omitted"), recipe.Omit); err != nil {
			return nil, err
		}
		text += "\nTypes: deb\nURIs: copy:" + sandboxDir + "/omitted\nSuites: ./\nTrusted: yes\n"
		include = append([]string{omitPackage}, include...)
	}
	tmp := filepath.Join(box, "tmp")
	download := fmt.Sprintf(downloadScript, strings.Join(include, " "), sealURL)
	if err := errors.Join(
		os.WriteFile(filepath.Join(box, "debian.sources"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(box, "download"), []byte(download), 0o755),
		os.Mkdir(tmp, 0o755),
	); err != nil {
		return nil, err
	}
	for _, p := range []string{box, tmp} {
		if err := os.Lchown(p, int(base), int(base)); err != nil {
			return nil, err
		}
	}
	return append(slices.Clone(bootstrapOptions), "--extract-hook="+sandboxDir+"/download", "--include="+strings.Join(include, ","),
		"--", recipe.Suite, sandboxDir+"/"+rootFSName, sandboxDir+"/debian.sources"), nil
}

// downloadScript gets all packages while none of their scripts has run, and has the
// fetcher sealed then. Names of packages hold nothing that a shell would change.
const downloadScript = `#!/bin/sh
set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get --yes --download-only install %s
/usr/lib/apt/apt-helper download-file %s /tmp/sealed >/dev/null
`

// sourcesFor returns where a recipe's packages come from. root is where the host's
// own configuration is.
func sourcesFor(r Recipe, root string) []aptSource {
	var list []aptSource
	switch {
	case r.Mirror != "":
		list = []aptSource{{r.Mirror, r.Suite}}
	default:
		list = hostSources(root, r.Suite, r.Components)
	}
	if len(list) == 0 {
		list = []aptSource{{debianMirror, r.Suite}}
		if r.Suite != "sid" && r.Suite != "unstable" {
			list = append(list, aptSource{debianMirror, r.Suite + "-updates"}, aptSource{securityMirror, r.Suite + "-security"})
		}
	}
	return list
}

// sourcesText returns sources in deb822 form (see sources.list(5)).
func sourcesText(list []aptSource, components []string) string {
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: %s\n\n", s.uri, s.suite, strings.Join(components, " "), debianKeyring)
	}
	return b.String()
}

type aptSource struct{ uri, suite string }

// hostSources returns where a Debian host itself gets suite from, with its
// updates, so that a mirror in the house is used. Sources that are not
// Debian's own are left out; nil means that the host does not have suite.
func hostSources(root, suite string, components []string) []aptSource {
	release, err := os.ReadFile(filepath.Join(root, "etc/os-release"))
	if err != nil || !slices.Contains(strings.Split(string(release), "\n"), "ID=debian") {
		return nil
	}
	var found []aptSource
	add := func(types, uris, suites, comps []string, signedBy string) {
		if !slices.Contains(types, "deb") || signedBy != "" && !strings.HasPrefix(filepath.Base(signedBy), "debian-archive-") {
			return
		}
		if slices.ContainsFunc(components, func(c string) bool { return !slices.Contains(comps, c) }) {
			return
		}
		for _, u := range uris {
			for _, s := range suites {
				if (s == suite || s == suite+"-updates" || s == suite+"-security") && matches(mirrorRE, u) && !slices.Contains(found, aptSource{u, s}) {
					found = append(found, aptSource{u, s})
				}
			}
		}
	}
	files, _ := filepath.Glob(filepath.Join(root, "etc/apt/sources.list.d/*"))
	for _, file := range append([]string{filepath.Join(root, "etc/apt/sources.list")}, files...) {
		data, err := os.ReadFile(file)
		if err != nil || len(data) > 1<<20 {
			continue
		}
		switch filepath.Ext(file) {
		case ".sources":
			for stanza := range strings.SplitSeq(string(data), "\n\n") {
				field := deb822(stanza)
				if strings.EqualFold(field["enabled"], "no") {
					continue
				}
				add(strings.Fields(field["types"]), strings.Fields(field["uris"]), strings.Fields(field["suites"]), strings.Fields(field["components"]), field["signed-by"])
			}
		case ".list":
			for line := range strings.Lines(string(data)) {
				line, _, _ = strings.Cut(line, "#")
				m := oneLineSource.FindStringSubmatch(strings.TrimSpace(line))
				if m == nil {
					continue
				}
				signedBy := ""
				for o := range strings.FieldsSeq(m[1]) {
					if v, ok := strings.CutPrefix(o, "signed-by="); ok {
						signedBy = v
					}
				}
				add([]string{"deb"}, []string{m[2]}, []string{m[3]}, strings.Fields(m[4]), signedBy)
			}
		}
	}
	if !slices.ContainsFunc(found, func(s aptSource) bool { return s.suite == suite }) {
		return nil
	}
	return found
}

var oneLineSource = regexp.MustCompile(`^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$`)

// deb822 returns the fields of a stanza by lower-case name, with their
// continuation lines.
func deb822(stanza string) map[string]string {
	fields := map[string]string{}
	key := ""
	for line := range strings.SplitSeq(stanza, "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
			fields[key] += "\n" + strings.TrimSpace(line)
		default:
			k, v, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(k))
			fields[key] = strings.TrimSpace(v)
		}
	}
	return fields
}

// writeOmitted writes a package repository with the one package that stands
// for names: it provides them, so that what depends on them can be installed,
// and conflicts with the real ones.
func writeOmitted(ctx context.Context, repo string, names []string) error {
	provides := make([]string, len(names))
	for i, n := range names {
		provides[i] = n + " (= " + omitVersion + ")"
	}
	control := "Package: " + omitPackage + "\nVersion: 1\nArchitecture: all\nMaintainer: Joblet <root@localhost>\n" +
		"Provides: " + strings.Join(provides, ", ") + "\nConflicts: " + strings.Join(names, ", ") + "\n" +
		"Description: stands for packages that a runtime leaves out\n"
	debian := filepath.Join(repo, "package/DEBIAN")
	deb := filepath.Join(repo, omitPackage+".deb")
	if err := os.MkdirAll(debian, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(debian, "control"), []byte(control), 0o644); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "--root-owner-group", "-Zgzip", "--build", filepath.Dir(debian), deb).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, strings.TrimSpace(string(out)))
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		return err
	}
	index := fmt.Sprintf("%sFilename: ./%s\nSize: %d\nSHA256: %x\n", control, filepath.Base(deb), len(data), sha256.Sum256(data))
	return os.WriteFile(filepath.Join(repo, "Packages"), []byte(index), 0o644)
}

// failureLines keeps what explains a failure: the first errors, and the last
// lines when there are none.
type failureLines struct {
	errors, last []string
	noSpace      bool
}

func (f *failureLines) line(l string) {
	const keep = 6
	if len(l) > 400 {
		l = strings.ToValidUTF8(l[:400], "") + "…"
	}
	f.noSpace = f.noSpace || strings.Contains(l, "No space left on device")
	isError := strings.HasPrefix(l, "E: ") || strings.HasPrefix(l, "dpkg: error") || strings.HasPrefix(l, "Err:")
	switch {
	case !isError || len(f.errors) == keep:
	case strings.Contains(l, " copy:"): // apt tries every compression of the omitted packages' index
	case strings.HasPrefix(l, "E: setup failed: ") || l == "E: mmdebstrap failed to run": // says what was run, not why it failed
	default:
		f.errors = append(f.errors, l)
	}
	if f.last = append(f.last, l); len(f.last) > keep {
		f.last = f.last[1:]
	}
}

func (f *failureLines) text() string {
	lines := f.errors
	if len(lines) == 0 {
		lines = f.last
	}
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines, "; ")
}

// progress turns the output of mmdebstrap, apt and dpkg into steps. The shares
// of the phases are those of a build of python-3.11-ml.
type progress struct {
	report func(Progress)
	phase  Phase
	last   int // percent
	total  int // packages that apt is about to install
	done   int // steps of that: a package has two, unpack and set up
}

var (
	newlyInstalled = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)
	getPackage     = regexp.MustCompile(`^Get:(\d+) \S+ \S+/\S+ \S+ (\S+) `)
	packageStep    = regexp.MustCompile(`^(Unpacking|Setting up) ([^ :]+)`)
)

func (p *progress) at(phase Phase, percent int, message string) {
	p.phase = phase
	p.last = max(p.last, min(percent, 100))
	if p.report != nil {
		p.report(Progress{phase, p.last, message})
	}
}

func (p *progress) line(l string) {
	if msg, ok := strings.CutPrefix(l, "I: "); ok {
		switch {
		case strings.HasPrefix(msg, "running apt-get update"):
			p.at(PhasePrepare, 1, "update package lists")
		case strings.HasPrefix(msg, "downloading packages"):
			p.at(PhaseDownload, 4, "download base system")
		case strings.HasPrefix(msg, "extracting archives"):
			p.at(PhaseDownload, 12, "extract base system")
		case strings.HasPrefix(msg, "running --extract-hook"):
			p.total = 0
			p.at(PhaseDownload, 16, "resolve dependencies")
		case strings.HasPrefix(msg, "installing essential"):
			p.at(PhaseBase, 25, "install base system")
		case strings.HasPrefix(msg, "installing remaining"):
			p.at(PhaseInstall, 35, "install packages")
		case strings.HasPrefix(msg, "cleaning package lists"):
			p.at(PhaseFinish, 95, "clean up")
		}
		return
	}
	if m := newlyInstalled.FindStringSubmatch(l); m != nil {
		p.total, _ = strconv.Atoi(m[1])
		p.done = 0
		return
	}
	if p.total == 0 || p.phase != PhaseDownload && p.phase != PhaseInstall {
		return
	}
	if m := getPackage.FindStringSubmatch(l); m != nil && p.phase == PhaseDownload {
		n, _ := strconv.Atoi(m[1])
		n = min(n, p.total)
		from := 4 // the base system
		if p.last >= 16 {
			from = 17
		}
		p.at(PhaseDownload, from+8*n/p.total, fmt.Sprintf("download %s (%d of %d)", m[2], n, p.total))
	} else if m := packageStep.FindStringSubmatch(l); m != nil && p.phase == PhaseInstall {
		p.done = min(p.done+1, 2*p.total)
		verb := "unpack"
		if m[1] != "Unpacking" {
			verb = "set up"
		}
		p.at(PhaseInstall, 35+60*p.done/(2*p.total), verb+" "+m[2])
	}
}
