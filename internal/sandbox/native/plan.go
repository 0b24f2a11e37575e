package native

import (
	"unsafe"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
	"github.com/joblet/joblet/internal/sandbox/native/seccomp"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Run is a plan that this host can carry out: see Compile. What is not its security may
// still change before Sandbox.Start or Engine.Exec.
type Run struct {
	sandbox.Plan
	filter []byte // of system calls, as the kernel takes it
}

// Compile makes a plan ready to run. An error of kind InvalidArgument says what in its
// security cannot be, one of kind FailedPrecondition what this host lacks for it.
func Compile(plan sandbox.Plan) (*Run, error) {
	filter, err := seccomp.Compile(plan.Security)
	if err != nil {
		return nil, err
	}
	return &Run{Plan: plan, filter: unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(filter)*int(unsafe.Sizeof(filter[0])))}, nil
}

// message returns what the shim is told of the run: its command in the terms of the
// kernel, and its root file system.
func (r *Run) message() *protocol.Run {
	m := r.command()
	m.Trees = make([]protocol.Tree, 0, len(r.Mounts)+len(r.Devices))
	for _, mount := range r.Mounts {
		m.Trees = append(m.Trees, protocol.Tree{
			Source: protocol.Name(mount.Source), Target: protocol.Name(mount.Target), File: mount.File,
			IDMap: mount.IDMapped, Layer: mount.Layer, Writable: mount.Writable, Device: mount.Device,
		})
	}
	m.OwnDev = len(r.Devices) > 0
	for _, d := range r.Devices {
		m.Trees = append(m.Trees, protocol.Tree{
			Source: protocol.Name(d.Source), Target: protocol.Name(d.Path), File: true, Writable: true, Device: true,
		})
	}
	for _, d := range r.Dirs {
		m.Dirs = append(m.Dirs, protocol.Dir{Path: protocol.Name(d.Path), Mode: d.Mode})
	}
	for _, l := range r.Links {
		m.Links = append(m.Links, protocol.Link{Path: protocol.Name(l.Path), Target: protocol.Name(l.Target)})
	}
	for _, f := range append(r.Files, rootfs.IdentityFiles(r.Network.Hostname)...) {
		m.Files = append(m.Files, protocol.File(f))
	}
	for _, f := range r.Covers {
		m.Covers = append(m.Covers, protocol.File(f))
	}
	m.Home = r.Home
	return m.Packed()
}

// process is message for a further process in a sandbox that has a root file system.
func (r *Run) process() *protocol.Run { return r.command().Packed() }

func (r *Run) command() *protocol.Run {
	m := &protocol.Run{
		Dir: r.Dir, Attempt: r.Attempt, Hostname: r.Network.Hostname,
		Command: r.Command, Args: r.Args, Env: r.Env, Path: r.Path, WorkDir: r.WorkDir, Init: r.Init,
		StdinPath: r.Stdin.Path, StdinStream: r.Stdin.Stream, MergeOutput: r.MergeOutput, FilesPath: r.FilesPath,
		Filter: r.filter, FilterFlags: seccomp.Flags, LogDenied: r.Security.LogDenied,
		Capabilities: r.Security.Capabilities(), Rlimits: rlimitsOf(r.Limits), DiskBytes: r.Limits.DiskBytes,
		Nested:       r.Security.Profile == joblet.ProfileNested,
		TimeoutNanos: int64(r.Timeout), GraceNanos: int64(r.Grace),
		LogMaxBytes: r.LogMaxBytes, LogShrinks: r.LogShrinks, WorkMaxBytes: r.WorkMaxBytes,
	}
	m.UID, m.GID = r.Security.IDs()
	m.Landlock = !m.Nested // a process that is under Landlock cannot mount at all
	if r.Limits.ShmBytes > 0 || r.Limits.MemoryBytes > 0 {
		m.ShmBytes = shmBytes(r.Limits)
	}
	if r.Terminal != (joblet.WindowSize{}) {
		m.Terminal = &WindowSize{Rows: uint16(r.Terminal.Rows), Columns: uint16(r.Terminal.Columns)}
	}
	return m
}

// ioDevices returns the block devices of a plan as package cgroup has them.
func ioDevices(plan *sandbox.Plan) []cgroup.Device {
	if len(plan.IODevices) == 0 {
		return nil
	}
	devices := make([]cgroup.Device, 0, len(plan.IODevices))
	for _, d := range plan.IODevices {
		devices = append(devices, cgroup.Device(d))
	}
	return devices
}
