package supervisor

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

func TestLocate(t *testing.T) {
	t.Parallel()
	const runDir = "/run/one"
	log := slog.New(slog.DiscardHandler)
	for _, test := range []struct {
		name      string
		change    func(*identity)
		raw       string // in place of all of it
		run       string
		elsewhere string // part of it; empty: its jobs are adopted
		copied    bool
		keepsTag  bool
		runDirs   []string
	}{
		{name: "as it was", keepsTag: true, runDirs: []string{runDir}},
		{name: "another run directory", run: "/run/two", keepsTag: true, runDirs: []string{"/run/two", runDir}},
		{name: "a restart", change: func(id *identity) { id.Boot = "x" }, elsewhere: "restarted", keepsTag: true, runDirs: []string{runDir}},
		{name: "a restart that numbers the disks anew", change: func(id *identity) { id.Boot = "x"; id.Device++ }, elsewhere: "restarted", runDirs: []string{runDir}},
		{name: "a new machine id without a restart", change: func(id *identity) { id.Machine = "x" }, keepsTag: true, runDirs: []string{runDir}},
		{name: "a copy", change: func(id *identity) { id.Inode++ }, elsewhere: "copy", copied: true, runDirs: []string{runDir}},
		{name: "a copy on another disk", change: func(id *identity) { id.Device++ }, elsewhere: "copy", copied: true, runDirs: []string{runDir}},
		{name: "another machine", change: func(id *identity) { id.Boot, id.Machine = "x", "x" }, elsewhere: "another machine", copied: true, runDirs: []string{runDir}},
		{name: "damage", raw: "{", runDirs: []string{runDir}},
		{name: "nothing in it", raw: " ", runDirs: []string{runDir}},
		{name: "a tag that is none", change: func(id *identity) { id.Tag = "../../../../" }, runDirs: []string{runDir}},
		{name: "a flipped bit", raw: `{"tag":"0123456789ab","device":1,"inode":2,"run_dirs":["/run/one"],"sum":"00000000"}`, runDirs: []string{runDir}},
		{name: "much too long", raw: strings.Repeat(" ", maxIdentity+1), runDirs: []string{runDir}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first, err := locate(dir, runDir, log)
			if err != nil || first.elsewhere != "" || !validTag(first.now.Tag) {
				t.Fatalf("a new one: %+v, %v", first, err)
			}
			if err := first.record(); err != nil {
				t.Fatal(err)
			}
			id := first.now
			if test.change != nil {
				test.change(&id)
			}
			text, err := json.Marshal(id)
			if err != nil {
				t.Fatal(err)
			}
			text = protocol.Seal(text)
			if test.raw != "" {
				text = []byte(test.raw)
			}
			if err := os.WriteFile(filepath.Join(dir, identityName), text, 0o600); err != nil {
				t.Fatal(err)
			}
			run := runDir
			if test.run != "" {
				run = test.run
			}
			got, err := locate(dir, run, log)
			if err != nil {
				t.Fatal(err)
			}
			if (test.elsewhere == "") != (got.elsewhere == "") || !strings.Contains(got.elsewhere, test.elsewhere) || got.copied != test.copied {
				t.Errorf("elsewhere %q, copied %v", got.elsewhere, got.copied)
			}
			if kept := got.now.Tag == first.now.Tag; kept != test.keepsTag || !validTag(got.now.Tag) {
				t.Errorf("tag %q, was %q", got.now.Tag, first.now.Tag)
			}
			if !slices.Equal(got.now.RunDirs, test.runDirs) {
				t.Errorf("run directories %q", got.now.RunDirs)
			}
			// Once that is recorded, it is as it was.
			if err := got.record(); err != nil {
				t.Fatal(err)
			}
			if again, err := locate(dir, run, log); err != nil || again.elsewhere != "" || again.now.Tag != got.now.Tag {
				t.Errorf("afterwards: %+v, %v", again, err)
			}
		})
	}
}

// TestIdentityFullDisk: the identity is recorded in the room that it has.
func TestIdentityFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	log := slog.New(slog.DiscardHandler)
	w, err := locate(dir, "/run/one", log)
	if err == nil {
		err = w.record()
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "ballast"))
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	w.now.Boot = "the next"
	if err := w.record(); err != nil {
		t.Fatal(err)
	}
	if id, err := readIdentity(w.path); err != nil || id.Boot != "the next" {
		t.Errorf("got %+v, %v", id, err)
	}
}

// TestOthersBoxes: what another state directory has below the same run directory
// is left alone, by fsck as well.
func TestOthersBoxes(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	closing(t, s)
	groups, err := cgroup.Open(cgroup.Name(s.cfg.RunDir))
	if err != nil {
		t.Fatal(err)
	}
	const box = "01234567-89ab-8cde-8f01-ffffffffffff"
	group, err := groups.Create(box)
	if err != nil {
		t.Fatal(err)
	}
	const unused = "01234567-89ab-8cde-8f02-ffffffffffff"
	left, err := groups.Create(unused)
	if err != nil {
		t.Fatal(err)
	}
	defer groups.RemoveEmpty()
	process := exec.Command("sleep", "1000")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	if err := group.Enter(process.Process.Pid); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if !group.Exists() {
			t.Error("it was removed")
		}
		if left.Exists() {
			t.Error("what nobody uses was not removed")
		}
		if err := process.Process.Kill(); err != nil {
			t.Errorf("its process was ended: %v", err)
		}
		_ = process.Wait()
		if err := group.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	var found []Problem
	if _, err := Fsck(t.Context(), s.cfg, FsckOptions{Repair: true}, func(p Problem) { found = append(found, p) }); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(found, func(p Problem) bool {
		return p.Status == ProblemNote && strings.Contains(p.What, "another state directory")
	}) {
		t.Errorf("found %v", found)
	}
	closing(t, open(t, dir, nil))
}
