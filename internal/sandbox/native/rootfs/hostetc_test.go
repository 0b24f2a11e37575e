package rootfs

import (
	"crypto/md5" //nolint:gosec // what dpkg records
	_ "embed"    // the tests also run where the sources are not
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/testenv"
	"golang.org/x/sys/unix"
)

// needsRoot skips a test of files that must be root's.
func needsRoot(t *testing.T) {
	t.Helper()
	testenv.RequireRoot(t)
}

func plantFile(t *testing.T, root, name, text string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func conffile(name, text string) string {
	return fmt.Sprintf(" /etc/%s %x\n", name, md5.Sum([]byte(text))) //nolint:gosec // as above
}

//go:embed testdata/etc.txt
var etcList string

// TestEtcOfPackages decides on the files below /etc of many Debian packages, and on what
// their scripts and administrators put there. A line of testdata/etc.txt is "+" for what
// jobs see, "-" for what they do not, the name, and the package of which it is a
// configuration file; "!" is for what they see also when it has been changed.
func TestEtcOfPackages(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	var status strings.Builder
	status.WriteString("Package: x\nConffiles:\n")
	same, changed := t.TempDir(), t.TempDir()
	for line := range strings.Lines(etcList) {
		f := strings.Fields(line)
		plantFile(t, same, "etc/"+f[1], f[1])
		plantFile(t, changed, "etc/"+f[1], f[1]+" changed")
		if len(f) == 3 {
			status.WriteString(conffile(f[1], f[1]))
		}
	}
	pkgs := readConffiles(strings.NewReader(status.String()))
	unchanged, after := scanEtc(same, pkgs, -1), scanEtc(changed, pkgs, -1)
	var got strings.Builder
	for line := range strings.Lines(etcList) {
		name := strings.Fields(line)[1]
		_, seen := unchanged.files[name]
		_, always := after.files[name]
		switch {
		case always:
			got.WriteByte('!')
		case seen:
			got.WriteByte('+')
		default:
			got.WriteByte('-')
		}
		got.WriteString(line[1:])
	}
	if got.String() != etcList {
		file := filepath.Join(os.TempDir(), "etc.txt")
		t.Errorf("the decisions have changed: compare testdata/etc.txt with %s: %v", file, os.WriteFile(file, []byte(got.String()), 0o644))
	}
}

func TestHasSecret(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"": false, "a = b\n": false, "# passwords\n; token\n% secret\n": false, "# password = x\n": true, ";token: x\n": true, "# x = a password\n": false, "# input_password = secret\n": false,
		`<!-- <policy domain="cache" name="shared-secret" value="passphrase" stealth="true"/> -->`: false, `<policy name="shared-secret" value="x"/>`: true,
		"secret = $section::secret\n": false, "secret = $section::secret\nsecret = x": true,
		"password = $apr1$x$y\n": true, "password=$6$x": true, "password = #x\n": true, "secret = # none\n": false,
		"challengePassword = A challenge password\nchallengePassword_min = 4\n": false,
		"input_password = x\n": true, "Password=x": true, "  bindpw x\n": true, "PIN = 1\n": true, "user_pin=1\n": true, "pinned = 1\n": false,
		"proxy = http://u:p@host/\n": true, "proxy = http://host:80/a@b\n": false, "mail = ftp://a@host\n": false,
		"export API_KEY=1\n": true, "AWS_SECRET_ACCESS_KEY=1\n": true, "x\nGITHUB_TOKEN=1": true,
	} {
		if got := hasSecret([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestReadConffiles(t *testing.T) {
	t.Parallel()
	got := readConffiles(strings.NewReader("Package: a\nConffiles:\n /etc/a d41d8cd98f00b204e9800998ecf8427e\n /etc/b d41d8cd98f00b204e9800998ecf8427e obsolete\n" +
		" /etc/new newconffile\n /usr/x d41d8cd98f00b204e9800998ecf8427e\n /etc/long d41d8cd98f00b204e9800998ecf8427e00\n /etc/\nDescription: x\n /etc/no d41d8cd98f00b204e9800998ecf8427e\n"))
	if _, a := got["a"]; !a || len(got) != 2 || got["b"] != md5.Sum(nil) { //nolint:gosec // as above
		t.Errorf("got %v", got)
	}
}

// TestHostEtcCopy: the copy follows the host's /etc, and what is the same takes no room.
func TestHostEtcCopy(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	root := t.TempDir()
	c := &hostEtcCopy{root: root, parent: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	t.Cleanup(c.close)
	plantFile(t, root, "etc/services", "services\n")
	plantFile(t, root, "etc/fonts/fonts.conf", "fonts\n")
	plantFile(t, root, "etc/app/app.conf", "app\n")
	plantFile(t, root, dpkgStatus, "Conffiles:\n"+conffile("app/app.conf", "app\n"))
	if err := os.MkdirAll(filepath.Join(root, "usr/local/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	current := func() string {
		t.Helper()
		host, err := c.current()
		if err != nil {
			t.Fatal(err)
		}
		return host.etc
	}
	read := func(name string) string {
		t.Helper()
		text, _ := os.ReadFile(filepath.Join(current(), name))
		return string(text)
	}
	first := current()
	if got := read("app/app.conf") + read("services") + read("fonts/fonts.conf"); got != "app\nservices\nfonts\n" {
		t.Errorf("got %q", got)
	}
	plantFile(t, root, "etc/resolv.conf", "nameserver ::1\n")
	if c.changed() {
		t.Error("a file that no job ever sees has the rest looked at")
	}
	plantFile(t, root, "etc/unknown", "unknown\n")
	if current() != first {
		t.Error("a file that no job sees makes another copy")
	}
	plantFile(t, root, "etc/app/app.conf", "password\n")
	if got := read("app/app.conf"); got != "" {
		t.Errorf("a changed configuration file: %q", got)
	}
	plantFile(t, root, dpkgStatus, "Conffiles:\n"+conffile("app/app.conf", "password\n"))
	if got := read("app/app.conf"); got != "password\n" {
		t.Errorf("a configuration file of a new package: %q", got)
	}
	plantFile(t, root, "etc/fonts/conf.d/new.conf", "new\n")
	if got := read("fonts/conf.d/new.conf"); got != "new\n" {
		t.Errorf("a file in a new directory: %q", got)
	}
	plantFile(t, root, "etc/fonts/conf.d/new.conf", "newer\n") // its directory is watched by now
	if got := read("fonts/conf.d/new.conf"); got != "newer\n" {
		t.Errorf("a file in a new directory, changed: %q", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(first, "services"), &st); err != nil || st.Nlink < 2 {
		t.Errorf("%d names for a file that is the same in all copies: %v", st.Nlink, err)
	}
	if text, _ := os.ReadFile(filepath.Join(first, "app/app.conf")); string(text) != "app\n" {
		t.Errorf("the first copy has changed: %q", text)
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/local/x/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"var/cache/fontconfig", "var/log/nginx"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if host, err := c.current(); err != nil || !slices.Equal(host.path, []string{"/usr/local/x/bin"}) || !slices.Equal(host.trees, []string{"/var/cache/fontconfig"}) || len(host.dirs) != 1 {
		t.Errorf("new directories: %+v, %v", host, err)
	}
}

// TestEtcBounds: what is too large is left out, and no more than that.
func TestEtcBounds(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	root := t.TempDir()
	plantFile(t, root, "etc/services", "services\n")
	plantFile(t, root, "etc/fonts/large", "")
	if err := os.Truncate(filepath.Join(root, "etc/fonts/large"), maxEtcFile+1); err != nil {
		t.Fatal(err)
	}
	plantFile(t, root, "etc/fonts/"+strings.Repeat("d/", maxEtcDepth+3)+"deep", "deep\n")
	s := scanEtc(root, nil, -1)
	if !s.full || len(s.files) != 1 {
		t.Errorf("full: %v, %d files", s.full, len(s.files))
	}
}

func TestLoginPath(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	root := t.TempDir()
	for _, dir := range []string{"env", "defs", "profile", "script", "quoted", "local/go/bin", "local/none", "local/open/bin", "local/other/bin"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "opt/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../opt/x", filepath.Join(root, "usr/out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "usr/local/open/bin"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(root, "usr/local/other/bin"), 1000, 0); err != nil {
		t.Fatal(err)
	}
	plantFile(t, root, "etc/environment", "PATH=\"/usr/local/bin:/usr/env:/usr/out:/opt/x:relative:/usr/none\"\nOTHER=/usr/quoted\n")
	plantFile(t, root, "etc/login.defs", "#ENV_PATH PATH=/usr/quoted\nENV_SUPATH\tPATH=/sbin:/usr/defs\n")
	plantFile(t, root, "etc/profile", "if true; then\n  PATH=\"$PATH:/usr/profile/:$(evil)\"\nfi\nMYPATH=/usr/quoted\n")
	plantFile(t, root, "etc/profile.d/x.sh", "export PATH=/usr/script:~/bin; echo\n")
	want := []string{"/usr/env", "/usr/defs", "/usr/profile", "/usr/script", "/usr/local/go/bin"}
	if got := loginPath(root, func(string) {}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestChangedOpenSSL: the usual openssl.cnf holds no secret, so that a changed one is seen.
func TestChangedOpenSSL(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("/etc/ssl/openssl.cnf")
	testenv.Require(t, err == nil, "/etc/ssl/openssl.cnf (package openssl): %v", err)
	if hasSecret(append(text, "[system_default_sect]\nMinProtocol = TLSv1.2\n"...)) {
		t.Error("it looks as if it held a secret")
	}
}
