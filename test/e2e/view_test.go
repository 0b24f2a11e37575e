package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// plantRuntime makes a runtime of a few programs of the host and returns its tree.
func plantRuntime(t *testing.T, d *daemon, name string, programs ...string) (root string) {
	t.Helper()
	dir := filepath.Join(d.state, "runtimes", name)
	root = filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, program := range programs {
		copyProgram(t, program, root)
	}
	if err := os.WriteFile(filepath.Join(dir, "runtime.yaml"), []byte("format: 1\nname: "+name+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

// plant makes the files of a tree; a name that ends in "/" is a directory, and a text
// that begins with "->" a symbolic link.
func plant(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		err := os.MkdirAll(dir, 0o755)
		if to, ok := strings.CutPrefix(text, "->"); ok && err == nil {
			err = os.Symlink(to, path)
		} else if dir != path && err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRuntimeTree: a job sees all of its runtime's tree, as a chroot would show it, and
// writes to private places over it.
func TestRuntimeTree(t *testing.T) {
	t.Parallel()
	d := withState(t)
	tree := plantRuntime(t, d, "tree", "sh", "cat", "dd", "id", "ls", "mkdir", "mv", "readlink", "rm", "sleep", "stat", "touch", "mount", "umount", "unshare")
	plant(t, tree, map[string]string{
		"var/lib/dpkg/status": "packages\n", "var/cache/fontconfig/cache": "fonts\n", "var/lib/texmf/web2c/pdftex.fmt": "format\n",
		"var/log/www/": "", "var/spool/cron/": "", "var/lock": "->/run/lock", "var/run": "->/run", "var/tmp/left": "left\n",
		"root/.profile": "root\n", "home/me/.profile": "me\n", "run/www/pid": "pid\n", "tmp/.X11/": "",
		"srv/www/index": "index\n", "opt/tool/bin/tool": "tool\n", "mnt/data/x": "x\n", "media/disk/y": "y\n", "boot/vmlinuz": "kernel\n",
		"volumes/v/z": "z\n", "usr/local/share/a": "a\n", "etc/conf": "conf\n",
		"scratch/": "", "empty/": "", "version": "1\n", ".hidden": "hidden\n", "with space/f": "space\n", "-dash/f": "dash\n", "ünïcode": "umlauts\n",
		"line\nfeed/f": "feed\n", "b\xfftes/f": "bytes\n", "link\xff": "->b\xfftes/f", "empty\xff/": "", "a:b,c\\d/f": "signs\n", "data": "->var/lib/dpkg", "status": "->/var/lib/dpkg/status", "nowhere": "->no/such",
		"work/hidden": "hidden\n", "dev/hidden": "hidden\n", "proc/hidden": "hidden\n", "sys/hidden": "hidden\n", "lost+found/hidden": "hidden\n",
	})
	if err := os.Chmod(filepath.Join(tree, "scratch"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(tree, "var/lib/texmf"), 33, 33); err != nil {
		t.Fatal(err)
	}
	links := plantRuntime(t, d, "links", "sh", "cat", "ls", "touch")
	plant(t, links, map[string]string{
		"var": "->usr/var", "usr/var/lib/x": "x\n", "usr/var/home/me/y": "y\n", "home": "->/var/home", "root": "->/no/such", "tmp": "->../../../../../../../../etc",
		"run": "->/proc/self/root/etc",
	})
	many := plantRuntime(t, d, "many")
	for i := range 100 {
		plant(t, many, map[string]string{fmt.Sprintf("d%d/", i): ""})
	}
	plantRuntime(t, d, "bare", "sh", "readlink", "touch")
	d.serve(t)

	for _, test := range []struct{ name, flags, script, want string }{
		{"what is below /var", "", `cat /var/lib/dpkg/status /var/cache/fontconfig/cache /var/lib/texmf/web2c/pdftex.fmt /var/tmp/left; ls -d /var/log/www /var/spool/cron`,
			"packages\nfonts\nformat\nleft\n/var/log/www\n/var/spool/cron\n"},
		{"homes and places of programs", "", `cat /root/.profile /home/me/.profile /run/www/pid; ls -A /tmp`, "root\nme\npid\n.X11\n"},
		{"other directories", "", `cat /srv/www/index /opt/tool/bin/tool /mnt/data/x /media/disk/y /boot/vmlinuz /volumes/v/z /usr/local/share/a /etc/conf`,
			"index\ntool\nx\ny\nkernel\nz\na\nconf\n"},
		{"unusual names", "", `cat /version /.hidden "/with space/f" /-dash/f /ünïcode '/line
feed/f' '/a:b,c\d/f' /b*tes/f /link?; ls -d /empty?*`, "1\nhidden\nspace\ndash\numlauts\nfeed\nsigns\nbytes\nbytes\n/empty\xff\n"},
		{"links", "", `cat /status /data/status; readlink /data /status /nowhere /var/lock /var/run`,
			"packages\npackages\nvar/lib/dpkg\n/var/lib/dpkg/status\nno/such\n/run/lock\n/run\n"},
		{"its own places", "", `ls -A /work; cat /dev/hidden /proc/hidden /sys/hidden /lost+found/hidden 2>/dev/null; echo $?; cat /run/joblet/hostname`, "1\njob-"},
		{"empty directories", "", `ls -A /empty; stat -c %a:%u /empty /scratch; touch /empty/x /scratch/x`, "755:0\n1777:0\n"},
		{"modes", "", `stat -c %a:%u:%g /tmp /var /var/tmp /var/log /run /run/lock /root /home`, "1777:0:0\n755:0:0\n1777:0:0\n755:0:0\n755:0:0\n1777:0:0\n700:0:0\n755:0:0\n"},
		{"owners", "", `stat -c %u:%g /var/lib/dpkg/status /var/lib/texmf /home/me/.profile`, "0:0\n33:33\n0:0\n"},
		{"writing", "", `for f in /var/lib/dpkg/status /var/lib/mine /var/cache/fontconfig/x /var/log/x /var/log/www/x /var/spool/x /var/tmp/x \
			/tmp/x /home/x /home/me/.profile /root/.profile /run/x /run/www/pid /run/lock/x /x; do echo new >$f || echo $f; done; cat /var/lib/dpkg/status /home/me/.profile`, "new\nnew\n"},
		{"removing", "", `rm -r /var/lib/texmf /home/me && mkdir -p /var/lib/other && mv /var/cache/fontconfig/cache /var/lib/other && ls -A /home /var/lib /var/lib/other /var/cache/fontconfig`,
			"/home:\n\n/var/cache/fontconfig:\n\n/var/lib:\ndpkg\nother\n\n/var/lib/other:\ncache\n"},
		{"programs are read-only", "", `for f in /usr/x /usr/local/x /etc/conf /srv/www/x /opt/x /mnt/x /boot/x /version /bin/sh; do (echo >$f) 2>/dev/null && echo $f; done`, ""},
		{"another user", "--user=33", `id -u; echo new >/var/lib/texmf/x && echo mine; (echo new >/var/lib/dpkg/status) 2>/dev/null || echo refused; touch $HOME/x /var/tmp/x /tmp/x /scratch/x; echo $HOME`,
			"33\nmine\nrefused\n/home/user33\n"},
		{"no more than the disk", "--max-disk=4M", `dd if=/dev/zero of=/var/lib/big bs=1M count=8 2>/dev/null || echo full; cat /var/lib/dpkg/status`, "full\npackages\n"},
		{"nested", "--security=nested", `cat /var/lib/dpkg/status; echo x >/var/lib/x; cat /var/lib/x
			unshare -Urm sh -c 'umount /var || umount -l /var || mount -o remount,bind,rw /usr' 2>/dev/null || echo refused
			unshare -Urm sh -c 'mount -t tmpfs x /var && umount /var && cat /var/lib/x'`, "packages\nx\nrefused\nx\n"},
		{"strict", "--security=strict", `cat /var/lib/dpkg/status; echo x >/var/lib/x; cat /var/lib/x`, "packages\nx\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			args := append(strings.Fields(test.flags), "--runtime=tree", "sh", "-c", test.script)
			// Files that a job has changed are the job's own: the second one sees the tree.
			for range 2 {
				if r := d.job(t, args...); !strings.HasPrefix(r.stdout, test.want) || test.want == "" && r.stdout != "" || r.stderr != "" {
					t.Errorf("%v\nwant %s", r, test.want)
				}
			}
		})
	}

	r := d.job(t, "--runtime=links", "sh", "-c", `cat /var/lib/x /var/home/me/y /home/me/y; touch /home/z /root/z /tmp/z /run/z; ls -A /tmp /root /run; echo $HOME`)
	if want := "x\ny\ny\n/root:\nz\n\n/run:\njoblet\nlock\nz\n\n/tmp:\nz\n/root\n"; r.stdout != want || r.stderr != "" {
		t.Errorf("links in the place of directories: %v\nwant %s", r, want)
	}
	r = d.job(t, "--runtime=bare", "sh", "-c", `touch /var/lib/x /var/cache/x /var/log/x /var/tmp/x /home/x /root/x && readlink /var/run`)
	if r.stdout != "/run\n" || r.stderr != "" {
		t.Errorf("a tree without any of it: %v", r)
	}
	r = d.job(t, "--runtime=many", "true")
	if r.status != 125 || !strings.Contains(r.stderr, "entries at the top: at most 64 are possible") {
		t.Errorf("a tree with many directories: %v", r)
	}

	d.detach(t, "--name=box", "--runtime=tree", "sh", "-c", `echo new >/var/lib/dpkg/status; exec sleep 600`)
	if r := d.rnx(patient(t), "job", "exec", "box", "sh", "-c", `cat /var/cache/fontconfig/cache; readlink /var/run`); r.stdout != "fonts\n/run\n" {
		t.Errorf("exec: %v", r)
	}
	if text, err := os.ReadFile(filepath.Join(tree, "var/lib/dpkg/status")); err != nil || string(text) != "packages\n" {
		t.Errorf("the tree itself has %q: %v", text, err)
	}
}

// TestHostConfiguration: the host's programs find their configuration in a job without a
// runtime, and the shell what a login of the host finds.
func TestHostConfiguration(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, test := range []struct{ program, script, want string }{
		{"openssl", `openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -subj /CN=x 2>/dev/null && openssl x509 -in crt -noout -subject`, `^subject=CN ?= ?x\n$`},
		{"sh", `. /etc/os-release && echo $ID`, `^[a-z]+\n$`},
		{"/usr/local/go/bin/go", `cd / && GOCACHE=/tmp/c go version`, `^go version go`},
		{"man", `man -w man && MANPAGER=cat man man 2>&1 | head -c 1000 | grep -ci manual`, `/man1/man\.1.*\n[1-9]`},
		{"/usr/bin/R", `R --vanilla --slave -e 'cat(sum(1:4))'`, `^10`},
		{"/usr/bin/pdflatex", `printf '\\documentclass{article}\\begin{document}x\\end{document}' >a.tex; pdflatex a.tex >/dev/null && ls a.pdf`, `^a\.pdf\n$`},
		{"/usr/bin/convert", `convert -size 8x8 xc:red a.png && identify a.png`, `^a.png PNG 8x8`},
		{"/usr/sbin/nginx", `nginx -t -g 'pid /tmp/pid;' 2>&1`, `syntax is ok`},
		{"/usr/sbin/lighttpd", `test -s /etc/lighttpd/lighttpd.conf && lighttpd -tt -f /etc/lighttpd/lighttpd.conf && echo ok`, `^ok\n$`},
		{"/usr/bin/java", `cd /tmp && java -version 2>&1`, `version`},
		{"fc-match", `fc-match sans`, `"`},
	} {
		t.Run(test.program, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(test.program); err != nil {
				t.Skipf("requires %s", test.program)
			}
			if r := d.job(t, "sh", "-c", test.script); r.status != 0 || !regexp.MustCompile(test.want).MatchString(r.stdout) {
				t.Errorf("%v\nwant %s", r, test.want)
			}
		})
	}
	if _, err := os.Stat("/usr/local/go/bin/go"); err == nil {
		if r := d.job(t, "go", "version"); r.status != 0 {
			t.Errorf("a command in the host's search path: %v", r)
		}
		if r := d.job(t, "--env=PATH=/usr/bin:/bin", "sh", "-c", "echo $PATH; go version"); r.status != 127 || r.stdout != "/usr/bin:/bin\n" {
			t.Errorf("a search path of the job's own: %v", r)
		}
	}
}
