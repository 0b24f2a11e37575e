package escape

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// secretNames are files of a host's /etc that hold secrets, or tell hosts apart, and that
// an administrator or a program has made readable by everybody.
var secretNames = []string{
	// Passwords, keys and tickets.
	"shadow-", "shadow.bak", "gshadow~", "passwd-", "security/opasswd", "sudoers.d/admin", "krb5.keytab", "krb5.conf.d/realm.conf",
	"ssh/ssh_host_ed25519_key", "ssh/ssh_host_ed25519_key.pub", "ssh/sshd_config.d/10-local.conf", "ssl/private/server.key", "ssl/certs/server.key", "ssl/certs/id_rsa",
	"ssl/certs/java/server.jks", "ssl/certs/ssl-cert-snakeoil.pem", "pki/tls/private/localhost.key", "pki/tls/certs/private.pem",
	"wireguard/wg0.conf", "openvpn/client.conf", "ipsec.secrets", "swanctl/swanctl.conf", "ppp/chap-secrets", "wpa_supplicant/wpa_supplicant.conf",
	"NetworkManager/system-connections/wifi.nmconnection", "netplan/01-netcfg.yaml", "crypttab", "iscsi/iscsid.conf",
	"ceph/ceph.client.admin.keyring", "ldap.secret", "libnss-ldap.conf", "nslcd.conf", "sssd/sssd.conf", "msmtprc", "fetchmailrc",
	"mysql/debian.cnf", "mysql/conf.d/root.cnf", "postgresql/15/main/pg_service.conf", "odbc.ini", "redis/redis.conf", "dbconfig-common/app.conf",
	"postfix/sasl_passwd", "exim4/passwd.client", "dovecot/users", "apache2/.htpasswd", "nginx/htpasswd", "nginx/conf.d/proxy.conf",
	"apt/auth.conf.d/private.conf", "apt/sources.list.d/private.list", "apt/apt.conf.d/90proxy", "yum.repos.d/private.repo",
	"pip.conf", "npmrc", "gitconfig", "netrc", "default/app", "default/locale.bak", "environment", "environment.d/60-app.conf", "profile.d/keys.sh",
	"docker/daemon.json", "containers/auth.json", "rancher/k3s/k3s.yaml", "kubernetes/admin.conf", "letsencrypt/archive/live/privkey1.pem", "vault.d/vault.hcl",
	"systemd/system/app.service.d/override.conf", "cron.d/backup", "crontab.local", "myapp/config.yml", "myapp.conf", "R/Renviron.site.local", "jupyter/jupyter_config.py",
	"java-17-openjdk/management/jmxremote.password", "python3/api_token.cfg", "fonts/credentials.conf", "fonts/secret/fonts.conf", "fonts/fonts.conf~", "fonts/fonts.conf.bak",
	"fonts/.hidden", "mime.types.dpkg-old", "services.orig", "texmf/texmf.d/.netrc", ".git/config", "OpenCL/vendors/x.key",
	// Identity.
	"machine-id", "hostid", "hostname", "hosts", "resolv.conf", "mailname", "adjtime", "fstab", "exports", "iscsi/initiatorname.iscsi", "lvm/lvm.local.conf",
	"udev/rules.d/70-persistent-net.rules", "subuid", "cloud/cloud.cfg.d/90-local.cfg",
}

// secretTexts are secrets in files of names that a job may otherwise see.
var secretTexts = map[string]string{
	"ssl/certs/both.pem":           "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n-----BEGIN RSA PRIVATE KEY-----\n%s\n-----END RSA PRIVATE KEY-----\n",
	"ssl/openssl.cnf":              "[pkcs11_section]\nPIN = %s\n",
	"R/Renviron":                   "GITHUB_TOKEN=%s\n",
	"texmf/web2c/local.cnf":        "# local\nproxy_password = %s\n",
	"perl/CPAN/Config.pm":          "  'proxy_pass' => q[%s],\n",
	"python3/debian_config":        "[install]\nindex = https://user:%s@index.example.com/\n",
	"ImageMagick-6/delegates.xml":  "<delegate secret=\"%s\"/>\n",
	"java-17-openjdk/net.local":    "http.proxyPassword=%s\n",
	"xml/catalog":                  "<!-- x -->\n<uri name=\"a\" uri=\"ftp://u:%s@host/\"/>\n",
	"bash.bashrc":                  "export AWS_SECRET_ACCESS_KEY=%s\n",
	"wgetrc":                       "user = me\n# %s\n",
	"ssh/ssh_config":               "# %s\n",
	"vim/vimrc":                    "\" %s\n",
	"sysctl.conf":                  "# %s\n",
	"ld.so.conf.d/password.conf":   "# %s\n",
	"skel/.netrc":                  "%s\n",
	"groff/local.passwd":           "%s\n",
	"gnutls/config":                "# x\ntoken = %s\n",
	"manpath.config":               "# x\nDEFINE secret %s\n",
	"mailcap":                      "text/x; mail --password=%s\n",
	"crypto-policies/private.conf": "%s\n",
}

