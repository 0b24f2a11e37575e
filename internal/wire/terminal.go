package wire

import (
	"math"

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
func ExecToProto(ref string, e joblet.ExecSpec) *api.ExecJobRequest {
	return &api.ExecJobRequest{
		Uuid: ref, Command: text(e.Command), Args: joblet.Texts(e.Args), Environment: joblet.TextEnv(e.Env), WorkDir: text(e.WorkDir),
		Stdin: e.Stdin, MergeOutput: e.MergeOutput, Terminal: WindowToProto(e.Terminal),
		CommandBytes: joblet.RawText(e.Command), ArgsBytes: joblet.RawTexts(e.Args),
		EnvironmentBytes: joblet.RawEnv(e.Env), WorkDirBytes: joblet.RawText(e.WorkDir),
	}
}

// ExecFromProto returns the process that r asks for, not yet validated.
func ExecFromProto(r *api.ExecJobRequest) joblet.ExecSpec {
	return joblet.ExecSpec{
		Command: joblet.FromRaw(r.GetCommand(), r.GetCommandBytes()), Args: joblet.FromRawTexts(r.GetArgs(), r.GetArgsBytes()),
		Env: joblet.FromRawEnv(r.GetEnvironment(), r.GetEnvironmentBytes()), WorkDir: joblet.FromRaw(r.GetWorkDir(), r.GetWorkDirBytes()),
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
