package statedir

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
		{name: "much too long", raw: strings.Repeat(" ", MaxIdentity+1), runDirs: []string{runDir}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first, err := Locate(dir, runDir, log)
			if err != nil || first.Elsewhere != "" || !validTag(first.Now.Tag) {
				t.Fatalf("a new one: %+v, %v", first, err)
			}
			if err := first.Record(); err != nil {
				t.Fatal(err)
			}
			id := first.Now
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
			if err := os.WriteFile(filepath.Join(dir, IdentityName), text, 0o600); err != nil {
				t.Fatal(err)
			}
			run := runDir
			if test.run != "" {
				run = test.run
			}
			got, err := Locate(dir, run, log)
			if err != nil {
				t.Fatal(err)
			}
			if (test.elsewhere == "") != (got.Elsewhere == "") || !strings.Contains(got.Elsewhere, test.elsewhere) || got.Copied != test.copied {
				t.Errorf("elsewhere %q, copied %v", got.Elsewhere, got.Copied)
			}
			if kept := got.Now.Tag == first.Now.Tag; kept != test.keepsTag || !validTag(got.Now.Tag) {
				t.Errorf("tag %q, was %q", got.Now.Tag, first.Now.Tag)
			}
			if !slices.Equal(got.Now.RunDirs, test.runDirs) {
				t.Errorf("run directories %q", got.Now.RunDirs)
			}
			// Once that is recorded, it is as it was.
			if err := got.Record(); err != nil {
				t.Fatal(err)
			}
			if again, err := Locate(dir, run, log); err != nil || again.Elsewhere != "" || again.Now.Tag != got.Now.Tag {
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
	w, err := Locate(dir, "/run/one", log)
	if err == nil {
		err = w.Record()
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "ballast"))
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	w.Now.Boot = "the next"
	if err := w.Record(); err != nil {
		t.Fatal(err)
	}
	if id, err := readIdentity(w.Path); err != nil || id.Boot != "the next" {
		t.Errorf("got %+v, %v", id, err)
	}
}
