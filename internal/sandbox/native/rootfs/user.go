package rootfs

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/sandbox"
)

// maxUsers bounds the files of users and groups that a job gets a copy of.
const maxUsers = 256 << 10

// AddUser gives the user of a plan's security an entry in the sandbox's /etc/passwd and
// /etc/group, and a home directory. It returns the user's name and that directory.
func AddUser(plan *sandbox.Plan) (name, home string) {
	uid, gid := plan.Security.IDs()
	if uid == 0 {
		name, home = "root", "/root"
	}
	if uid|gid == 0 {
		return name, home
	}
	users, hasUsers := fileInEtc(plan, "passwd")
	groups, hasGroups := fileInEtc(plan, "group")
	if uid != 0 {
		var text string
		if name, home, text = withUser(users, uid, gid); hasUsers && text != users {
			cover(plan, "/etc/passwd", text)
		}
		plan.Home = home
	}
	if text := withGroup(groups, name, uid, gid); hasGroups && text != groups {
		cover(plan, "/etc/group", text)
	}
	return name, home
}

// etcMount returns which of the mounts is /etc; -1: none.
func etcMount(plan *sandbox.Plan) int {
	return slices.IndexFunc(plan.Mounts, func(m sandbox.Mount) bool { return m.Target == "/etc" })
}

// cover has the sandbox see a text in place of a file of its /etc.
func cover(plan *sandbox.Plan, file, text string) {
	if etcMount(plan) < 0 {
		plan.Files = append(plan.Files, sandbox.File{Path: file, Text: text}) // there is none
		return
	}
	plan.Covers = append(plan.Covers, sandbox.File{Path: file, Text: text})
}

// fileInEtc returns what a file of the sandbox's /etc holds. ok says that it can have
// another content: it is a file, or could be one.
func fileInEtc(plan *sandbox.Plan, name string) (text string, ok bool) {
	i := etcMount(plan)
	if i < 0 {
		return "", !slices.ContainsFunc(plan.Links, func(l sandbox.Link) bool { return l.Path == "/etc" })
	}
	etc := plan.Mounts[i].Source
	root, err := os.OpenRoot(filepath.Dir(etc)) // a link may lead to elsewhere in it
	if err != nil {
		return "", false
	}
	defer root.Close()
	f, err := root.OpenFile(filepath.Join(filepath.Base(etc), name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxUsers {
		return "", false
	}
	data, err := io.ReadAll(io.LimitReader(f, maxUsers))
	return string(data), err == nil
}

// withUser returns the name and the home directory of a user, and the text of
// passwd(5) with that.
func withUser(text string, uid, gid uint32) (name, home, with string) {
	id := strconv.Itoa(int(uid))
	entry := []string{freeName(text, "user", id), "*", id, strconv.Itoa(int(gid)), "", "", "/bin/sh"}
	lines := strings.SplitAfter(text, "\n")
	at := findID(lines, id, len(entry))
	if at >= 0 {
		if old := strings.Split(strings.TrimSuffix(lines[at], "\n"), ":"); isLoginName(old[0]) {
			entry = old
		}
	}
	if !mayBeHome(entry[5]) {
		entry[5] = "/home/" + entry[0]
	}
	line := strings.Join(entry, ":") + "\n"
	if at >= 0 {
		lines[at] = line
		return entry[0], entry[5], strings.Join(lines, "")
	}
	return entry[0], entry[5], withLine(text, line)
}

// withGroup returns the text of group(5) with an entry for the group of a user.
func withGroup(text, user string, uid, gid uint32) string {
	id := strconv.Itoa(int(gid))
	if findID(strings.SplitAfter(text, "\n"), id, 4) >= 0 {
		return text
	}
	name := freeName(text, "group", id)
	if uid == gid && !taken(text, user) {
		name = user
	}
	return withLine(text, name+":*:"+id+":\n")
}

func withLine(text, line string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + line
}

// findID returns which of the lines, of so many fields, has an id; -1: none.
func findID(lines []string, id string, fields int) int {
	return slices.IndexFunc(lines, func(line string) bool {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		return len(f) == fields && f[0] != "" && f[2] == id
	})
}

func taken(text, name string) bool { return strings.Contains("\n"+text, "\n"+name+":") }

// freeName returns a name for an id that no other has.
func freeName(text, kind, id string) string {
	if name := kind + id; !taken(text, name) {
		return name
	}
	return id
}

// isLoginName reports whether a name can be that of a directory and a word in a shell.
func isLoginName(name string) bool {
	return len(name) <= 32 && strings.Trim(name, ".-") != "" && name[0] != '-' && strings.IndexFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}) < 0
}

// mayBeHome reports whether a directory can be made the user's own: one in a part of the
// root that is the job's, and not one that every job has.
func mayBeHome(dir string) bool {
	if dir != path.Clean(dir) || len(dir) > 1024 || strings.ContainsRune(dir, 0) {
		return false
	}
	switch parent, _ := path.Split(dir); parent {
	case "/", "/var/":
		return dir == "/work"
	}
	return strings.HasPrefix(dir, "/home/") || strings.HasPrefix(dir, "/var/") || strings.HasPrefix(dir, "/work/")
}
