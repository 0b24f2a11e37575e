package plan

import (
	"context"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/runtimes"
)

// buildMemory is what the build of a runtime may use, page cache included.
const buildMemory = 4 << 30

// BuildRuntime builds a runtime from the mirrors that the daemon allows, with limits on
// time, memory and processes.
func (p *Planner) BuildRuntime(ctx context.Context, recipe runtimes.Recipe, opt runtimes.BuildOptions) (runtimes.Runtime, error) {
	opt.InUse = p.RuntimeInUse
	opt.Contain = func(pid int) (func() error, error) {
		return p.Engine.Contain(pid, joblet.Limits{MemoryBytes: buildMemory})
	}
	p.mu.Lock()
	opt.Mirrors, opt.Timeout = p.settings.Mirrors, p.settings.BuildTimeout
	p.mu.Unlock()
	return p.Runtimes.Build(ctx, recipe, opt)
}

// RuntimeInUse reports whether an unended job uses the runtime. The store of runtimes
// asks before it removes a tree.
func (p *Planner) RuntimeInUse(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.using[name] > 0
}

// UsedRuntimes returns how many runtimes unended jobs use.
func (p *Planner) UsedRuntimes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.using)
}

// UseRuntime counts a job that uses the runtime (1), or does so no more (-1). A job
// counts from before its runtime is found, so that the tree cannot be removed in
// between.
func (p *Planner) UseRuntime(name string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.using == nil {
		p.using = map[string]int{}
	}
	if p.using[name] += n; p.using[name] == 0 {
		delete(p.using, name)
	}
}
