package rootfs

import (
	"bufio"
	"bytes"
	"crypto/md5" //nolint:gosec // what dpkg records
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/sandbox"
)

// A job without a runtime sees a copy of files of the host's /etc. What may be in it is
// decided file by file, of those that are root's and that everybody may read:
//
//   - A configuration file that is as a package brought it: dpkg keeps the checksums. It
//     is public, whatever it is called.
//   - A file below one of hostEtc, which hold no secrets: they describe the system. Of
//     hostEtcText, a file in which no line looks as if it held one.
//   - A symbolic link to one of these, or to what a job sees elsewhere.
//
// Names that are typical of secrets, or of what tells hosts apart, are never shown
// (etcDenied).

// hostEtc are files of /etc, and directories with all that is in them. The elements are
// patterns (path.Match). Those of hostEtcText are configuration, in which an administrator may
// have written anything.
var (
	hostEtc = splitPatterns(
		// How libraries and programs are found.
		"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "shells", "OpenCL/vendors", "glvnd", "vulkan", "egl",
		// Certificate authorities, and what Java allows of cryptography.
		"ssl/certs", "ca-certificates", "ca-certificates.conf", "pki/tls/certs", "pki/tls/cert.pem", "pki/ca-trust/extracted", "crypto-policies", "java-*-openjdk/security",
		// The system, its language and its time.
		"os-release", "*-release", "*_version", "localtime", "timezone", "locale.conf", "locale.gen", "locale.alias", "default/locale", "papersize",
		// Names and numbers of protocols, kinds of files, fonts and terminals.
		"protocols", "services", "networks", "rpc", "ethertypes", "netconfig", "mime.types", "*/mime.types", "magic", "magic.mime", "terminfo", "fonts",
	)
	hostEtcText = splitPatterns(
		"ssl/openssl.cnf", "pki/tls/openssl.cnf", "gnutls", "inputrc", "mailcap", "xml",
		"python3", "python3.*", "perl", "java-*-openjdk", "R/Renviron", "texmf", "ImageMagick-*", "manpath.config", "man_db.conf", "groff",
	)
)

// etcDenied are patterns of names, of which none may match a file or a directory above
// it. Lower case stands for both.
var etcDenied = []string{
	// Secrets.
	"*passwd*", "*password*", "*shadow*", "*secret*", "*credential*", "*token*", "*private*", "*keytab*", "*keyring*", "*keystore*",
	"*htpasswd*", "*netrc*", "*pgpass*", "*bindpw*", "*apikey*", "*api_key*", "*api-key*", "*auth.conf*", "*authinfo*", "authorized_keys*",
	"*.key", "*.p12", "*.pfx", "*.jks", "*.kdb", "*.kdbx", "*.ppk", "*.p8", "*.pk8", "*.gpg", "*.pgp", "*.asc", "id_*", "ssh_host_*", "pip.conf", "npmrc", "gitconfig", "yarnrc*",
	"sudoers*", "doas*", "crypttab*", "wireguard", "openvpn", "ipsec*", "strongswan*", "swanctl", "ppp", "wpa_supplicant*",
	"networkmanager", "netplan", "kubernetes", "rancher", "docker", "containers", "containerd", "letsencrypt", "ceph", "vault*", "debian.cnf",
	"*sources.list*", "apt", "yum.repos.d", "environment*", "cron*", "anacron*", "krb5*", "sssd", "ldap*", "*ldap.conf", "odbc.ini",
	// What tells this host from others.
	"machine-id", "hostid", "hostname", "hosts", "resolv.conf", "mailname", "initiatorname*", "adjtime", "fstab", "mtab", "exports",
	"ssl-cert-snakeoil*", "localhost.crt", "localhost.pem", "subuid*", "subgid*", "group", "nsswitch.conf", "host.conf",
	// Copies, whose modes no administrator keeps.
	"*~", "*-", "*.bak", "*.old", "*.orig", "*.save", "*.swp", "*.dpkg-*", "*.ucf-*", "*.rpm*", "#*",
}

