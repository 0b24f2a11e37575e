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
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

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
}

// Phase is a part of a build.
type Phase uint8

// The phases of a build in their order.
const (
	PhasePrepare  Phase = iota + 1 // package lists
	PhaseBase                      // packages that every system needs
	PhaseDownload                  // the recipe's packages
	PhaseInstall
	PhaseFinish
	Phases = PhaseFinish // how many there are
)

var phaseNames = [...]string{"", "prepare", "base system", "download", "install", "finish"}

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

// dpkg and apt options. A build that is cut short leaves nothing, so dpkg need
// not sync each file. Documentation goes, licences stay.
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
}

const howToInstall = "apt-get install mmdebstrap debian-archive-keyring"

// Build installs the runtime that recipe describes. It needs root, mmdebstrap
// and a Debian mirror, and takes about a minute. The runtime appears when it
// is complete; when ctx ends, Build fails or its process is killed, nothing of
// it stays (after a kill: once the Store is opened again).
//
// mmdebstrap with all it starts runs in PID and mount namespaces of its own,
// and dies with the calling process.
//
// Errors: AlreadyExists without Force, FailedPrecondition when the runtime is
// used or being built, when the host can't build, and when packages can't be
// installed, ResourceExhausted for a full disk.
func (s *Store) Build(ctx context.Context, recipe Recipe, opt BuildOptions) (_ Runtime, err error) {
	defer func() {
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			kind := joblet.KindOf(err)
			if errors.Is(err, unix.ENOSPC) {
				kind = joblet.ResourceExhausted
			}
			err = joblet.Errorf(kind, "build runtime %s: %w", recipe.Name, err)
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

	p := progress{report: opt.Progress}
	p.at(PhasePrepare, 0, "prepare")
	rootfs := filepath.Join(dir, rootFSName)
	if err := bootstrap(ctx, mmdebstrap, dir, recipe, &p, opt.Log); err != nil {
		return Runtime{}, err
	}
	p.at(PhaseFinish, 96, "finish the tree")
	if err := finishTree(rootfs, recipe); err != nil {
		return Runtime{}, fmt.Errorf("finish the tree: %w", err)
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
	old, err := s.publish(dir, final, recipe.Name, opt)
	if err != nil {
		return Runtime{}, err
	}
	published = true
	if old != "" {
		if err := removeTree(old); err != nil {
			return Runtime{}, fmt.Errorf("remove the old tree: %w", err)
		}
	}
	p.at(PhaseFinish, 100, "done")
	return s.Get(recipe.Name)
}

func checkHost(ctx context.Context, recipe Recipe) (mmdebstrap, version, arch string, err error) {
	arch = debianArch(runtime.GOARCH)
	if len(recipe.Architectures) > 0 && !slices.Contains(recipe.Architectures, arch) {
		return "", "", "", joblet.Errorf(joblet.FailedPrecondition, "the recipe is for %s, this host is %s", strings.Join(recipe.Architectures, ", "), arch)
	}
	if os.Geteuid() != 0 {
		return "", "", "", joblet.Errorf(joblet.FailedPrecondition, "only root can install packages into a tree")
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
		return "", "", "", fmt.Errorf("run mmdebstrap --version: %w", err)
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
		return joblet.Errorf(joblet.AlreadyExists, "it is installed: --force replaces it")
	}
	if mounts, err := mountsBelow(final); err != nil {
		return err
	} else if len(mounts) > 0 {
		return joblet.Errorf(joblet.FailedPrecondition, "%s is a mount point", mounts[0])
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
			return "", fmt.Errorf("replace the old tree: %w", err)
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
	if d, err := os.Open(s.dir); err == nil { // the name too shall survive a power cut
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
		return fmt.Errorf("encode %s: %w", metaFile, err)
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

// bootstrap runs mmdebstrap until dir/rootfs holds the installed packages.
func bootstrap(ctx context.Context, mmdebstrap, dir string, recipe Recipe, p *progress, log func(string)) error {
	sources := sourcesFor(recipe, "/")
	include := append([]string{"usr-is-merged"}, recipe.Packages...)
	if len(recipe.Omit) > 0 {
		repo := filepath.Join(dir, "omitted")
		if err := writeOmitted(ctx, repo, recipe.Omit); err != nil {
			return err
		}
		sources += "\nTypes: deb\nURIs: copy:" + repo + "\nSuites: ./\nTrusted: yes\n"
		include = append([]string{omitPackage}, include...)
	}
	sourcesFile := filepath.Join(dir, "debian.sources")
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.WriteFile(sourcesFile, []byte(sources), 0o644), os.Mkdir(tmp, 0o755)); err != nil {
		return err
	}

	args := append(slices.Clone(bootstrapOptions), "--include="+strings.Join(include, ","), "--", recipe.Suite, filepath.Join(dir, rootFSName), sourcesFile)
	cmd := exec.CommandContext(ctx, mmdebstrap, args...)
	cmd.Dir = "/"
	cmd.Env = append(proxyEnv(ctx),
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// As PID 1 of a PID namespace mmdebstrap takes apt, dpkg and the
		// packages' scripts with it, and its mounts vanish with the mount
		// namespace. Unshareflags, other than Cloneflags, makes that private.
		Cloneflags:   syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	// Pdeathsig fires when the thread that forked ends (go.dev/issue/27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start mmdebstrap: %w", err)
	}
	var failure failureLines
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.ToValidUTF8(lines.Text(), "\uFFFD")
		p.line(line)
		failure.line(line)
		if log != nil {
			log(line)
		}
	}
	_, _ = io.Copy(io.Discard, r) // behind a line that is too long
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failure.noSpace {
			return joblet.Errorf(joblet.ResourceExhausted, "mmdebstrap: no space left on device")
		}
		return joblet.Errorf(joblet.FailedPrecondition, "mmdebstrap: %w%s", err, failure.text())
	}
	return nil
}

// sourcesFor returns the apt sources of a recipe in deb822 form (see
// sources.list(5)). root is where the host's own configuration is.
func sourcesFor(r Recipe, root string) string {
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
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: %s\n\n", s.uri, s.suite, strings.Join(r.Components, " "), debianKeyring)
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

// proxyEnv returns the proxy settings of the environment or, without any, of
// the host's apt, which mmdebstrap does not look at.
func proxyEnv(ctx context.Context) []string {
	var env []string
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	if len(env) > 0 {
		return env
	}
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%v%n", "Acquire::http::Proxy").Output()
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(out), "\n")
	proxy := strings.TrimSpace(first)
	if u, err := url.Parse(proxy); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil
	}
	return []string{"http_proxy=" + proxy}
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
			p.at(PhaseBase, 4, "download base system")
		case strings.HasPrefix(msg, "extracting archives"):
			p.at(PhaseBase, 8, "extract base system")
		case strings.HasPrefix(msg, "installing essential"):
			p.at(PhaseBase, 16, "install base system")
		case strings.HasPrefix(msg, "installing remaining"):
			p.at(PhaseDownload, 26, "resolve dependencies")
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
	if p.total == 0 || p.phase < PhaseDownload {
		return
	}
	if m := getPackage.FindStringSubmatch(l); m != nil && p.phase == PhaseDownload {
		n, _ := strconv.Atoi(m[1])
		n = min(n, p.total)
		p.at(PhaseDownload, 27+8*n/p.total, fmt.Sprintf("download %s (%d of %d)", m[2], n, p.total))
	} else if m := packageStep.FindStringSubmatch(l); m != nil {
		p.done = min(p.done+1, 2*p.total)
		verb := "unpack"
		if m[1] != "Unpacking" {
			verb = "set up"
		}
		p.at(PhaseInstall, 35+60*p.done/(2*p.total), verb+" "+m[2])
	}
}
