package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/sandbox"
)

// groups is the resource that gives each sandbox its cgroups, and kills what is in them.
// The directories in the host's hierarchies, which have the sandboxes' ids for names, are
// the record of what is taken.
type groups struct {
	own     *cgroup.Hierarchy
	former  []*cgroup.Hierarchy // of formerRunDirs
	sockets sockets             // of the shims, which go with the cgroups
	tag     string              // see Config.Tag

	formerRunDirs []string

	mu      sync.Mutex
	claimed map[string]*cgroup.Group // of sandboxes that this daemon has built
}

// groupLease is the lease on a sandbox's cgroups.
type groupLease struct {
	Name string `json:"name"` // of the directory in each hierarchy
}

// openGroups finds the host's cgroups, and the sockets of what shims there are. It
// removes sockets whose shims are gone for sure.
func openGroups(cfg Config) (_ *groups, err error) {
	g := &groups{own: cfg.Hierarchy, tag: cfg.Tag, formerRunDirs: cfg.FormerRunDirs, claimed: map[string]*cgroup.Group{}}
	if g.own == nil {
		if g.own, err = cgroup.Open(cgroup.Name(cfg.RunDir)); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				g.removeEmpty()
			}
		}()
	}
	for _, dir := range cfg.FormerRunDirs {
		g.former = append(g.former, g.own.Beside(cgroup.Name(dir)))
	}
	if g.sockets, err = makeSockets(cfg.RunDir, cfg.FormerRunDirs); err != nil {
		return nil, err
	}
	sandboxes, err := g.own.Sandboxes() // of whatever state directory
	if err == nil {
		err = g.sockets.clear(sandboxes)
	}
	if err != nil {
		return nil, errors.Join(err, g.sockets.close())
	}
	return g, nil
}

func (g *groups) Name() string { return "cgroup" }

func (g *groups) Claim(_ context.Context, id string, _ *sandbox.Plan) (sandbox.Lease, error) {
	g.mu.Lock()
	_, claimed := g.claimed[id]
	g.mu.Unlock()
	if !claimed {
		group, err := g.own.Create(id)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		g.claimed[id] = group
		g.mu.Unlock()
	}
	return json.Marshal(groupLease{id})
}

// Attach sets the limits of the plan.
func (g *groups) Attach(_ context.Context, a sandbox.Attachment) error {
	return g.group(a.ID).Limit(a.Plan.Limits, ioDevices(a.Plan))
}

// group returns the cgroups of a sandbox, which a daemon with another run directory may
// have made.
func (g *groups) group(id string) *cgroup.Group {
	g.mu.Lock()
	claimed := g.claimed[id]
	g.mu.Unlock()
	if claimed != nil {
		return claimed
	}
	group := g.own.Group(id)
	for _, h := range g.former {
		if other := h.Group(id); !group.Exists() && other.Exists() {
			return other
		}
	}
	return group
}

func (g *groups) Release(ctx context.Context, id string, _ sandbox.Lease) error {
	group := g.group(id)
	// The socket while the cgroups still show that there is a sandbox to be released.
	if err := errors.Join(group.Kill(), g.sockets.remove(id), group.Remove(ctx)); err != nil {
		return err
	}
	g.mu.Lock()
	delete(g.claimed, id)
	g.mu.Unlock()
	return nil
}

// releaseIn is Release within releaseTimeout.
func (g *groups) releaseIn(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	return g.Release(ctx, id, nil)
}

// sweepWorkers is how many sandboxes are released at once: the processes of each may take
// a while to go.
const sweepWorkers = 64

func (g *groups) Sweep(ctx context.Context, live map[string]sandbox.Lease) error {
	ids, _, err := g.list()
	if err != nil {
		return err
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { _, ok := live[id]; return ok })
	next := make(chan string)
	errs := make(chan error, len(ids))
	var workers sync.WaitGroup
	for range min(sweepWorkers, len(ids)) {
		workers.Go(func() {
			for id := range next {
				if err := g.releaseIn(ctx, id); err != nil {
					errs <- fmt.Errorf("cannot release what is left of sandbox %s: %w", id, err)
				}
				fault.Point("recover.released")
			}
		})
	}
	for _, id := range ids {
		next <- id
	}
	close(next)
	workers.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// foreign reports whether a sandbox was built for another state directory. Of those
// without a tag it is unknown: they are of versions that had none.
func (g *groups) foreign(id string) bool { return id[14] == '8' && id[24:] != g.tag }

// list is Engine.Sandboxes.
func (g *groups) list() (ids []string, foreign int, err error) {
	for i, h := range append([]*cgroup.Hierarchy{g.own}, g.former...) {
		found, err := h.Sandboxes()
		if err != nil {
			return nil, 0, err
		}
		for _, id := range found {
			switch {
			case g.foreign(id) && (i > 0 || g.inUse(id)):
				foreign++
			case i == 0 || id[14] == '8':
				ids = append(ids, id)
			}
		}
	}
	return ids, foreign, nil
}

// inUse reports whether a sandbox has a shim or a process. One of another state
// directory that has neither is what a daemon that was killed left, and the run directory
// is ours now.
func (g *groups) inUse(id string) bool {
	pids, err := g.own.Group(id).PIDs()
	return err != nil && !errors.Is(err, fs.ErrNotExist) || len(pids) > 0 || g.sockets.hasShim(id)
}

// usedRunDirs is Engine.UsedRunDirs.
func (g *groups) usedRunDirs() (dirs []string) {
	for i, h := range g.former {
		found, err := h.Sandboxes()
		if err != nil || slices.ContainsFunc(found, func(id string) bool { return !g.foreign(id) }) {
			dirs = append(dirs, g.formerRunDirs[i])
		}
	}
	return dirs
}

// removeEmpty removes the directories of ours that hold no sandbox.
func (g *groups) removeEmpty() {
	g.own.RemoveEmpty()
	for _, h := range g.former {
		h.RemoveEmpty()
	}
}