// etcSecrets are words in a line that may be about a secret.
var etcSecrets = []string{
	"passw", "_pass", "passphrase", "secret", "token", "credential", "bindpw", "apikey", "api_key", "api-key", "private_key", "privatekey", "access_key", "accesskey",
}

func splitPatterns(list ...string) (patterns [][]string) {
	for _, p := range list {
		patterns = append(patterns, strings.Split(p, "/"))
	}
	return patterns
}

// matches reports whether one of the patterns is that of a name or of a directory above
// it.
func matches(patterns [][]string, name string) bool {
	elems := strings.Split(name, "/")
	return slices.ContainsFunc(patterns, func(pattern []string) bool {
		if len(elems) < len(pattern) {
			return false
		}
		for i, p := range pattern {
			if ok, _ := path.Match(p, elems[i]); !ok {
				return false
			}
		}
		return true
	})
}

func isEtcDenied(elem string) bool {
	elem = strings.ToLower(elem)
	return slices.ContainsFunc(etcDenied, func(p string) bool {
		ok, _ := path.Match(p, elem)
		return ok
	})
}

// etcExample matches lines of usual configuration files that seem to hold a secret, and
// hold an example that all have: of openssl.cnf and of ImageMagick's policy.xml.
var etcExample = regexp.MustCompile(`^(\[[^]"]*\]( #.*)?|challengepassword\S*\s*=.*|[a-z_]*\s*=\s*(\$[a-z_{(][^$]*|secret|pass:insta( .*)?|# .*)|.*name="shared-secret" value="passphrase".*)$`)

// etcComment matches the beginning of a line that is a remark.
var etcComment = regexp.MustCompile(`^[#;%]+\s*`)

// etcLogin matches a name and a password in front of a host.
var etcLogin = regexp.MustCompile(`://[^/@\s]*:[^/@\s]*@`)

// hasPrivateKey reports whether a text holds a private key in PEM form.
func hasPrivateKey(data []byte) bool { return bytes.Contains(data, []byte("PRIVATE KEY-----")) }

// hasSecret reports whether a text may hold a secret. A remark may if it has a value.
func hasSecret(data []byte) bool {
	for line := range bytes.Lines(data) {
		line = bytes.ToLower(bytes.TrimSpace(line))
		remark := etcComment.Find(line)
		line = line[len(remark):]
		if etcExample.Match(line) {
			continue
		}
		if etcLogin.Match(line) {
			return true
		}
		about := line
		if at := bytes.IndexAny(line, "=:"); at >= 0 {
			key := bytes.TrimSpace(line[:at])
			if bytes.Equal(key, []byte("pin")) || bytes.HasSuffix(key, []byte("_pin")) || bytes.HasSuffix(key, []byte(".pin")) {
				return true
			}
			if len(remark) > 0 {
				about = key
			}
		} else if len(remark) > 0 {
			continue
		}
		about = bytes.ReplaceAll(about, []byte("passive"), nil)
		if slices.ContainsFunc(etcSecrets, func(word string) bool { return bytes.Contains(about, []byte(word)) }) {
			return true
		}
	}
	return false
}

// Bounds of the copy, and of looking for what is in it.
const (
	maxEtcBytes = 64 << 20
	maxEtcFile  = 8 << 20
	maxEtcFiles = 8192
	maxEtcSeen  = 50000
	maxEtcDepth = 16
	maxEtcDirs  = 4096
)

// dpkgStatus has the checksums of configuration files.
const dpkgStatus = "var/lib/dpkg/status"

// etcScan looks for what jobs may see of a host's /etc.
type etcScan struct {
	root  string                    // of the host
	pkgs  map[string][md5.Size]byte // checksums by name below /etc
	watch int                       // an inotify instance for each directory; -1: none

	files map[string]etcFile
	links map[string]string // all of them
	dirs  map[string]bool   // with something in them

	seen, watched int
	left          int64
	full          bool // something was left out
	unwatched     bool
}

