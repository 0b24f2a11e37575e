package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// probe is what only a hierarchy has that OpenProbe made.
type probe struct {
	available []string // controllers that a daemon would enable in v2, whether or not they could be here
	enabled   []string // those that were not before
	unlock    func()
}

// OpenProbe is Open for finding out what jobs can have on this host: it makes
// directories where a daemon would that is started here, but moves no process,
// and RemoveEmpty leaves everything as it was. A daemon may run meanwhile.
func OpenProbe() (*Hierarchy, error) {
	return open("joblet-check-"+strconv.Itoa(os.Getpid()), (*Hierarchy).probeV2)
}

func (h *Hierarchy) probeV2(m Mount, name string) (err error) {
	parent, _ := m.place(name)
	if h.probe.unlock, err = lock(parent); err != nil {
		return err
	}
	if h.probe.available, err = h.makeV2(parent, name); err != nil {
		return err
	}
	before, err := readWords(filepath.Join(parent, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("cannot read which controllers are enabled: %w", err)
	}
	for _, c := range h.probe.available {
		if !slices.Contains(before, c) {
			h.probe.enabled = append(h.probe.enabled, c)
		}
	}
	if err := enableControllers(parent, h.probe.enabled); err != nil {
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		h.probe.enabled = nil // processes are in there; a daemon would move them
	}
	for _, c := range h.probe.available {
		if slices.Contains(before, c) || slices.Contains(h.probe.enabled, c) {
			h.controllers = append(h.controllers, c)
		}
	}
	return enableControllers(h.v2, h.controllers)
}

func (p *probe) undo(parent string) {
	if len(p.enabled) > 0 {
		// EBUSY: a daemon began to use them.
		_ = write(parent, "cgroup.subtree_control", "-"+strings.Join(p.enabled, " -"))
		p.enabled = nil
	}
	if p.unlock != nil {
		p.unlock()
		p.unlock = nil
	}
}

// Untried returns the controllers that a daemon would have, but that could not be
// tried out because processes are in Parent.
func (h *Hierarchy) Untried() []string {
	return slices.DeleteFunc(slices.Clone(h.probe.available), func(c string) bool { return slices.Contains(h.controllers, c) })
}

// Parent returns the v2 cgroup that our directory is in; "": the host has none.
func (h *Hierarchy) Parent() string { return h.parent }

// Try is Create with no settings, for looking at what the cgroups have.
func (h *Hierarchy) Try(id string) (*Group, error) {
	g := h.Group(id)
	if err := g.makeDirs(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make a cgroup to try out: %w", err), g.Remove(context.Background()))
	}
	return g, nil
}

// Has reports whether jobs have a file of a controller; an empty one stands for
// the files that every v2 cgroup has.
func (g *Group) Has(controller, file string) bool {
	dir := g.V2
	if controller != "" {
		dir, _ = g.where(controller)
	}
	return dir != "" && exists(filepath.Join(dir, file))
}