// TestHostSecrets has a job without a runtime look for what of the host's /etc is nobody
// else's, though everybody on the host may read it.
func TestHostSecrets(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) { // for the control
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	etc := filepath.Join(dir, "etc")
	if out, err := exec.Command("cp", "-a", "/etc", etc).CombinedOutput(); err != nil {
		t.Fatalf("copy /etc: %v %s", err, out)
	}
	mark := fmt.Sprintf("mark%016x", rand.Uint64())
	plant := func(name, text string, mode os.FileMode) string {
		t.Helper()
		file := filepath.Join(etc, name)
		for d := filepath.Dir(file); d != dir; d = filepath.Dir(d) {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.RemoveAll(file); err != nil { // it may be a link
			t.Fatal(err)
		}
		write(t, file, text)
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	open := map[string]bool{} // to everybody
	for _, name := range secretNames {
		plant(name, mark+"\n", 0o644)
		open[name] = true
	}
	for name, text := range secretTexts {
		before, _ := os.ReadFile(filepath.Join(etc, name))
		plant(name, string(before)+fmt.Sprintf(text, mark), 0o644)
		open[name] = true
	}
	seen := []string{"mime.types", "ssl/certs/ca.crt", "fonts/open.conf"}
	for _, name := range seen {
		plant(name, "public\n", 0o644)
	}
	plant("fonts/closed.conf", mark, 0o640)
	user := plant("fonts/user.conf", mark, 0o644)
	hard := plant("fonts/hard.conf", mark, 0o600)
	plant("fonts/closed/fonts.conf", mark, 0o644)
	open["fonts/user.conf"] = true
	for what, err := range map[string]error{
		"chown":   os.Chown(user, 1000, 1000),
		"link":    os.Link(hard, filepath.Join(etc, "fonts", "other.conf")),
		"chmod":   os.Chmod(filepath.Join(etc, "fonts", "closed"), 0o700),
		"mkfifo":  syscall.Mkfifo(filepath.Join(etc, "fonts", "fifo"), 0o644), // nobody writes to it
		"symlink": os.Symlink("/root/"+mark, filepath.Join(etc, "fonts", "link")),
		"outside": os.Symlink("../../../proc/1/environ", filepath.Join(etc, "fonts", "outside")),
		"shadow":  os.Symlink("/etc/shadow", filepath.Join(etc, "ssl", "certs", "shadow.link")),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	start := filepath.Join(dir, "joblet")
	write(t, start, "#!/bin/sh\nexec unshare -m --propagation slave sh -c 'mount --bind "+etc+" /etc; exec "+filepath.Join(binDir, "joblet")+" \"$@\"' joblet \"$@\"\n")
	if err := os.Chmod(start, 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorldOf(t, start)

	// The control: any user of the host reads them there.
	r := finish(exec.Command("nsenter", "-t", strconv.Itoa(w.daemon.Process.Pid), "-m", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		"grep", "-rsl", "--devices=skip", mark, "/etc"))
	for _, line := range strings.Fields(r.stdout) {
		delete(open, strings.TrimPrefix(line, "/etc/"))
	}
	if len(open) > 0 {
		t.Fatalf("a user of the host does not read %v: %v", open, r)
	}

	look := `grep -Rsla --devices=skip "$0" /etc; find /etc -printf '%p %l\n' | grep -a "$0"; find /etc -type p; ls -d /etc/ssl/certs/shadow.link /etc/fonts/outside 2>/dev/null
		for f in ` + strings.Join(seen, " ") + `; do test -s /etc/$f || echo no $f; done; true`
	for _, flags := range [][]string{nil, {"--security=nested"}, {"--user=1000"}, {"--cap-add=all"}} {
		if r := w.job(t, append(flags, "sh", "-c", look, mark)...); r.status != 0 || r.stdout != "" {
			t.Errorf("%v: a job sees of the host's /etc: %v", flags, r)
		}
	}

	// What becomes secret later on is seen no more. A job that runs keeps what it has.
	const public = "timezone"
	plant(public, "Etc/UTC\n", 0o644)
	show := func() string { return w.job(t, "sh", "-c", "cat /etc/"+public+" || echo none").stdout }
	if got := show(); got != "Etc/UTC\n" {
		t.Fatalf("a public file: %q", got)
	}
	id, _ := w.start(t, "ready", "sh", "-c", "echo ready; exec sleep 600")
	plant(public, mark+"\n", 0o600)
	if got := show(); got != "none\n" {
		t.Errorf("a file that became secret: %q", got)
	}
	if r := w.rnx(t.Context(), "job", "exec", id, "cat", "/etc/"+public); r.stdout != "Etc/UTC\n" {
		t.Errorf("in a job that ran before: %v", r)
	}
	plant(public, "Etc/GMT\n", 0o644)
	if got := show(); got != "Etc/GMT\n" {
		t.Errorf("a file that is public again: %q", got)
	}
}
