package wire

import (
	"maps"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// WindowToProto returns w, or nil for no terminal.
func WindowToProto(w joblet.WindowSize) *api.WindowSize {
	if w == (joblet.WindowSize{}) {
		return nil
	}
	return &api.WindowSize{Rows: toInt32(w.Rows), Columns: toInt32(w.Columns)}
}

// WindowFromProto returns the size that p says, not yet validated; nil is none.
// One of 0 by 0 is none either, so it becomes what Validate refuses.
func WindowFromProto(p *api.WindowSize) joblet.WindowSize {
	if p == nil {
		return joblet.WindowSize{}
	}
	w := joblet.WindowSize{Rows: int(p.GetRows()), Columns: int(p.GetColumns())}
	if w == (joblet.WindowSize{}) {
		w.Rows = -1
	}
	return w
}

// ExecToProto returns the request for a process in the job that ref names.
func ExecToProto(ref string, e joblet.ExecSpec) (*api.ExecJobRequest, error) {
	texts := slices.Concat([]string{e.Command, e.WorkDir}, e.Args, slices.Collect(maps.Keys(e.Env)), slices.Collect(maps.Values(e.Env)))
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%.100q: not UTF-8, and the API carries nothing else", text)
		}
	}
	return &api.ExecJobRequest{
		Uuid: ref, Command: e.Command, Args: e.Args, Environment: e.Env, WorkDir: e.WorkDir,
		Stdin: e.Stdin, MergeOutput: e.MergeOutput, Terminal: WindowToProto(e.Terminal),
	}, nil
}

// ExecFromProto returns the process that r asks for, not yet validated.
func ExecFromProto(r *api.ExecJobRequest) joblet.ExecSpec {
	return joblet.ExecSpec{
		Command: r.GetCommand(), Args: r.GetArgs(), Env: r.GetEnvironment(), WorkDir: r.GetWorkDir(),
		Stdin: r.GetStdin(), MergeOutput: r.GetMergeOutput(), Terminal: WindowFromProto(r.GetTerminal()),
	}
}

// AttachToProto returns the request to attach to the job that ref names.
func AttachToProto(ref string, o joblet.AttachOptions) *api.AttachJobRequest {
	return &api.AttachJobRequest{Uuid: ref, Offset: o.Offset, Tail: o.Tail, Size: WindowToProto(o.Size), Redraw: o.Redraw}
}

// AttachFromProto returns what r asks for.
func AttachFromProto(r *api.AttachJobRequest) (joblet.AttachOptions, error) {
	o := joblet.AttachOptions{Offset: r.GetOffset(), Tail: r.GetTail(), Size: WindowFromProto(r.GetSize()), Redraw: r.GetRedraw()}
	if o.Offset < 0 || o.Tail < 0 || o.Tail > math.MaxInt64/2 {
		return o, joblet.Errorf(joblet.InvalidArgument, "offset %d, tail %d: must not be negative", o.Offset, o.Tail)
	}
	if o.Size != (joblet.WindowSize{}) {
		return o, o.Size.Validate()
	}
	return o, nil
}

// ExitToProto returns e, or nil for none.
func ExitToProto(e *joblet.Exit) *api.JobExit { return exitToProto(e) }

// ExitFromProto returns the exit that p tells, or nil.
func ExitFromProto(p *api.JobExit) *joblet.Exit { return exitFromProto(p) }
