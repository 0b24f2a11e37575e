package supervisor

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/fsck"
)

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
	var found []fsck.Problem
	if _, err := fsck.Run(t.Context(), fsck.Config{StateDir: s.cfg.StateDir, RunDir: s.cfg.RunDir}, fsck.Options{Repair: true}, func(p fsck.Problem) { found = append(found, p) }); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(found, func(p fsck.Problem) bool {
		return p.Status == fsck.ProblemNote && strings.Contains(p.What, "another state directory")
	}) {
		t.Errorf("found %v", found)
	}
	closing(t, open(t, dir, nil))
}