type etcFile struct {
	data []byte
	exec bool
	sum  [sha256.Size]byte
}

// scanEtc looks at the host's /etc. The checksums are those of readConffiles.
func scanEtc(root string, pkgs map[string][md5.Size]byte, watch int) *etcScan {
	s := &etcScan{
		root: root, pkgs: pkgs, watch: watch, left: maxEtcBytes,
		files: map[string]etcFile{}, links: map[string]string{}, dirs: map[string]bool{},
	}
	fd, err := unix.Open(filepath.Join(root, "etc"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.unwatched = true
		return s
	}
	s.dir(os.NewFile(uintptr(fd), "etc"), "", 0)
	s.keepLinks()
	return s
}

// dir looks at an open directory, and closes it.
func (s *etcScan) dir(d *os.File, name string, depth int) {
	defer d.Close()
	s.addWatch(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
	entries, err := d.ReadDir(-1)
	if err != nil && len(entries) == 0 {
		return
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if s.seen++; s.seen > maxEtcSeen {
			s.full = true
			return
		}
		below := path.Join(name, e.Name())
		if _, ofPackage := s.pkgs[below]; isEtcDenied(e.Name()) || e.Name()[0] == '.' && !ofPackage {
			continue
		}
		switch {
		case e.IsDir():
			if depth == maxEtcDepth {
				s.full = true
				continue
			}
			if sub := s.open(d, e.Name(), unix.O_DIRECTORY, 0o005); sub != nil {
				s.dir(sub, below, depth+1)
			}
		case e.Type()&os.ModeSymlink != 0:
			var to [unix.PathMax]byte
			if n, err := unix.Readlinkat(int(d.Fd()), e.Name(), to[:]); err == nil {
				s.links[below] = string(to[:n])
			}
		case e.Type().IsRegular():
			s.file(d, e.Name(), below)
		}
	}
}

// open opens what is root's and what everybody may use with the given permissions.
func (s *etcScan) open(d *os.File, name string, flags uint64, perm uint32) *os.File {
	fd, err := unix.Openat2(int(d.Fd()), name, &unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Uid != 0 || st.Mode&perm != perm {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

func (s *etcScan) file(d *os.File, name, below string) {
	sum, ofPackage := s.pkgs[below]
	data, text := matches(hostEtc, below), matches(hostEtcText, below)
	if !ofPackage && !data && !text {
		return
	}
	f := s.open(d, name, 0, 0o004)
	if f == nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	if size := info.Size(); size > maxEtcFile || size > s.left || len(s.files) == maxEtcFiles {
		s.full = true
		return
	}
	content, err := io.ReadAll(io.LimitReader(f, maxEtcFile))
	if err != nil || hasPrivateKey(content) {
		return
	}
	unchanged := ofPackage && md5.Sum(content) == sum //nolint:gosec // as above
	if !unchanged && !data && (!text || hasSecret(content)) {
		return
	}
	s.left -= int64(len(content))
	s.files[below] = etcFile{content, info.Mode()&0o111 != 0, sha256.Sum256(content)}
	s.addDirs(below)
}

func (s *etcScan) addDirs(name string) {
	for dir := path.Dir(name); dir != "." && !s.dirs[dir]; dir = path.Dir(dir) {
		s.dirs[dir] = true
	}
}

// keepLinks leaves those of the links that lead to what the job sees.
func (s *etcScan) keepLinks() {
	all := s.links
	s.links = map[string]string{}
	for more := true; more; {
		more = false
		for name, to := range all {
			if s.isSeen(path.Join("/etc", path.Dir(name)), to) {
				s.links[name] = to
				s.addDirs(name)
				delete(all, name)
				more = true
			}
		}
	}
}

func (s *etcScan) isSeen(dir, to string) bool {
	if len(s.links)+len(s.files) >= 2*maxEtcFiles {
		s.full = true
		return false
	}
	if !path.IsAbs(to) {
		to = path.Join(dir, to)
	}
	to = path.Clean(to)
	name, inEtc := strings.CutPrefix(to, "/etc/")
	if inEtc {
		_, file := s.files[name]
		_, link := s.links[name]
		return file || link || s.dirs[name]
	}
	return to == "/dev/null" || isIn(hostDirs, to) || isIn(hostVar, to)
}

// hasDir reports whether the host has a directory.
func (s *etcScan) hasDir(dir string) bool {
	info, err := os.Lstat(filepath.Join(s.root, dir))
	return err == nil && info.IsDir()
}

// addWatch watches a directory, if it is there.
func (s *etcScan) addWatch(dir string) {
	if s.watch < 0 {
		return
	}
	if s.watched++; s.watched > maxEtcDirs {
		s.unwatched = true
		return
	}
	const changes = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVE | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(s.watch, dir, changes|unix.IN_ONLYDIR); err != nil && err != unix.ENOENT && err != unix.ENOTDIR {
		s.unwatched = true
	}
}

// readConffiles returns the checksums of the configuration files of packages, by name
// below /etc (deb-conffiles(5), and Conffiles in the status of dpkg).
func readConffiles(r io.Reader) map[string][md5.Size]byte {
	sums := map[string][md5.Size]byte{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	for in := false; lines.Scan(); {
		line := lines.Text()
		if !strings.HasPrefix(line, " ") {
			in = line == "Conffiles:"
			continue
		}
		fields := strings.Fields(line)
		if !in || len(fields) < 2 {
			continue
		}
		name, ok := strings.CutPrefix(fields[0], "/etc/")
		if sum, err := hex.DecodeString(fields[1]); ok && err == nil && len(sum) == md5.Size && name != "" {
			sums[name] = [md5.Size]byte(sum)
		}
	}
	return sums
}

// hostParts are what jobs see of a host beside hostDirs.
type hostParts struct {
	etc   string        // the copy
	path  []string      // see loginPath
	trees []string      // of hostVar, those that are there
	dirs  []sandbox.Dir // of hostDirsMade
}

// hostEtcCopy keeps the copy: as one directory it is one mount in a job. It is made again
// when something has changed in the directories that were looked at, or in the packages;
// running jobs keep the copy they have.
type hostEtcCopy struct {
	root   string // of the host
	parent string // etc-N are the copies in it
	log    *slog.Logger

	mu      sync.Mutex
	host    hostParts
	files   map[string]etcFile // in host.etc, without their data
	sum     [sha256.Size]byte  // of all that is in there
	watch   int                // inotify; -1: there is none
	status  unix.Stat_t        // of dpkgStatus
	pkgs    map[string][md5.Size]byte
	scanned time.Time
}

// blindTime is how long a copy is taken to be right when changes are not seen.
const blindTime = 10 * time.Second

// current returns what jobs see now.
func (c *hostEtcCopy) current() (hostParts, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.host.etc == "" || c.changed() {
		if err := c.refresh(); err != nil {
			return hostParts{}, fmt.Errorf("cannot copy what jobs see of /etc: %w", err)
		}
	}
	return c.host, nil
}

func (c *hostEtcCopy) changed() bool {
	if c.stat() != c.status {
		return true
	}
	if c.watch < 0 {
		return time.Since(c.scanned) > blindTime
	}
	events := make([]byte, 4096)
	for changed := false; ; {
		n, err := unix.Read(c.watch, events)
		if err != nil {
			return changed || err != unix.EAGAIN
		}
		changed = changed || matter(events[:n])
	}
}

// matter reports whether there may be one among events of inotify(7) that changes what
// jobs see.
func matter(events []byte) bool {
	const own = unix.IN_Q_OVERFLOW | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_UNMOUNT
	for len(events) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
		events = events[unix.SizeofInotifyEvent:]
		name := events[:min(uint64(size), uint64(len(events)))]
		events = events[len(name):]
		name = bytes.TrimRight(name, "\x00")
		if mask&own != 0 || len(name) == 0 || !isEtcDenied(string(name)) {
			return true
		}
	}
	return false
}

// stat returns what tells one version of dpkgStatus from another.
func (c *hostEtcCopy) stat() (id unix.Stat_t) {
	var st unix.Stat_t
	if unix.Stat(filepath.Join(c.root, dpkgStatus), &st) == nil {
		id.Dev, id.Ino, id.Size, id.Mtim, id.Ctim = st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim
	}
	return id
}

func (c *hostEtcCopy) refresh() error {
	c.close()
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		c.watch = fd
	}
	if status := c.stat(); status != c.status || c.pkgs == nil { // before it is read
		c.pkgs, c.status = map[string][md5.Size]byte{}, status
		if f, err := os.Open(filepath.Join(c.root, dpkgStatus)); err == nil {
			c.pkgs = readConffiles(f)
			f.Close()
		}
	}
	c.scanned = time.Now()
	scan := scanEtc(c.root, c.pkgs, c.watch)
	c.host.path = loginPath(c.root, scan.addWatch)
	c.host.trees, c.host.dirs = nil, nil
	for _, dir := range hostVar {
		if scan.hasDir(dir) {
			c.host.trees = append(c.host.trees, dir)
		}
	}
	for _, dir := range hostDirsMade {
		if scan.hasDir(dir) {
			c.host.dirs = append(c.host.dirs, sandbox.Dir{Path: dir, Mode: 0o755})
		}
	}
	if scan.unwatched {
		c.close()
	}
	if scan.full {
		c.log.Warn("jobs do not see all that they could of /etc: it is too large")
	}
	sum := scan.sum()
	if c.host.etc != "" && sum == c.sum {
		return nil
	}
	dir, err := os.MkdirTemp(c.parent, "etc-")
	if err != nil {
		return err
	}
	if err := scan.write(dir, c.host.etc, c.files); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	for name, f := range scan.files {
		f.data = nil
		scan.files[name] = f
	}
	c.host.etc, c.files, c.sum = dir, scan.files, sum
	return nil
}

// stop ends the use of the copy.
func (c *hostEtcCopy) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.close()
}

// close ends the watch for changes.
func (c *hostEtcCopy) close() {
	if c.watch > 0 {
		unix.Close(c.watch)
	}
	c.watch = -1
}

func (s *etcScan) sum() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		f := s.files[name]
		fmt.Fprintf(h, "%q %v %x\n", name, f.exec, f.sum)
	}
	for _, name := range slices.Sorted(maps.Keys(s.links)) {
		fmt.Fprintf(h, "%q %q\n", name, s.links[name])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// write makes the copy in dir. A file that is the same in an older one takes no further
// room.
func (s *etcScan) write(dir, older string, had map[string]etcFile) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Chmod(".", 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(s.dirs)) { // those above come first
		if err := root.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	for name, f := range s.files {
		mode := os.FileMode(0o644)
		if f.exec {
			mode = 0o755
		}
		if old, ok := had[name]; ok && old.exec == f.exec && old.sum == f.sum && os.Link(filepath.Join(older, name), filepath.Join(dir, name)) == nil {
			continue
		}
		if err := root.WriteFile(name, f.data, mode); err != nil {
			return err
		}
	}
	for name, to := range s.links {
		if err := root.Symlink(to, name); err != nil {
			return err
		}
	}
	for name, text := range etcFiles {
		if err := root.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for name, to := range etcLinks {
		if err := root.Symlink(to, name); err != nil {
			return err
		}
	}
	return nil
}
